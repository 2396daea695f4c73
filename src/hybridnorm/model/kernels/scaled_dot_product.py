"""Scaled dot-product attention: which kernel computes it.

Shape suffixes: B batch, T queries, E keys, H query heads, G key/value heads, K head width.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hybridnorm.model.kernels.cpu_attention import blockwise_attention

Mask = Tensor | BlockMask
"""Where a query sees a key: booleans `(batch or 1, heads or 1, queries, keys)`, or blocks."""


def attention(q_BTHK: Tensor, k_BEGK: Tensor, v_BEGK: Tensor, mask: Mask | None) -> Tensor:
    """The context `(batch, queries, heads, head_dim)`.

    Args:
        mask: None is causal where there are as many queries as keys; a single query sees all keys.
    """
    n_queries, n_keys = q_BTHK.shape[1], k_BEGK.shape[1]
    if q_BTHK.is_cpu and q_BTHK.dtype == torch.bfloat16 and n_queries == n_keys:
        return blockwise_attention(q_BTHK, k_BEGK, v_BEGK, mask)  # type: ignore[no-any-return]
    q_BHTK, k_BGEK, v_BGEK = (x.transpose(1, 2) for x in (q_BTHK, k_BEGK, v_BEGK))
    if isinstance(mask, BlockMask):
        context_BHTK = _flex(q_BHTK, k_BGEK, v_BGEK, mask)
    elif n_queries == 1:
        context_BHTK = _single_query(q_BHTK, k_BGEK, v_BGEK)
    else:
        context_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGEK,
            v_BGEK,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=_grouped(q_BHTK, k_BGEK),
        )
    return context_BHTK.transpose(1, 2)


@cache
def compiled(function: Any) -> Any:
    """`torch.compile(function)`, once for all calls."""
    return torch.compile(function)


def _flex(q_BHTK: Tensor, k_BGEK: Tensor, v_BGEK: Tensor, mask: BlockMask) -> Tensor:
    """FlexAttention, compiled on CUDA, unless the caller is compiled already."""
    compiles = q_BHTK.is_cuda and not torch.compiler.is_compiling()
    attend: Any = compiled(flex_attention) if compiles else flex_attention
    grouped = _grouped(q_BHTK, k_BGEK)
    return attend(q_BHTK, k_BGEK, v_BGEK, block_mask=mask, enable_gqa=grouped)  # type: ignore[no-any-return]


def _single_query(q_BHTK: Tensor, k_BGEK: Tensor, v_BGEK: Tensor) -> Tensor:
    """Heads that share keys become the rows of one product.

    Except in float32 on the CPU, where PyTorch's kernel is faster row by row
    (benchmarks/generation.py).
    """
    if q_BHTK.is_cpu and q_BHTK.dtype == torch.float32:
        grouped = _grouped(q_BHTK, k_BGEK)
        return F.scaled_dot_product_attention(q_BHTK, k_BGEK, v_BGEK, enable_gqa=grouped)
    q_BGRK = q_BHTK.reshape(*k_BGEK.shape[:2], -1, k_BGEK.shape[3])
    return F.scaled_dot_product_attention(q_BGRK, k_BGEK, v_BGEK).reshape(q_BHTK.shape)


def _grouped(q_BHTK: Tensor, k_BGEK: Tensor) -> bool:
    return q_BHTK.shape[1] != k_BGEK.shape[1]
