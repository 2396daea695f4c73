"""What can be said of a placement from its data alone."""

from collections.abc import Iterator
from dataclasses import fields, replace

from hybridnorm.placements.spec import HEAD_NORMS, Norm, Placement, Sublayer, norms_of


def stream_norms(placement: Placement, n_layers: int) -> int:
    """How many norms of the blocks the stream passes: post-norms, and norms the skip carries."""
    return sum(
        (spec.post_norm is not None) + (spec.skip == "normed")
        for spec in _sublayers(placement, n_layers)
    )


def _sublayers(placement: Placement, n_layers: int) -> Iterator[Sublayer]:
    for layer in range(n_layers):
        block = placement.block(layer, n_layers)
        yield from (block.attention, block.feed_forward)


def relevant(norm: Norm, site: str) -> Norm:
    """The norm without the settings that mean nothing for its kind, or in the field `site`."""
    is_pointwise = norm.kind in ("dyt", "derf")
    return replace(
        norm,
        axis=norm.axis if site in HEAD_NORMS else "head",
        eps=None if is_pointwise else norm.eps,
        alpha_init=norm.alpha_init if is_pointwise else 0.5,
    )


def without_effect(placement: Placement, n_layers: int) -> list[str]:
    """A line for each setting that means nothing in a model of `n_layers` blocks."""
    found = [
        f"{where}.{field.name}: has no effect on {norm.kind} there"
        for where, site, norm in _written_norms(placement)
        for field in fields(norm)
        if getattr(norm, field.name) != getattr(relevant(norm, site), field.name)
    ]
    for i, override in enumerate(placement.overrides):
        if missing := override.missing(n_layers):
            found.append(f"overrides[{i}].layers: {missing}")
        if not override.attention and not override.feed_forward:
            found.append(f"overrides[{i}]: replaces nothing; name fields of a sublayer")
    if placement.final_norm not in (None, Norm()) and placement.final(n_layers) is None:
        found.append("final_norm: has no effect where the last block ends in a post-norm")
    return found


def _written_norms(placement: Placement) -> Iterator[tuple[str, str, Norm]]:
    """Every norm that a placement names: where, in which field, the norm."""
    tables: dict[str, dict[str, Norm]] = {
        "": norms_of(placement),
        "attention.": norms_of(placement.attention),
        "feed_forward.": norms_of(placement.feed_forward),
    }
    for i, override in enumerate(placement.overrides):
        for part in ("attention", "feed_forward"):
            patch = dict(getattr(override, part))
            norms = {site: norm for site, norm in patch.items() if isinstance(norm, Norm)}
            tables[f"overrides[{i}].{part}."] = norms
    for where, norms in tables.items():
        for site, norm in norms.items():
            yield where + site, site, norm
