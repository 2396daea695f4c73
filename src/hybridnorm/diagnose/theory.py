"""The HybridNorm paper's theory: how the gradients of attention depend on its other weights.

Shapes: s tokens, d = d_model, k = head width. X `(s, d)`; W_Q, W_K, W_V `(d, k)`; W_O `(k, d)`.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hybridnorm.charts import COLOURS, STYLES, finish
from hybridnorm.diagnose.probe import Probe, Reading, Size, StreamView
from hybridnorm.diagnose.table import Arms, Table, steps_of
from hybridnorm.diagnose.tensors import whole

Variant = Literal["pre-norm", "qk-norm", "qkv-norm"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
TITLES = {"pre-norm": "Pre-Norm", "qk-norm": "Pre-Norm with QK-norm", "qkv-norm": "QKV-norm"}
WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")
FACTORS = (1, 10, 100)
_ALONE = 10  # the factor where a weight grows alone
_TOKENS = 8
Weights = dict[str, Tensor]


class Theorems(Probe):
    """||dS/dW||_F of single-head attention S with respect to W_Q, W_K, W_V, W_O, and its bounds.

    Theorems 1 and 2 of the HybridNorm paper (App. B, Eq. 30-41): Pre-Norm reads
    X_N = RMSNorm(X) and norms nothing more, with QK-norm it norms X_N W_Q and X_N W_K, QKV-norm
    reads X itself and norms X W_Q, X W_K and X W_V; no mask, no rotation, gains of 1. X is the
    stream that enters the middle block, at 8 tokens of held-out text, the weights are those of that
    block's first head. Each is multiplied by 10, and all but each by 10 and 100.
    The measured norm is of the whole Jacobian, exactly.

    Bounds as printed, and corrected. The proofs take ||X_N||_F = sqrt(s), but the paper's RMSNorm
    gives sqrt(s d); and they take ||W'x|| >= sigma_min(W) ||x||, which does not hold where the head
    is narrower than the model: min_t ||W'x_t|| / ||x_t|| takes the place of sigma_min here. The
    corrected ones hold; see `bounds`.
    """

    name = "theory"
    title = "Theorems 1 and 2: gradients of attention against their bounds"
    reading = (
        "Upper row: the factor by which the Jacobian of the row's weight changes when the column's "
        "weight is multiplied by 10. Pre-Norm couples all weights, QK-norm cuts W_Q and W_K off, "
        "QKV-norm leaves only W_O and the weight itself (0.1: a normed projection's gradient falls "
        "as its weights grow). That is the theorems' claim, and it is about which weights appear, "
        "not about which gradient is smaller. A softmax that saturates makes Pre-Norm's true "
        "gradients fall while their bounds grow. Lower row: measured over bound as printed (a value"
        " above 1 contradicts the theorem's constant), as the other three weights grow together; "
        "dashed, over the corrected bound, which nothing exceeds. Single heads without mask and "
        "rotation, as in the paper; bounds say nothing about training."
    )
    shown = ()

    def stream(self, view: StreamView) -> Iterator[Reading]:
        middle = len(view.model.blocks) // 2
        block: Any = view.model.blocks[middle]
        if view.is_first:
            weights = _first_head(block.attention.branch)
            yield from _readings(middle + 1, view.states[middle][0, :_TOKENS].double(), weights)

    def memory(self, size: Size) -> int:
        d, k = size.config.d_model, size.config.head_dim
        return size.states + 3 * 8 * 3 * d * k**2

    def summary(self, table: Table) -> list[str]:
        lines = []
        for step in steps_of(table):
            for variant in VARIANTS:
                found = _values(table, step, variant)
                cases = {name.rpartition(" ")[0] for name in found}
                for kind in ("printed", "corrected"):
                    over = [found[f"{c} measured"] / found[f"{c} {kind}"] for c in cases]
                    exceeded = sum(ratio > 1 for ratio in over)
                    lines.append(
                        f"step {step}, {TITLES[variant]}: the {kind} bound is exceeded in "
                        f"{exceeded} of {len(over)} cases; measured / bound at most {max(over):.3g}"
                    )
        return lines

    def draw(self, arms: Arms) -> Figure:
        """Of the first arm's first run, at its last step."""
        [[table, *_], *_] = arms.values()
        step = steps_of(table)[-1]
        figure = Figure(figsize=(13.5, 8.0), layout="constrained")
        grid = figure.subplots(2, 3, squeeze=False)
        for column, variant in enumerate(VARIANTS):
            found = _values(table, step, variant)
            _draw_coupling(grid[0, column], found, TITLES[variant])
            _draw_ratios(grid[1, column], found)
        grid[1, 0].legend(frameon=False, fontsize=8)
        return figure


def context(variant: Variant, x: Tensor, weights: Weights) -> Tensor:
    """What W_O reads, `(s, k)`, in single-head attention without mask, as the paper defines it."""
    read = x if variant == "qkv-norm" else _rms_norm(x)
    q, k, v = (read @ weights[name] for name in WEIGHTS[:3])
    if variant != "pre-norm":
        q, k = _rms_norm(q), _rms_norm(k)
    if variant == "qkv-norm":
        v = _rms_norm(v)
    return (q @ k.T / math.sqrt(q.shape[1])).softmax(-1) @ v


def jacobian_norms(variant: Variant, x: Tensor, weights: Weights) -> dict[str, float]:
    """||dS/dW||_F of each weight, of S = context @ W_O.

    S is linear in W_O, with the norm sqrt(d) ||context||_F. For the others, the Jacobian of a
    token's context M `(k, d k)` is multiplied by W_O: ||W_O' M||_F^2 = <M, W_O W_O' M>.
    """
    w_o, inputs = weights["W_O"], {name: weights[name] for name in WEIGHTS[:3]}
    with torch.enable_grad():
        read, pull_back = torch.func.vjp(lambda w: context(variant, x, w), inputs)[:2]
    squares = dict.fromkeys(inputs, 0.0)
    for token in range(len(x)):
        rows = read.new_zeros(read.shape[1], *read.shape)
        rows[:, token] = torch.eye(read.shape[1], dtype=read.dtype, device=read.device)
        (gradients,) = torch.func.vmap(pull_back)(rows)
        for name, gradient in gradients.items():
            m = gradient.flatten(1)
            squares[name] += float((m * (w_o @ w_o.T @ m)).sum())
    of_w_o = math.sqrt(w_o.shape[1]) * float(read.detach().norm())
    return {name: math.sqrt(square) for name, square in squares.items()} | {"W_O": of_w_o}


def bounds(
    variant: Variant, x: Tensor, weights: Weights
) -> tuple[dict[str, float], dict[str, float]]:
    """The upper bounds of Theorem 2 as printed, and corrected, by weight.

    Corrected, with m = min_t ||W'x_t|| / ||x_t|| of the weight in question:

        Pre-Norm   W_O s d ||W_V||; W_V s sqrt(d) ||W_O||_F;
                   W_Q (s d)^1.5 / (2 sqrt(k)) ||W_K|| ||W_V|| ||W_O||; W_K likewise
        QK-norm    W_O, W_V as Pre-Norm; W_Q s^1.5 sqrt(d) k / (2 m) ||W_V|| ||W_O||; W_K likewise
        QKV-norm   W_O s sqrt(d k); W_V s k / m ||W_O||; W_Q (s k)^1.5 / (2 m) ||W_O||; W_K likewise

    They follow from ||P||_2 <= sqrt(s) for the weights P of attention, from the softmax's Jacobian
    (at most 1/2), and from ||dN(u)/dW||_F <= sqrt(k) ||x|| sqrt(k - 1) / ||u|| for u = W'x.
    """
    s, d = x.shape
    k = weights["W_Q"].shape[1]
    two = {name: float(torch.linalg.matrix_norm(w, 2)) for name, w in weights.items()}
    o_frobenius = float(weights["W_O"].norm())
    read = x if variant == "qkv-norm" else _rms_norm(x)
    smallest = {n: float(torch.linalg.svdvals(weights[n])[-1]) for n in WEIGHTS[:3]}
    least = {
        n: float(((read @ weights[n]).norm(dim=-1) / read.norm(dim=-1)).amin()) for n in WEIGHTS[:3]
    }
    v, o = two["W_V"], two["W_O"]
    if variant == "pre-norm":
        end = v * o * s**1.5 / math.sqrt(k)
        printed = {"W_Q": end / 2 * two["W_K"], "W_K": end * two["W_Q"]}
        corrected = {
            "W_Q": end / 2 * d**1.5 * two["W_K"],
            "W_K": end / 2 * d**1.5 * two["W_Q"],
        }
    else:
        value = v if variant == "qk-norm" else 1.0
        wide = math.sqrt(d) if variant == "qk-norm" else math.sqrt(k)
        printed = {n: s * math.sqrt(s * k) / smallest[n] * value * o for n in ("W_Q", "W_K")}
        corrected = {n: s**1.5 * wide * k / (2 * least[n]) * value * o for n in ("W_Q", "W_K")}
    if variant == "qkv-norm":
        printed |= {"W_V": s * k / smallest["W_V"] * o, "W_O": s * math.sqrt(d)}
        corrected |= {"W_V": s * k / least["W_V"] * o, "W_O": s * math.sqrt(d * k)}
    else:
        printed |= {"W_V": s * o_frobenius, "W_O": s * math.sqrt(d) * v}
        corrected |= {"W_V": s * math.sqrt(d) * o_frobenius, "W_O": s * d * v}
    return printed, corrected


def _readings(layer: int, x: Tensor, weights: Weights) -> Iterator[Reading]:
    if not all(bool(part.isfinite().all()) for part in (x, *weights.values())):
        return
    for variant, (grown, factor) in itertools.product(VARIANTS, _cases()):
        scaled = {n: w * (factor if n in grown else 1) for n, w in weights.items()}
        printed, corrected = bounds(variant, x, scaled)
        found = {
            "measured": jacobian_norms(variant, x, scaled),
            "printed": printed,
            "corrected": corrected,
        }
        case = f"{'+'.join(grown)}*{factor}" if grown else "*1"
        for kind, values in found.items():
            for name, value in values.items():
                number = torch.tensor(value, dtype=torch.float64)
                yield Reading(layer, variant, f"{name} {case} {kind}", number, "first")


def _cases() -> Iterator[tuple[tuple[str, ...], int]]:
    """Which weights grow together, and by how much: each alone, and the three others of each."""
    yield (), 1
    yield from (((name,), _ALONE) for name in WEIGHTS)
    yield from ((_others(name), factor) for factor in FACTORS[1:] for name in WEIGHTS)


def _others(name: str) -> tuple[str, ...]:
    return tuple(other for other in WEIGHTS if other != name)


def _first_head(attention: Any) -> Weights:
    """W_Q, W_K, W_V, W_O of a block's first head, float64, the same on all ranks."""
    d_head = attention.head_dim

    def matrix(name: str) -> Tensor:
        return whole(getattr(attention, f"{name}_proj").weight).double()

    inputs = {f"W_{n.upper()}": matrix(n)[:d_head].T.contiguous() for n in "qkv"}
    return {**inputs, "W_O": matrix("o")[:, :d_head].T.contiguous()}


def _rms_norm(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def _values(table: Table, step: int, variant: str) -> dict[str, float]:
    return {r.name: r.value for r in table if r.step == step and r.sublayer == variant}


def _draw_coupling(axes: Axes, found: dict[str, float], title: str) -> None:
    factors = np.array(
        [
            [
                found[f"{row} {col}*{_ALONE} measured"] / found[f"{row} *1 measured"]
                for col in WEIGHTS
            ]
            for row in WEIGHTS
        ]
    )
    axes.imshow(np.log10(factors), cmap="RdBu_r", vmin=-2, vmax=2)
    for (row, column), factor in np.ndenumerate(factors):
        axes.text(column, row, f"{factor:.2g}", ha="center", va="center")
    axes.set_xticks(range(4), [f"{name} x10" for name in WEIGHTS])
    axes.set_yticks(range(4), [f"dS/d{name}" for name in WEIGHTS])
    axes.set_title(title)


def _draw_ratios(axes: Axes, found: dict[str, float]) -> None:
    for index, name in enumerate(WEIGHTS):
        cases = ["*1", *(f"{'+'.join(_others(name))}*{factor}" for factor in FACTORS[1:])]
        for kind, style in (("printed", STYLES[0]), ("corrected", STYLES[1])):
            ratios = [found[f"{name} {c} measured"] / found[f"{name} {c} {kind}"] for c in cases]
            label = name if kind == "printed" else None
            axes.plot(FACTORS, ratios, style, color=COLOURS[index], marker="o", ms=3, label=label)
    axes.axhline(1, color="0.4", lw=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    finish(axes, "factor on the other three weights", "measured / bound")


PROBES = (Theorems,)
