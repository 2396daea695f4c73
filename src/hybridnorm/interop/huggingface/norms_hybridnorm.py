"""Norms and scales of HybridNorm language models for `transformers`, built from their data."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Spec = dict[str, Any]
STD = "initial_std"  # of a module's matrix


def linear(d: int, out: int, std: float | str) -> nn.Linear:
    """One whose initial standard deviation is a number, or called so in `config.initializer`."""
    made = nn.Linear(d, out, bias=False)
    setattr(made, STD, std)
    return made


class HybridNormGains(nn.Module):
    """Parameters with a number each to start from."""

    weight: Tensor | None
    bias: Tensor | None
    alpha: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.initial: dict[str, float] = {}

    def learn(self, name: str, dim: int, initial: float, is_there: bool) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(dim)) if is_there else None)
        self.initial |= {name: initial} if is_there else {}


class HybridNormNorm(HybridNormGains):
    """One normalization over the last dimension, with statistics in float32 at least."""

    def __init__(self, spec: Spec, dim: int) -> None:
        super().__init__()
        self.kind, self.eps, self.zero_centered = spec["kind"], spec["eps"], spec["zero_centered"]
        squashes = self.kind in ("dyt", "derf")
        affine, gain = spec["affine"], spec["gain_init"] - self.zero_centered
        self.learn("weight", 1 if affine == "scalar" else dim, gain, bool(affine))
        self.learn("bias", dim, 0.0, affine is True and (squashes or self.kind == "layer"))
        rank = spec.get("gate", 0)
        self.gate_down = linear(dim, rank, "gate_down") if rank else None
        self.gate_up = linear(rank, dim, 0.0) if rank else None
        self.learn("alpha", 1, spec["alpha_init"], squashes)
        self.learn("shift", 1, 0.0, self.kind == "derf")

    def forward(self, hidden_states: Tensor) -> Tensor:
        dtype = hidden_states.dtype
        wide = hidden_states.to(torch.promote_types(dtype, torch.float32))
        normed = self._normalize(wide).to(dtype)
        if self.weight is not None:
            gain = 1 + self.weight if self.zero_centered else self.weight
            normed = normed * gain.to(dtype)
        normed = normed if self.bias is None else normed + self.bias.to(dtype)
        if self.gate_down is None or self.gate_up is None:
            return normed
        return normed * self.gate_up(F.silu(self.gate_down(normed))).sigmoid()

    def _normalize(self, x: Tensor) -> Tensor:
        if self.kind == "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], eps=self.eps)
        if self.kind == "l2":
            return F.normalize(x, dim=-1, eps=self.eps)
        if self.kind == "dyt":
            return torch.tanh(self.alpha * x)
        return torch.erf(self.alpha * x + self.shift)  # derf


class HybridNormFullWidthNorm(HybridNormNorm):
    """A norm over all heads together, `(batch, seq, heads, head_dim)` in and out."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states.flatten(-2)).view_as(hidden_states)


class HybridNormScale(HybridNormGains):
    """A factor: a number, or a learned scalar or vector that starts there."""

    def __init__(self, spec: Spec, dim: int) -> None:
        super().__init__()
        self.value, learned = spec["value"], spec["learned"]
        self.learn("weight", 1 if learned == "scalar" else dim, self.value, learned != "none")

    def forward(self, hidden_states: Tensor) -> Tensor:
        factor = self.value if self.weight is None else self.weight.to(hidden_states.dtype)
        return hidden_states * factor


class HybridNormLeak(HybridNormGains):
    """x - silu(g) * stop_gradient(x), g learned: smaller values, the same gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.learn("weight", 1, 0.0, True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        leak = F.silu(self.get_parameter("weight")).to(hidden_states.dtype)
        return hidden_states - leak * hidden_states.detach()


def build(spec: Spec | None, dim: int) -> nn.Module:
    """A norm or a scale; the identity where there is none."""
    if spec is None:
        return nn.Identity()
    return HybridNormScale(spec, dim) if "learned" in spec else HybridNormNorm(spec, dim)


def build_head_norm(spec: Spec | None, n_heads: int, head_dim: int) -> nn.Module:
    if spec is not None and spec["axis"] == "full":
        return HybridNormFullWidthNorm(spec, n_heads * head_dim)
    return build(spec, head_dim)
