"""Ai2's OLMo-core: its Llama-like model, compiled whole (faster here than its block by block)."""

from types import SimpleNamespace

import torch
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.transformer import TransformerConfig
from torch import Tensor


def build(setup: SimpleNamespace):
    shape = setup.shape
    config = TransformerConfig.llama_like(
        d_model=shape.d_model,
        vocab_size=shape.vocab_size,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        feed_forward=FeedForwardConfig(hidden_size=shape.d_ff, bias=False),
    )
    theirs = config.build(init_device=setup.device)
    theirs.init_weights(max_seq_len=shape.seq)

    def objective(ids: Tensor, targets: Tensor) -> Tensor:
        return theirs(ids, labels=targets).loss

    return theirs, torch.compile(objective) if setup.compiled else objective
