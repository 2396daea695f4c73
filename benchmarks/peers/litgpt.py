"""Lightning's litgpt with the switches of its Llama configurations."""

from types import SimpleNamespace

import torch
from litgpt import GPT, Config
from litgpt.generate import base
from litgpt.utils import chunked_cross_entropy
from torch import Tensor


def model(setup: SimpleNamespace, length: int) -> GPT:
    shape = setup.shape
    config = Config(
        block_size=length,
        n_layer=shape.n_layers,
        n_embd=shape.d_model,
        n_head=shape.n_heads,
        n_query_groups=shape.n_kv_heads,
        intermediate_size=shape.d_ff,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    theirs = GPT(config)
    theirs.apply(theirs._init_weights)
    return theirs.to(setup.device)


def build(setup: SimpleNamespace):
    theirs = model(setup, setup.shape.seq)
    forward = torch.compile(theirs) if setup.compiled else theirs

    def objective(ids: Tensor, targets: Tensor) -> Tensor:
        return chunked_cross_entropy(forward(ids), targets, chunk_size=128)

    return theirs, objective


def generator(setup: SimpleNamespace):
    length = setup.prompt + setup.new
    dtype = torch.bfloat16 if setup.dtype == "bf16" else torch.float32
    theirs = model(setup, length).eval().to(dtype)
    theirs.set_kv_cache(setup.batch, device=setup.device, dtype=dtype)
    if setup.compiled:  # as its command line does
        base.next_token = torch.compile(base.next_token, mode="reduce-overhead")
        base.batched_next_token = torch.compile(base.batched_next_token, mode="reduce-overhead")
    greedy = {"temperature": 0.0, "top_p": 0.0}

    def one(prompt: Tensor) -> Tensor:
        return base.generate(theirs, prompt[0], length, **greedy, include_prompt=False)[None]

    def many(prompts: Tensor) -> Tensor:
        tokens = base.batched_generate_fn(
            theirs, prompts, length, sample_args=greedy, include_prompt=False, include_eos=True
        )
        return torch.stack([torch.cat(row) for row in tokens], dim=1)

    return theirs, one if setup.batch == 1 else many
