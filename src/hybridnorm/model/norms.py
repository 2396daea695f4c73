"""Norms and learned scales as modules, built from their specs.

Shapes: `(..., dim)` in and out. Statistics are taken in float32 at least, whatever the
input's dtype; RMSNorm's result is cast back before the gain is applied, as in the authors' code.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridnorm.model.kernels import at_least_float32, rms_norm
from hybridnorm.model.linear import Linear
from hybridnorm.placements import Norm as NormSpec
from hybridnorm.placements import Scale as ScaleSpec


class Norm(nn.Module):
    """One normalization over the last dimension.

    Args:
        config: what kind of norm.
        dim: width of the last dimension.
        gain: the gain's initial value (a number: depth powers are evaluated when a block is built).
        eps: used where the spec names none.
    """

    def __init__(self, config: NormSpec, dim: int, *, gain: float, eps: float) -> None:
        super().__init__()
        self.kind, self.dim = config.kind, dim
        self.eps = eps if config.eps is None else config.eps
        self.zero_centered = config.zero_centered
        self.initial = {"weight": gain - 1.0 if config.zero_centered else gain, "bias": 0.0}
        size = {"none": 0, "scalar": 1, "vector": dim}[config.affine]
        self.weight = nn.Parameter(torch.empty(size)) if size else None
        self.bias = nn.Parameter(torch.empty(dim)) if config.has_bias else None
        rank = config.gate
        self.gate_down = Linear(dim, rank) if rank else None
        self.gate_up = Linear(rank, dim) if rank else None
        if config.kind in ("dyt", "derf"):
            self.initial |= {"alpha": config.alpha_init, "shift": 0.0}
            self.alpha = nn.Parameter(torch.empty(1))
        if config.kind == "derf":
            self.shift = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Constants only, so that meta-device construction loses nothing."""
        for name, parameter in self.named_parameters(recurse=False):
            parameter.fill_(self.initial[name])

    def forward(self, x: Tensor) -> Tensor:
        y = self._affine(x)
        if self.gate_down is None or self.gate_up is None:
            return y
        return y * torch.sigmoid(self.gate_up(F.silu(self.gate_down(y))))

    def _affine(self, x: Tensor) -> Tensor:
        gain = None
        if self.weight is not None:
            gain = 1 + self.weight if self.zero_centered else self.weight
            if len(gain) != self.dim:
                gain = gain.expand(self.dim)
        if self.kind == "rms":
            return rms_norm(x, gain, self.eps)
        if self.kind == "layer":
            gain, bias = (None if a is None else a.to(x.dtype) for a in (gain, self.bias))
            return F.layer_norm(x, x.shape[-1:], gain, bias, self.eps)
        y = self._normalize(at_least_float32(x)).to(x.dtype)
        y = y if gain is None else y * gain.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def _normalize(self, x: Tensor) -> Tensor:
        match self.kind:
            case "l2":
                return F.normalize(x, dim=-1, eps=self.eps)
            case "dyt":
                return torch.tanh(self.alpha * x)
            case "derf":
                return torch.erf(self.alpha * x + self.shift)
            case "rms" | "layer":
                raise AssertionError("PyTorch's or our kernel")

    def extra_repr(self) -> str:
        return f"{self.kind}, eps={self.eps:g}"


class FullWidthNorm(Norm):
    """A norm over all heads together, `(batch, seq, heads, head_dim)` in and out (OLMo 2)."""

    def forward(self, x_BTHK: Tensor) -> Tensor:
        return super().forward(x_BTHK.flatten(2)).view_as(x_BTHK)


class Scale(nn.Module):
    """Multiply by a constant, or by a learned scalar or vector `(dim,)` that starts there.

    A constant is a Python number, never a buffer: meta-device initialization destroys buffers.
    """

    def __init__(self, config: ScaleSpec, dim: int, value: float) -> None:
        super().__init__()
        self.value = value
        size = {"none": 0, "scalar": 1, "channel": dim}[config.learned]
        self.weight = nn.Parameter(torch.empty(size)) if size else None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        if self.weight is not None:
            self.weight.fill_(self.value)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is not None:
            return x * self.weight.to(x.dtype)
        return x if self.value == 1.0 else x * self.value

    def extra_repr(self) -> str:
        return f"{self.value:g}"


class Leak(Scale):
    """x - silu(g) * stop_gradient(x), g learned: smaller values, the same gradient.

    GPAS, arXiv 2506.22049.
    """

    def __init__(self) -> None:
        super().__init__(ScaleSpec(learned="scalar"), 1, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return x - F.silu(self.weight).to(x.dtype) * x.detach()


class Widths(Protocol):
    """What norms need to know of a model; `ModelConfig` is one."""

    @property
    def d_model(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...


class NormBuilder:
    """Builds the norms and scales of block `layer`: there, power laws of specs become numbers."""

    def __init__(self, layer: int, config: Widths) -> None:
        self.layer, self.config = layer, config

    def norm(self, spec: NormSpec | None, dim: int | None = None) -> nn.Module:
        """The norm of width `dim` (default `d_model`), or the identity."""
        return nn.Identity() if spec is None else self._norm(Norm, spec, dim or self.config.d_model)

    def head_norm(self, spec: NormSpec | None, n_heads: int) -> nn.Module:
        """The norm on heads: of each with one shared gain, or of all together."""
        width = self.config.head_dim
        if spec is not None and spec.axis == "full":
            return self._norm(FullWidthNorm, spec, n_heads * width)
        return self.norm(spec, width)

    def scale(self, spec: ScaleSpec) -> Scale:
        return Scale(spec, self.config.d_model, self._number(spec))

    def _norm(self, kind: type[Norm], spec: NormSpec, dim: int) -> Norm:
        return kind(spec, dim, gain=self._number(spec.gain_init), eps=self.config.norm_eps)

    def _number(self, power_law: ScaleSpec) -> float:
        return power_law.at(self.layer, self.config.n_layers, self.config.d_model)
