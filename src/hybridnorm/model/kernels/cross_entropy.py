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

from hybridnorm.model.kernels.chunks import chunk_rows
from hybridnorm.model.kernels.precision import at_least_float32

IGNORED = -100


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    vocab_size: int | None = None,
    z_weight: float = 0.0,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is total, and its two parts, the cross-entropy in nats and the z-loss.

    The z-loss is the squared log-partition function of the logits, log(sum(exp(logits)))^2 (PaLM,
    section 5). All are means over the targets, in float64: in float32 a mean depends on how a
    batch is split (1e-6).

    Args:
        hidden_ND: what the head reads; its dtype is that of the matrix products.
        weight_VD: the output matrix.
        targets_N: -100 where there is none.
        vocab_size: its rows that are tokens. The others pad it: tensor cores want logits whose rows
            are whole numbers of 16 bytes. None: all.
        z_weight: the total sum is cross-entropy + z_weight * z-loss.
        compiled: run what is not a matrix product through torch.compile.

    Returns:
        The sum, cross-entropy and z-loss; only the sum has a gradient.
    """
    needs_gradient = torch.is_grad_enabled() and (
        hidden_ND.requires_grad or weight_VD.requires_grad
    )
    out: tuple[Tensor, Tensor, Tensor] = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, targets_N, vocab_size, z_weight, compiled, needs_gradient
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
        vocab_size: int | None,
        z_weight: float,
        compiled: bool,
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_words = len(weight_VD) if vocab_size is None else vocab_size
        low_VD = weight_VD.to(hidden_ND.dtype)
        precise = torch.float32 if hidden_ND.device.type == "mps" else torch.float64
        totals = hidden_ND.new_zeros(2, dtype=precise)
        counted_N = targets_N != IGNORED
        count = counted_N.sum()
        if needs_gradient:
            hidden_grad_ND = torch.empty_like(hidden_ND)
            weight_grad_VD = torch.zeros_like(weight_VD, dtype=at_least_float32(low_VD[:0]).dtype)
        exponentials = _compiled() if compiled else _softmax
        for rows in _chunks(hidden_ND, len(weight_VD)):
            part_ND = hidden_ND[rows]
            logits_NV = part_ND @ low_VD.T
            logits_NV[:, n_words:].fill_(-torch.inf)
            columns_N1 = targets_N[rows, None].clamp(min=0)
            at_target_N = at_least_float32(logits_NV.gather(1, columns_N1)).squeeze(1)
            exponentials_NV, log_partition_N, sums_N = exponentials(logits_NV)
            del logits_NV  # the next chunk's are not to meet them
            nats_N = log_partition_N - at_target_N
            terms = torch.stack((nats_N, log_partition_N.square())).to(precise)
            totals += terms.where(counted_N[rows], 0.0).sum(1)
            if not needs_gradient:
                continue
            if z_weight:
                factor_N1 = 1 + 2 * z_weight * log_partition_N[:, None]
                exponentials_NV *= factor_N1.to(exponentials_NV.dtype)
            # A row's gradient is (exponentials - their sum, at the target) / their sum. To divide,
            # and to leave out tokens without a target, is cheaper outside of the logits.
            sums_N1 = sums_N[:, None].to(exponentials_NV.dtype)
            grad_NV = exponentials_NV.scatter_add_(1, columns_N1, -sums_N1)
            scale_N1 = counted_N[rows, None] / at_least_float32(sums_N1)
            torch.mm(grad_NV, low_VD, out=hidden_grad_ND[rows]).mul_(scale_N1)
            _add_product(weight_grad_VD, grad_NV.T, (part_ND * scale_N1).to(part_ND.dtype))
        means = totals / count
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
            *[None] * 5,
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right; on CUDA without a product in low precision in between."""
    if total.is_cuda and total.dtype != left.dtype:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


def _softmax(logits_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiples of the probabilities `(N, V)`, the log-partition function and the sums `(N,)`.

    The softmax is one kernel, and its sums are 1.
    """
    probs_NV = torch.softmax(logits_NV, -1, dtype=at_least_float32(logits_NV[:0]).dtype)
    log_partition_N = logits_NV.amax(-1) - probs_NV.amax(-1).log()
    return probs_NV.to(logits_NV.dtype), log_partition_N, torch.ones_like(log_partition_N)


def _exponentials_(logits_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in place and relative to the largest: two passes over the logits, once compiled."""
    wide_NV = at_least_float32(logits_NV)
    largest_N1 = wide_NV.amax(-1, keepdim=True)
    exponentials_NV = torch.exp(wide_NV - largest_N1)
    sums_N = exponentials_NV.sum(-1)
    return logits_NV.copy_(exponentials_NV), largest_N1.squeeze(-1) + sums_N.log(), sums_N


@cache
def _compiled() -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_exponentials_, dynamic=False)


def _chunks(hidden_ND: Tensor, vocab_size: int) -> list[slice]:
    n_tokens = len(hidden_ND)
    rows = chunk_rows(n_tokens, vocab_size, hidden_ND.device.type)
    return [slice(start, start + rows) for start in range(0, n_tokens, rows)]
