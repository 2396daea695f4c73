"""What can be said of a placement from its data alone."""

from collections.abc import Iterator
from dataclasses import replace

from hybridnorm.placements.spec import HEAD_NORMS, Norm, Placement, Sublayer


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
