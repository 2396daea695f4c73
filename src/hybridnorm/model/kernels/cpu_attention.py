"""Causal attention for CPUs in bfloat16, by blocks of queries.

PyTorch's own kernel for CPUs gains nothing from bfloat16, batched matrix products do; in float32
it is mostly the faster one (benchmarks/attention.py). A block of queries meets only the keys up to
its end, and heads that share keys are rows of one product.

Shape suffixes: B batch, T sequence, H query heads, G key/value heads, K head width; N = B * G
products at a time, R rows of one: a block of queries of each of the H / G heads, E keys.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_BLOCK = 128  # queries


# An operator of its own, so that it is one step to torch.compile and to selective checkpointing.
@torch.library.custom_op("hybridnorm::blockwise_attention", mutates_args=())
def blockwise_attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, visible_B1TT: Tensor | None
) -> Tensor:
    """Causal scaled dot-product attention `(batch, seq, heads, head_dim)`.

    Args:
        visible_B1TT: where a query (third dimension) sees a key (fourth), causal; None: all
            before it.
    """
    out_BTHK = torch.empty_like(q_BTHK, memory_format=torch.contiguous_format)
    k_NTK, v_NTK = _by_group(k_BTGK), _by_group(v_BTGK)
    for block in _blocks(q_BTHK.shape[1]):
        q_NRK = _rows(q_BTHK, block, k_BTGK.shape[2])
        probs_NRE = _probabilities(q_NRK, k_NTK, visible_B1TT, block)
        _write(out_BTHK, block, probs_NRE @ v_NTK[:, : block.stop])
    return out_BTHK


@torch.library.custom_op("hybridnorm::blockwise_attention_backward", mutates_args=())
def _backward(
    grad_BTHK: Tensor,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGK: Tensor,
    out_BTHK: Tensor,
    visible_B1TT: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    scale, groups = q_BTHK.shape[-1] ** -0.5, k_BTGK.shape[2]
    k_NTK, v_NTK = _by_group(k_BTGK), _by_group(v_BTGK)
    q_grad_BTHK = torch.empty_like(q_BTHK, memory_format=torch.contiguous_format)
    k_grad_NTK, v_grad_NTK = torch.zeros_like(k_NTK), torch.zeros_like(v_NTK)
    # The softmax's gradient is P * (dP - sum(P * dP)), and that sum is sum(out * grad).
    mean_BTH1 = (grad_BTHK * out_BTHK).sum(-1, keepdim=True)
    for block in _blocks(q_BTHK.shape[1]):
        keys = slice(0, block.stop)
        q_NRK, grad_NRK = _rows(q_BTHK, block, groups), _rows(grad_BTHK, block, groups)
        probs_NRE = _probabilities(q_NRK, k_NTK, visible_B1TT, block)
        v_grad_NTK[:, keys] += probs_NRE.mT @ grad_NRK
        scores_grad_NRE = torch.bmm(grad_NRK, v_NTK[:, keys].mT)
        scores_grad_NRE.sub_(_rows(mean_BTH1, block, groups)).mul_(probs_NRE)
        _write(q_grad_BTHK, block, scores_grad_NRE @ k_NTK[:, keys])
        k_grad_NTK[:, keys] += scores_grad_NRE.mT @ q_NRK
    k_grad_NTK *= scale
    q_grad_BTHK *= scale
    batch = q_BTHK.shape[0]
    return q_grad_BTHK, _by_position(k_grad_NTK, batch), _by_position(v_grad_NTK, batch)


def _probabilities(
    q_NRK: Tensor, k_NTK: Tensor, visible_B1TT: Tensor | None, block: slice
) -> Tensor:
    queries, keys = block.stop - block.start, block.stop
    if visible_B1TT is None:
        hidden = q_NRK.new_ones(1, 1, queries, keys, dtype=torch.bool).triu(block.start + 1)
    else:
        hidden = ~visible_B1TT[:, :, block, :keys]
    bias = q_NRK.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    bias = bias.repeat(1, 1, q_NRK.shape[1] // queries, 1)
    groups = len(q_NRK) // len(bias)
    return torch.baddbmm(
        bias.expand(-1, groups, -1, -1).flatten(0, 1),
        q_NRK,
        k_NTK[:, :keys].mT,
        alpha=q_NRK.shape[-1] ** -0.5,
    ).softmax(-1)


def _blocks(length: int) -> Iterator[slice]:
    for start in range(0, length, _BLOCK):
        yield slice(start, min(start + _BLOCK, length))


def _rows(x_BTHK: Tensor, block: slice, groups: int) -> Tensor:
    """`(N, R, K)`: the rows of one product are those of the heads of a group, head by head."""
    x_BHRK = x_BTHK[:, block].transpose(1, 2)
    return x_BHRK.reshape(len(x_BTHK) * groups, -1, x_BTHK.shape[-1])


def _write(out_BTHK: Tensor, block: slice, rows_NRK: Tensor) -> None:
    """The inverse of `_rows`."""
    batch, _, heads, width = out_BTHK.shape
    rows = rows_NRK.view(batch, heads, -1, width)
    out_BTHK[:, block] = rows.transpose(1, 2)


def _by_group(x_BTGK: Tensor) -> Tensor:
    return x_BTGK.transpose(1, 2).flatten(0, 1).contiguous()


def _by_position(x_NTK: Tensor, batch: int) -> Tensor:
    return x_NTK.view(batch, -1, *x_NTK.shape[1:]).transpose(1, 2).contiguous()


@blockwise_attention.register_fake
def _(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, visible_B1TT: Tensor | None) -> Tensor:
    return torch.empty_like(q_BTHK, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    q, k, v, visible = inputs
    ctx.save_for_backward(q, k, v, output, visible)


def _gradients(ctx: Any, grad_BTHK: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, visible = ctx.saved_tensors
    return (*_backward(grad_BTHK, q, k, v, out, visible), None)


blockwise_attention.register_autograd(_gradients, setup_context=_save)
