"""One linear layer per expert, all in one call, over rows that are sorted by expert.

Shape suffixes: R rows, E experts, I width in, O width out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """Bias-free linear layers, one per expert, in one weight `(n_experts, d_out, d_in)`.

    The float32 master weight is cast to the input's dtype, as in `layers.Linear`.
    """

    def __init__(self, n_experts: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, d_out, d_in))

    def forward(self, x_RI: Tensor, ends_E: Tensor) -> Tensor:
        """Rows `(rows, d_in)` to `(rows, d_out)`; expert e takes those before `ends_E[e]`."""
        return grouped_linear(x_RI, self.weight.to(x_RI.dtype), ends_E)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        n_experts, d_out, d_in = self.weight.shape
        return f"n_experts={n_experts}, d_in={d_in}, d_out={d_out}"


# Operators of their own, because those of torch 2.13 cannot be compiled in float32 (the meta
# kernel asks for bfloat16).
@torch.library.custom_op("hybridnorm::grouped_linear", mutates_args=())
def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """`x @ weight[e].T` for the rows of each expert e, of which there may be none.

    Args:
        ends_E: int32; the first row after those of each expert.
    """
    return F.grouped_mm(x_RI, weight_EOI.mT, offs=ends_E)


@torch.library.custom_op("hybridnorm::grouped_linear_backward", mutates_args=())
def _backward(
    gradient_RO: Tensor, x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    gradient_RO = gradient_RO.contiguous()  # an expanded one is refused
    return (
        F.grouped_mm(gradient_RO, weight_EOI, offs=ends_E),
        F.grouped_mm(gradient_RO.mT, x_RI, offs=ends_E),
    )


@grouped_linear.register_fake
def _(x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    return x_RI.new_empty(len(x_RI), weight_EOI.shape[1])


@_backward.register_fake
def _(
    gradient_RO: Tensor, x_RI: Tensor, weight_EOI: Tensor, ends_E: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_RI), torch.empty_like(weight_EOI)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient_RO: Tensor) -> tuple[Tensor, Tensor, None]:
    x_grad, weight_grad = _backward(gradient_RO, *ctx.saved_tensors)
    return x_grad, weight_grad, None


grouped_linear.register_autograd(_gradients, setup_context=_save)
