"""From found sublayers to our vocabulary, and to the built-in placement that comes nearest."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from hybridnorm.diagnose.classifier.sublayers import FoundBlock, FoundSublayer
from hybridnorm.placements import (
    HEAD_NORMS,
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    Norm,
    Override,
    Placement,
    Scale,
    patch,
    strategies,
)


@dataclass(frozen=True)
class Placed:
    """A block's spec, and which block of how many it is."""

    layer: int
    n_layers: int
    spec: BlockSpec


@dataclass(frozen=True)
class Nearest:
    """The built-in placement that comes nearest, and where it differs."""

    name: str
    placement: Placement
    """What was found, spelled as the built-in one is."""
    differences: tuple[str, ...]


def block_spec(block: FoundBlock) -> BlockSpec:
    """Its attention and its feed-forward network, each the first of its role."""

    def first(role: str) -> FoundSublayer | None:
        return next((s for s in block.sublayers if s.role == role), None)

    attention, network = first("attention"), first("feed-forward")
    inner: dict[str, Any] = {}
    if attention:
        inner = {f"{place}_norm": attention.spec(place) for place in ("q", "k", "v", "context")}
    mid: dict[str, Any] = {"mid_norm": network.spec("mid")} if network else {}
    spec = BlockSpec(
        attention=AttentionSpec(**_outer(attention), **inner),
        feed_forward=FeedForwardSpec(**_outer(network), **mid),
    )
    if not block.parallel:
        return spec
    shared = _shared_norm(attention, network)
    if shared:
        spec = replace(
            spec,
            attention=replace(spec.attention, input_norm=None),
            feed_forward=replace(spec.feed_forward, input_norm=None),
        )
    return replace(spec, topology="parallel", shared_norm=shared)


def _shared_norm(*sublayers: FoundSublayer | None) -> Norm | None:
    """The input norm of both, where it is one and the same."""
    found = [s.norms.get("input") if s else None for s in sublayers]
    first = found[0]
    return first.spec() if first and all(n and n.where == first.where for n in found) else None


def _outer(sublayer: FoundSublayer | None) -> dict[str, Any]:
    if sublayer is None:
        return {}
    norms = {f"{place}_norm": sublayer.spec(place) for place in ("input", "output", "post")}
    scales = {f"{place}_scale": scale for place, scale in sublayer.scales.items()}
    return {"skip": sublayer.skip, **norms, **scales}


def nearest(blocks: list[Placed], d_model: int, **ends: Norm | None) -> Nearest:
    """The nearest built-in placement; in the table's order where several are equally near."""
    best: tuple[float, Nearest] | None = None
    for spelled in _spellings(blocks):
        found = _placement(spelled, **ends)
        for name, known in strategies().items():
            differences = [
                difference
                for block in spelled
                for difference in _differences(block, known, d_model)
            ]
            cost = sum(weight for weight, _ in differences)
            if best is None or cost < best[0]:
                texts = tuple(dict.fromkeys(text for _, text in differences))
                best = cost, Nearest(name, found, texts)
    assert best is not None
    return best[1]


def _spellings(blocks: list[Placed]) -> Iterator[list[Placed]]:
    """A norm after attention's sum is also one that the next skip carries."""
    yield blocks
    moved = [replace(block, spec=_normed_skip(block.spec)) for block in blocks]
    if moved != blocks:
        yield moved


def _normed_skip(spec: BlockSpec) -> BlockSpec:
    post = spec.attention.post_norm
    if (
        post is None
        or spec.topology == "parallel"
        or spec.feed_forward.input_norm
        or spec.feed_forward.skip != "raw"
    ):
        return spec
    return replace(
        spec,
        attention=replace(spec.attention, post_norm=None),
        feed_forward=replace(spec.feed_forward, input_norm=post, skip="normed"),
    )


def _placement(blocks: list[Placed], **ends: Norm | None) -> Placement:
    """The middle block, and overrides where the first or the last one differs."""
    base = blocks[len(blocks) // 2].spec
    overrides = []
    for edge, block in (("first", blocks[0]), ("last", blocks[-1])):
        patches = {
            part: patch(getattr(base, part), getattr(block.spec, part))
            for part in ("attention", "feed_forward")
        }
        if any(patches.values()):
            overrides.append(Override(layers=edge, **patches))
    return Placement(
        name="found",
        title="Found",
        attention=base.attention,
        feed_forward=base.feed_forward,
        overrides=tuple(overrides),
        topology=base.topology,
        shared_norm=base.shared_norm,
        **ends,  # type: ignore[arg-type]
    )


def _differences(block: Placed, known: Placement, d_model: int) -> Iterator[tuple[float, str]]:
    known_block = known.block(block.layer, block.n_layers)
    if block.spec.topology != known.topology:
        yield 2.0, f"topology: {block.spec.topology} here, {known.topology} there"
    if known.leak:
        yield 1.0, "leak: none here, one there"
    yield from _norms_or_none("shared_norm", block.spec.shared_norm, known.shared_norm)
    for part in ("attention", "feed_forward"):
        here, there = getattr(block.spec, part), getattr(known_block, part)
        for f in fields(here):
            one, other = getattr(here, f.name), getattr(there, f.name)
            where = f"{part}.{f.name}"
            if isinstance(one, Scale):
                yield from _scales(where, one, other, block, d_model)
            elif f.name.endswith("_norm"):
                yield from _norms_or_none(where, one, other)
            elif one != other:
                yield 1.0, f"{where}: {one!r} here, {other!r} there"


def _norms_or_none(where: str, one: Norm | None, other: Norm | None) -> Iterator[tuple[float, str]]:
    if one and other:
        yield from _norms(where, one, other)
    elif one or other:
        a, b = ("a norm" if norm else "none" for norm in (one, other))
        yield 1.0, f"{where}: {a} here, {b} there"


def _norms(where: str, one: Norm, other: Norm) -> Iterator[tuple[float, str]]:
    kinds = {one.kind, other.kind}
    if len(kinds) > 1 and kinds != {"rms", "layer"}:
        yield 1.0, f"{where}: {one.kind} here, {other.kind} there"
    if where.rpartition(".")[2] in HEAD_NORMS and one.axis != other.axis:
        yield 0.5, f"{where}: {one.axis} here, {other.axis} there"
    if one.affine != other.affine:
        yield 0.25, f"{where}: gain {one.affine} here, {other.affine} there"
    if one.gate != other.gate:
        yield 1.0, f"{where}: gate of rank {one.gate} here, {other.gate} there"
    if one.zero_centered != other.zero_centered:
        yield 0.25, f"{where}: {'1 + γ' if one.zero_centered else 'a plain gain'} here"


def _scales(
    where: str, one: Scale, other: Scale, block: Placed, d_model: int
) -> Iterator[tuple[float, str]]:
    wanted = other.at(block.layer, block.n_layers, d_model)
    same = math.isclose(one.value, wanted, rel_tol=1e-4) and one.learned == other.learned
    if not same:
        near = one.is_one == other.is_one and one.learned == other.learned
        yield (
            0.25 if near else 0.5,
            f"{where}: {one.value:g} here, {wanted:.4g} there",
        )
