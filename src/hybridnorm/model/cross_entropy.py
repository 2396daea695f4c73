"""Output matrix and cross-entropy in one, chunk by chunk of tokens.

The logits of a batch are often its largest tensor, and plain autograd keeps three of that size.
Here a chunk's logits turn into its gradients before the next chunk's exist.

Shape suffixes: N tokens, V vocabulary, D d_model.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hybridnorm.model.config import chunk_rows
from hybridnorm.model.norms import at_least_float32

IGNORED = -100


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    z_weight: float = 0.0,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is minimized, and its two parts, the cross-entropy in nats and the z-loss.

    The z-loss is the squared log-partition function of the logits, log(sum(exp(logits)))^2 (PaLM,
    section 5). All are means over the targets, in float64: in float32 a mean depends on how a
    batch is split (1e-6).

    Args:
        hidden_ND: what the head reads; its dtype is that of the matrix products.
        weight_VD: the output matrix.
        targets_N: -100 where there is none.
        z_weight: the minimized sum is cross-entropy + z_weight * z-loss.
        compiled: run what is not a matrix product through torch.compile.

    Returns:
        The sum, cross-entropy and z-loss; only the sum has a gradient.
    """
    needs_gradient = torch.is_grad_enabled() and (
        hidden_ND.requires_grad or weight_VD.requires_grad
    )
    out: tuple[Tensor, Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, z_weight, compiled, needs_gradient
    )
    return out


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in its forward pass, while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        z_weight: float,
        compiled: bool,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        low_VD = weight_VD.to(hidden_ND.dtype)
        precise = torch.float32 if hidden_ND.device.type == "mps" else torch.float64
        sums = hidden_ND.new_zeros(2, dtype=precise)
        counted_N = targets_N != IGNORED
        count = counted_N.sum()
        if needs_gradient:
            hidden_grad_ND = torch.empty_like(hidden_ND)
            weight_grad_VD = torch.zeros_like(weight_VD, dtype=at_least_float32(low_VD[:0]).dtype)
        for rows in _chunks(hidden_ND, len(weight_VD)):
            part_ND = hidden_ND[rows]
            logits_NV = part_ND @ low_VD.T
            columns_N1 = targets_N[rows, None].clamp(min=0)
            at_target_N = at_least_float32(logits_NV.gather(1, columns_N1)).squeeze(1)
            log_partition_N = (_compiled() if compiled else _softmax_)(logits_NV)
            nats_N = log_partition_N - at_target_N
            terms = torch.stack((nats_N, log_partition_N.square())).to(precise)
            sums += terms.where(counted_N[rows], 0.0).sum(1)
            if not needs_gradient:
                continue
            grad_NV = logits_NV
            if z_weight:
                grad_NV *= (1 + 2 * z_weight * log_partition_N[:, None]).to(grad_NV.dtype)
            grad_NV.scatter_add_(1, columns_N1, grad_NV.new_full((), -1.0).expand_as(columns_N1))
            # A token without a target has no gradient: cheaper here than among the logits.
            counts_N1 = counted_N[rows, None]
            torch.mm(grad_NV, low_VD, out=hidden_grad_ND[rows]).mul_(counts_N1)
            weight_grad_VD += grad_NV.T @ (part_ND * counts_N1)
        means = sums / count
        if needs_gradient:
            ctx.save_for_backward(hidden_grad_ND, weight_grad_VD, count)
            ctx.weight_dtype = weight_VD.dtype
        cross_entropy, z = means.unbind()
        ctx.mark_non_differentiable(cross_entropy, z)
        return cross_entropy + z_weight * z, cross_entropy, z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_ND, weight_grad_VD, count = ctx.saved_tensors
        scale = gradients[0] / count
        return (
            hidden_grad_ND * scale.to(hidden_grad_ND.dtype),
            weight_grad_VD.mul_(scale).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )


def _softmax_(logits_NV: Tensor) -> Tensor:
    """In place; returns the log-partition function, `(N,)` in float32 at least."""
    wide_NV = at_least_float32(logits_NV)
    log_probs_NV = torch.log_softmax(wide_NV, -1)
    log_partition_N = wide_NV[:, 0] - log_probs_NV[:, 0]
    torch.exp(log_probs_NV, out=logits_NV)
    return log_partition_N


@cache
def _compiled() -> Callable[[Tensor], Tensor]:
    return torch.compile(_softmax_, dynamic=False)


def _chunks(hidden_ND: Tensor, vocab_size: int) -> list[slice]:
    n_tokens = len(hidden_ND)
    rows = chunk_rows(n_tokens, vocab_size, hidden_ND.device.type)
    return [slice(start, start + rows) for start in range(0, n_tokens, rows)]
