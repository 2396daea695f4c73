"""Hugging Face transformers; `setup.variant` is Llama or Olmo2."""

from types import SimpleNamespace

import torch
import transformers
from torch import Tensor


def model(setup: SimpleNamespace):
    shape = setup.shape
    config = getattr(transformers, f"{setup.variant}Config")(
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        intermediate_size=shape.d_ff,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.seq,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation={"sdpa": "sdpa", "math": "eager"}[setup.attention],
    )
    return getattr(transformers, f"{setup.variant}ForCausalLM")(config).to(setup.device)


def build(setup: SimpleNamespace):
    theirs = model(setup).train()

    def objective(ids: Tensor, targets: Tensor) -> Tensor:
        return theirs(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False).loss

    return theirs, torch.compile(objective) if setup.compiled else objective


def generator(setup: SimpleNamespace):
    theirs = model(setup).eval()
    if setup.dtype == "bf16":
        theirs = theirs.bfloat16()
    if setup.compiled:
        theirs.forward = torch.compile(theirs.forward)

    def new_tokens(prompt: Tensor) -> Tensor:
        found = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=setup.new,
            cache_implementation=setup.cache,
        )
        return found[:, prompt.shape[1] :]

    return theirs, new_tokens
