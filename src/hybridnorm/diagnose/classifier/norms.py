"""What a norm computes: its kind, width, gain, eps, measured on the module or on its tensors."""

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from hybridnorm.placements import Affine, Norm

Gain = Literal["plain", "zero-centred", "scalar", "none", "cannot tell"]
_CLOSE = 2e-3
_KINDS = ("rms", "layer", "l2")
_AFFINE: dict[Gain, Affine] = {"none": "none", "scalar": "scalar"}


@dataclass(frozen=True)
class FoundNorm:
    """A norm that was found, with what shows it."""

    where: str
    """The module, or the operation."""
    kind: str
    width: int
    """How many channels it takes its statistic over."""
    gain: Gain
    eps: float | None
    evidence: str

    def spec(self, axis: Literal["head", "full"] = "head") -> Norm:
        """In our vocabulary."""
        kind = self.kind if self.kind in _KINDS else "rms"
        return Norm(
            kind=kind,  # type: ignore[arg-type]
            affine=_AFFINE.get(self.gain, "vector"),
            zero_centered=self.gain == "zero-centred",
            eps=self.eps,
            axis=axis,
        )

    def words(self) -> str:
        names = {"rms": "RMSNorm", "layer": "LayerNorm", "l2": "division by the L2 norm"}
        eps = "eps cannot tell" if self.eps is None else f"eps {self.eps:g}"
        gain = {"none": "no gain", "cannot tell": "gain cannot tell"}.get(
            self.gain, f"{self.gain} gain"
        )
        return f"{names[self.kind]} over {self.width}, {gain}, {eps}"


@torch.no_grad()
def probe_module(name: str, module: nn.Module, like: Tensor) -> FoundNorm | None:
    """The norm that a module is, for inputs of the shape of `like`, or None.

    It is called on random inputs: large ones show its kind and gain, small ones its eps.
    """
    if (
        like.ndim < 2
        or like.shape[-1] < 2
        or any(p.ndim > 1 and p.shape != like.shape[-p.ndim :] for p in module.parameters())
    ):
        return None
    module = copy.deepcopy(module).double()
    generator = _generator(1)
    for parameter in module.parameters():  # away from 0 and 1, so that their use shows
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.add_(0.3 * noise.to(parameter.device))
    shape = (64, *like.shape[1:]) if like.ndim > 2 else (64, like.shape[-1])
    z = 100 * torch.randn(shape, generator=_generator(0), dtype=torch.float64).to(like.device)
    try:
        out, small = module(z), module(1e-6 * z)
    except Exception:  # a foreign module that wants something else
        return None
    if not isinstance(out, Tensor) or out.shape != z.shape or not out.isfinite().all():
        return None
    # Over the last dimension, over heads one by one with own gains, over all heads together.
    for over, gains in ((1, 1), (1, 2), (2, 2))[: 1 if z.ndim < 4 else 3]:
        if found := _fit(z, out, small, over, gains):
            return _describe(name, module, *found)
    return None


def fit_tensors(z: Tensor, out: Tensor) -> str | None:
    """The kind of norm, without a gain, that makes `out` of `z`, or None."""
    flat, target = z.double().flatten(0, -2), out.double().flatten(0, -2)
    for kind in _KINDS:
        if _relative(_normalized(flat, kind), target) < 10 * _CLOSE:
            return kind
    return None


def with_gain(norm: FoundNorm, constant: Tensor) -> FoundNorm:
    """The norm, multiplied by a constant afterwards."""
    return replace(norm, gain="scalar" if constant.numel() == 1 else "plain")


_Fit = tuple[str, int, Tensor, float, float]


def _fit(z: Tensor, out: Tensor, small: Tensor, over: int, gains: int) -> _Fit | None:
    """Kind, width, gain, error, eps of the norm over the last dimensions that fits.

    Args:
        over: how many of the last dimensions a statistic is taken over.
        gains: how many of them the gain has.
    """
    rows = z.flatten(-over)
    target, tiny = (t.flatten(-gains).flatten(0, -2) for t in (out, small))
    width = rows.shape[-1]
    for kind in _KINDS:
        n = _normalized(rows, kind).view(z.shape).flatten(-gains).flatten(0, -2)
        n0, t0 = n - n.mean(0), target - target.mean(0)
        gain = (n0 * t0).sum(0) / n0.square().sum(0)
        bias = (target - n * gain).mean(0)
        error = _relative(n * gain + bias, target)
        if error < _CLOSE and gain.abs().max() > 1e-3:
            unscaled = ((tiny - bias) / gain).view(z.shape).flatten(-over)
            shrunk = unscaled.norm(dim=-1) / _normalized(rows, kind).norm(dim=-1)
            eps = _eps(1e-6 * rows, shrunk, kind)
            return kind, width, gain, error, eps
    return None


def _eps(z: Tensor, shrunk: Tensor, kind: str) -> float:
    """From how much less than 1 a norm makes of inputs whose size is near its eps."""
    if kind == "l2":
        return 0.0
    moment = z.var(-1, correction=0) if kind == "layer" else z.square().mean(-1)
    found = (moment * (1 / shrunk.square() - 1)).median().item()
    return 0.0 if found < 1e-14 else float(f"{found:.2g}")


def _describe(
    name: str, module: nn.Module, kind: str, width: int, gain: Tensor, error: float, eps: float
) -> FoundNorm:
    parameters = dict(module.named_parameters())
    form: Gain = "cannot tell"
    shown = "its gain is no parameter of it"
    for key, parameter in parameters.items():
        flat = parameter.flatten()
        if flat.numel() not in (1, gain.numel()):
            continue
        for offset, candidate in ((0, "plain"), (1, "zero-centred")):
            if (gain - offset - flat).abs().max() < 1e-2:
                form = "scalar" if flat.numel() == 1 else candidate  # type: ignore[assignment]
                shown = f"its gain is {'1 + ' * offset}{key}"
    if form == "cannot tell" and (gain - 1).abs().max() < 1e-3:
        form, shown = "none", "its gain is 1"
    return FoundNorm(
        where=name,
        kind=kind,
        width=width,
        gain=form,
        eps=eps,
        evidence=f"module {name}: fits on random inputs within {error:.0e}; {shown}",
    )


def _normalized(z: Tensor, kind: str) -> Tensor:
    if kind == "layer":
        z = z - z.mean(-1, keepdim=True)
    norm = z.norm(dim=-1, keepdim=True)
    size: Tensor = norm if kind == "l2" else norm * z.shape[-1] ** -0.5
    return z / size.clamp_min(1e-30)


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
