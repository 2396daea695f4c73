"""RMSNorm: x / sqrt(mean(x^2) + eps), times a gain."""

from typing import Any

import torch
from torch import Tensor

from hybridnorm.model.kernels.precision import at_least_float32
from hybridnorm.model.kernels.transforms import transformed


def rms_norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension (Zhang & Sennrich 2019), `(..., dim)` in and out.

    The statistic is taken in float32 at least; the result is cast back before the gain is applied.
    torch.compile fuses the plain formula; eager autograd would keep two tensors more for it than
    its own gradient needs, one of them in float32. PyTorch's own has no fused kernel on CPUs.
    """
    if type(x) is Tensor and not (torch.compiler.is_compiling() or transformed()):
        return _RMSNorm.apply(x, gain, eps)  # type: ignore[no-any-return, no-untyped-call]
    wide = at_least_float32(x)
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return normed if gain is None else normed * gain.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """The formula for eager execution, keeping its input alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
        wide = at_least_float32(x)
        rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = rms.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, gain, inverse)
        y = (wide * inverse).to(x.dtype)
        return y if gain is None else y.mul_(gain.to(x.dtype))  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, gain, inverse = ctx.saved_tensors
        y = torch.mul(x, inverse, out=torch.empty_like(x))
        gain_grad = None
        product = grad * y
        if gain is None:
            mean = product.mean(-1, keepdim=True)
        else:
            rows = product.reshape(-1, x.shape[-1])
            gain_grad = rows.sum(0, dtype=gain.dtype)
            low = gain.to(x.dtype)
            mean = rows.mv(low).div_(x.shape[-1]).view_as(inverse)
            grad = grad * low
        x_grad = torch.addcmul(grad, y, mean, value=-1)
        return torch.mul(x_grad, inverse, out=x_grad), gain_grad, None
