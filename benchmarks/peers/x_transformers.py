"""lucidrains' x-transformers with its Llama switches; its SwiGLU always has a bias."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper


def model(setup: SimpleNamespace) -> TransformerWrapper:
    shape = setup.shape
    head_dim = shape.d_model // shape.n_heads
    layers = Decoder(
        dim=shape.d_model,
        depth=shape.n_layers,
        heads=shape.n_heads,
        attn_kv_heads=shape.n_kv_heads,
        attn_dim_head=head_dim,
        attn_flash=setup.attention == "sdpa",
        rotary_pos_emb=True,
        rotary_emb_dim=head_dim,
        use_rmsnorm=True,
        ff_mult=shape.d_ff / shape.d_model,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
    )
    wrapper = TransformerWrapper(
        num_tokens=shape.vocab_size, max_seq_len=shape.seq, attn_layers=layers
    )
    return wrapper.to(setup.device)


def build(setup: SimpleNamespace):
    theirs = model(setup)

    def objective(ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(theirs(ids).flatten(0, 1).float(), targets.flatten())

    return theirs, torch.compile(objective) if setup.compiled else objective


def generator(setup: SimpleNamespace):
    theirs = model(setup).eval()
    if setup.dtype == "bf16":
        theirs = theirs.bfloat16()
    wrapper = AutoregressiveWrapper(theirs)
    return theirs, lambda prompt: wrapper.generate(prompt, setup.new, temperature=0.0)
