"""Which placements are the same function: one canonical form for all spellings of a model.

The identities: a normed skip is a post-norm on the sublayer before it (or, at the entry of the
model, an embedding norm), and the final norm is a post-norm on the last sublayer. They regroup a
computation graph and hold to the last bit. `relaxations` hold as function classes: the same set of
functions, reached from other initial weights, or up to eps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from hybridnorm.placements.properties import relevant
from hybridnorm.placements.registry import strategies
from hybridnorm.placements.spec import (
    ONE,
    AttentionSpec,
    Norm,
    Placement,
    Scale,
    Sublayer,
    Topology,
    norms_of,
)

_DEPTHS = (1, 2, 3, 8, 12, 25)
"""Two placements are called equal when they are at all of these numbers of blocks."""
_WIDTH = 96  # any d_model: a power of the width is compared by its value there


@dataclass(frozen=True)
class Chain:
    """A model as what it computes: its entry, its blocks, their sublayers, attention first."""

    embed_scale: Scale
    embed_norm: Norm | None
    topology: Topology
    leak: bool
    shared_norms: tuple[Norm | None, ...]
    sublayers: tuple[Sublayer, ...]


Relaxation = Callable[[Sublayer], Sublayer]


def canonical_form(placement: Placement, n_layers: int) -> Chain:
    """The canonical form of a model of `n_layers`; equal forms are equal computation graphs.

    Scales and initial gains are numbers in it, as two power laws may agree.

    Raises:
        HybridNormError: overrides that contradict each other.
    """
    sublayers: list[Sublayer] = []
    parallel = placement.topology == "parallel"
    for layer in range(n_layers):
        block = placement.block(layer, n_layers)
        sublayers += [_number(s, layer, n_layers) for s in (block.attention, block.feed_forward)]
    embed_norm = _number_norm(placement.embed_norm, "embed_norm", 0, n_layers)
    for index in range(len(sublayers)):
        embed_norm = _move_norm(sublayers, index, embed_norm, parallel)
    if final := _number_norm(placement.final(n_layers), "final_norm", n_layers - 1, n_layers):
        sublayers[-1] = replace(sublayers[-1], post_norm=final)
    embed_scale = _number_scale(placement.embed_scale, 0, n_layers)
    shared_norms = tuple(
        _number_norm(placement.shared_norm, "shared_norm", layer, n_layers)
        for layer in range(n_layers)
    )
    topology, leak = placement.topology, placement.leak
    return Chain(embed_scale, embed_norm, topology, leak, shared_norms, tuple(sublayers))


def equivalents(placement: Placement) -> list[str]:
    """The built-in placements that compute the same function as `placement`, itself left out."""
    return [
        name
        for name, other in strategies().items()
        if name != placement.name and _same(placement, other, ())
    ]


def same_function_class(placement: Placement) -> dict[str, str]:
    """The built-in placements of the same function class as `placement`, each with the reason."""
    everything = tuple(_REASONS)
    return {
        name: "; ".join(_needed(placement, other))
        for name, other in strategies().items()
        if name != placement.name
        and _same(placement, other, everything)
        and not _same(placement, other, ())
    }


def _needed(one: Placement, other: Placement) -> list[str]:
    """The reasons without which the two would differ."""
    return [
        reason
        for relaxation, reason in _REASONS.items()
        if not _same(one, other, tuple(r for r in _REASONS if r is not relaxation))
    ]


def _same(one: Placement, other: Placement, relaxations: tuple[Relaxation, ...]) -> bool:
    return all(
        _relaxed(one, depth, relaxations) == _relaxed(other, depth, relaxations)
        for depth in _DEPTHS
    )


@cache
def _relaxed(placement: Placement, n_layers: int, relaxations: tuple[Relaxation, ...]) -> Chain:
    chain = canonical_form(placement, n_layers)
    sublayers = chain.sublayers
    for relaxation in relaxations:
        sublayers = tuple(map(relaxation, sublayers))
    return replace(chain, sublayers=sublayers)


def _move_norm(
    sublayers: list[Sublayer], index: int, embed_norm: Norm | None, parallel: bool
) -> Norm | None:
    """Spell a normed skip as a norm after the sublayer before; return the embedding norm.

    Not where that place is taken, and not out of a block whose feed-forward network reads the
    block's input: that is the stream before this norm.
    """
    spec = sublayers[index]
    is_attention = index % 2 == 0
    reads_entry = is_attention and (parallel or "block_input" in sublayers[index + 1].skip)
    if spec.skip != "normed" or reads_entry:
        return embed_norm
    before = sublayers[index - 1].post_norm if index else embed_norm
    if before is not None:
        return embed_norm
    sublayers[index] = replace(spec, input_norm=None, skip="raw")
    if index == 0:
        return spec.input_norm
    sublayers[index - 1] = replace(sublayers[index - 1], post_norm=spec.input_norm)
    return embed_norm


def _number(spec: Sublayer, layer: int, n_layers: int) -> Sublayer:
    """The sublayer with numbers for power laws, and without settings that mean nothing."""
    values: dict[str, object] = {
        name: _number_norm(norm, name, layer, n_layers) for name, norm in norms_of(spec).items()
    }
    for name, scale in spec.scales.items():
        values[name] = _number_scale(scale, layer, n_layers)
    if isinstance(spec, AttentionSpec) and spec.skip == "block_input":
        values["skip"] = "raw"  # attention is first in its block
    return replace(spec, **values)  # type: ignore[arg-type]


def _number_norm(norm: Norm | None, site: str, layer: int, n_layers: int) -> Norm | None:
    if norm is None:
        return None
    return replace(relevant(norm, site), gain_init=_number_scale(norm.gain_init, layer, n_layers))


def _number_scale(scale: Scale, layer: int, n_layers: int) -> Scale:
    value = float(f"{scale.at(layer, n_layers, _WIDTH):.12g}")
    return Scale(value=value, learned=scale.learned)


def _without_redundant_input(spec: Sublayer) -> Sublayer:
    """Drop what q-, k- and v-norm undo: a positive rescaling of each token."""
    if not isinstance(spec, AttentionSpec) or spec.skip == "normed":
        return spec
    inner = (spec.q_norm, spec.k_norm, spec.v_norm)
    if not all(norm and _ignores_scale(norm) for norm in inner):
        return spec
    is_rescaling = spec.input_norm is not None and spec.input_norm.kind in ("rms", "l2")
    positive = spec.input_scale.learned == "none" and spec.input_scale.value > 0
    return replace(
        spec,
        input_norm=None if is_rescaling else spec.input_norm,
        input_scale=ONE if positive else spec.input_scale,
    )


def _with_one_scale(spec: Sublayer) -> Sublayer:
    """Divide the sum before a norm by its skip scale."""
    scales = (spec.skip_scale, spec.branch_scale)
    is_constant = all(scale.learned == "none" for scale in scales)
    if not (spec.post_norm and _ignores_scale(spec.post_norm) and is_constant):
        return spec
    if spec.skip_scale.value <= 0:
        return spec
    ratio = Scale(value=float(f"{spec.branch_scale.value / spec.skip_scale.value:.9g}"))
    return replace(spec, skip_scale=ONE, branch_scale=ratio)


def _with_plain_gains(spec: Sublayer) -> Sublayer:
    """Forget where gains start and how they are stored."""
    norms = {
        name: replace(norm, gain_init=ONE, zero_centered=False)
        for name, norm in norms_of(spec).items()
    }
    return replace(spec, **norms)  # type: ignore[arg-type]


def _ignores_scale(norm: Norm) -> bool:
    return norm.kind in ("rms", "layer", "l2")


_REASONS: dict[Relaxation, str] = {
    _without_redundant_input: (
        "q-, k- and v-norm undo the scale of what attention reads, so a norm before them only "
        "adds a gain that W_q, W_k, W_v can absorb (equal up to eps)"
    ),
    _with_one_scale: "a norm after the sum sees only the ratio of its two scales (up to eps)",
    _with_plain_gains: "only the start of the gains, or how they are stored, differs",
}
