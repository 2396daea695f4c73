"""How equations, facts and drawings write a placement: its distinct blocks, norms and scales."""

import math
from collections.abc import Callable, Hashable, Iterable
from itertools import groupby
from typing import NamedTuple, TypeVar

from hybridnorm.placements.properties import relevant
from hybridnorm.placements.spec import BlockSpec, Norm, Placement, Scale, norms_of
from hybridnorm.ranges import Layers, check_number
from hybridnorm.text import count

_SUBSCRIPT = {"q_norm": "q", "k_norm": "k", "v_norm": "v", "context_norm": "c", "mid_norm": "m"}
_LETTER = {"rms": "N", "layer": "LN", "l2": "L2", "dyt": "DyT", "derf": "Derf"}
_KIND = {
    "rms": "RMSNorm",
    "layer": "LayerNorm",
    "l2": "division by the L2 norm",
    "dyt": "γ·tanh(a·x) + b",
    "derf": "γ·erf(a·x + s) + b",
}
_POWERS = {0.25: "¼", 0.75: "¾", 2.0: "²", 3.0: "³"}
_DIGITS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_Key = TypeVar("_Key", bound=Hashable)


class Group(NamedTuple):
    """Blocks that are the same: their indices (from 0) and their spec."""

    layers: tuple[int, ...]
    spec: BlockSpec

    @property
    def title(self) -> str:
        """`block 1`, `blocks 2..12`, `blocks 1..3, 5..7`: counted from 1, many cut short."""
        runs = groupby(enumerate(self.layers), key=lambda pair: pair[1] - pair[0])
        spans = [[layer + 1 for _, layer in run] for _, run in runs]
        texts = [f"{span[0]}..{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans]
        if len(texts) > 5:
            texts[3:-1] = ["..."]
        return f"block{'s' if len(self.layers) > 1 else ''} {', '.join(texts)}"


def distinct_blocks(placement: Placement, n_layers: int) -> list[Group]:
    """The distinct blocks of a model of `n_layers`, in order of their first appearance.

    Raises:
        HybridNormError: no layers, or overrides that contradict each other.
    """
    check_number("n_layers", n_layers, Layers)
    groups: dict[BlockSpec, list[int]] = {}
    for layer in range(n_layers):
        groups.setdefault(placement.block(layer, n_layers), []).append(layer)
    return [Group(tuple(layers), spec) for spec, layers in groups.items()]


def norm_notes(norm: Norm, site: str) -> list[str]:
    """What is not plain about a norm: `full width`, `no gain`, `gain starts at 1/√(2L)`."""
    norm = relevant(norm, site)
    notes = {
        "full width": norm.axis == "full",
        "no gain": norm.affine == "none" and norm.kind != "l2",
        "one gain": norm.affine == "scalar",
        "gain 1 + γ": norm.zero_centered,
        f"gain starts at {scale_text(norm.gain_init)}": not norm.gain_init.is_one,
        f"gate of rank {norm.gate}": norm.gate > 0,
        f"eps {norm.eps}".replace("e-0", "e-"): norm.eps is not None,
        f"a starts at {norm.alpha_init:g}": norm.kind in ("dyt", "derf"),
    }
    return [note for note, holds in notes.items() if holds]


def scale_text(scale: Scale) -> str:
    """A scale's value in l (block, from 0), L and d: `1/√(l+1)`, `(2L)^¼`, `0.283/√L`."""
    over, under = _fraction(scale)
    return "·".join(over or ["1"]) + under


def _fraction(scale: Scale) -> tuple[list[str], str]:
    """The factors above the line, and what divides them (`/√L`, or nothing)."""
    value, depth = scale.value, "L"
    if scale.depth_power and (whole := _whole_root(value, scale.depth_power)):
        value, depth = 1.0, f"{whole}L"
    powers = [(depth, scale.depth_power), ("d", scale.width_power), ("l+1", scale.layer_power)]
    over = [f"{value:.4g}"] * (value != 1) + [_power(base, p) for base, p in powers if p > 0]
    under = [_power(base, -p) for base, p in powers if p < 0]
    if not under:
        return over, ""
    is_product = len(under) > 1 or under[0] == depth != "L"
    return over, f"/({'·'.join(under)})" if is_product else f"/{under[0]}"


def _whole_root(value: float, power: float) -> int:
    """The whole number m > 1 with `m^power == value`, or 0: 2^¼ L^¼ is written (2L)^¼."""
    if value <= 0 or not 0.5 < (log := math.log(value) / power) < 5:
        return 0
    whole = round(math.exp(log))
    return whole if math.isclose(whole**power, value, rel_tol=1e-9) else 0


def _power(base: str, power: float) -> str:
    if power == 1:
        return f"({base})" if "+" in base else base
    bare = base if len(base) == 1 else f"({base})"
    if power == 0.5:
        return f"√{bare}"
    hat = "" if power in (2.0, 3.0) else "^"
    return f"{bare}{hat}{_POWERS.get(power, f'{power:g}')}"


class Symbols:
    """A symbol for each distinct norm and each distinct learned scale of a placement."""

    def __init__(self, placement: Placement, n_layers: int) -> None:
        self.groups = distinct_blocks(placement, n_layers)
        self._n_layers = n_layers
        sublayers = [s for g in self.groups for s in (g.spec.attention, g.spec.feed_forward)]
        specs = [g.spec for g in self.groups] + sublayers
        sites = [pair for spec in specs for pair in norms_of(spec).items()]
        ends = {"embed_norm": placement.embed_norm, "final_norm": placement.final(n_layers)}
        sites += [(site, norm) for site, norm in ends.items() if norm]
        scales = [placement.embed_scale, *(s for spec in sublayers for s in spec.scales.values())]
        self._norms = _numbered((_norm_key(norm, site) for site, norm in sites), _is_plain)
        self._learned = _numbered(_learned_key(s) for s in scales if s.learned != "none")
        self._constants = [
            *(s for s in scales if s.learned == "none"),
            *(norm.gain_init for _, norm in sites),
        ]

    def norm(self, norm: Norm, site: str) -> str:
        """The symbol of the norm in the field `site`: `N`, `N_q`, `LN₁`."""
        return self._norms[_norm_key(norm, site)]

    def scale(self, scale: Scale) -> str:
        """A factor: `2L`, `1/√(l+1)`, or the symbol of a learned one."""
        return scale_text(scale) if scale.learned == "none" else self._learned[_learned_key(scale)]

    def label(self, scale: Scale) -> str:
        """A factor for a drawing, which has no legend."""
        return self.scale(scale) + ("" if scale.learned == "none" else ", learned")

    def times(self, scale: Scale, term: str) -> str:
        """`term` multiplied by a scale: `2L·x`, `N(x)/√(l+1)`, `λ ⊙ Attn(x)`."""
        if scale.learned != "none":
            return f"{self.scale(scale)}{' ⊙ ' if scale.learned == 'channel' else '·'}{term}"
        over, under = _fraction(scale)
        factors = [f"({factor})" if factor.startswith("-") else factor for factor in over]
        return "·".join([*factors, term]) + under

    def legend(self) -> list[str]:
        """What the symbols mean, one line for those of the same meaning."""
        meanings: dict[str, list[str]] = {}
        for (prefix, norm), symbol in self._norms.items():
            meanings.setdefault(_meaning(prefix, norm), []).append(symbol)
        for (_, scale), symbol in self._learned.items():
            kind = {"scalar": "number", "channel": "vector"}[scale.learned]
            start = f"learned {kind}, starts at {scale_text(scale)}"
            meanings.setdefault(start, []).append(symbol)
        depth_dependent = {
            scale_text(s): s for s in self._constants if s.layer_power or s.depth_power
        }
        return [
            *(f"{', '.join(symbols)}: {text}" for text, symbols in meanings.items()),
            *(f"{text} = {self._values(scale)}" for text, scale in depth_dependent.items()),
        ]

    def _values(self, scale: Scale) -> str:
        depth = self._n_layers
        unit = f" × {scale_text(Scale(width_power=scale.width_power))}" * bool(scale.width_power)
        if not scale.layer_power:
            return f"{scale.at(0, depth, 1):.4g}{unit} for L = {count(depth, 'block')}"
        ends = [f"{scale.at(layer, depth, 1):.4g}{unit}" for layer in (0, depth - 1)]
        return f"{' to '.join(ends)} for l = 0 to {depth - 1}"


def _norm_key(norm: Norm, site: str) -> tuple[str, Norm]:
    subscript = f"_{_SUBSCRIPT[site]}" if site in _SUBSCRIPT else ""
    return "G" * (norm.gate > 0) + _LETTER[norm.kind] + subscript, relevant(norm, site)


def _learned_key(scale: Scale) -> tuple[str, Scale]:
    return "λ" if scale.learned == "channel" else "α", scale


def _is_plain(norm: Norm) -> bool:
    return norm == Norm(kind=norm.kind)


def _numbered(
    keys: Iterable[tuple[str, _Key]], is_plain: Callable[[_Key], bool] = lambda key: False
) -> dict[tuple[str, _Key], str]:
    """A name for each distinct key: its prefix, numbered where neither alone nor plain."""
    distinct = list(dict.fromkeys(keys))
    names = {}
    for prefix in dict.fromkeys(prefix for prefix, _ in distinct):
        sharing = [thing for other, thing in distinct if other == prefix]
        number = 0
        for thing in sharing:
            bare = len(sharing) == 1 or is_plain(thing)
            number += not bare
            names[prefix, thing] = prefix if bare else prefix + str(number).translate(_DIGITS)
    return names


def _meaning(prefix: str, norm: Norm) -> str:
    is_inner = prefix.endswith(("_q", "_k", "_v", "_c"))
    per_head = " per head" if is_inner and norm.axis == "head" else ""
    gated = ["y·σ(W_up silu(W_down y)) of its result y"] * (norm.gate > 0)
    return ", ".join([_KIND[norm.kind] + per_head, *norm_notes(norm, "q_norm"), *gated])
