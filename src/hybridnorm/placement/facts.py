"""What can be said of a placement without a model: norms, residual, equivalents."""

from collections.abc import Iterator
from dataclasses import replace

from hybridnorm.placement.equations import block_title, distinct_blocks, norm_label
from hybridnorm.placement.registry import strategies
from hybridnorm.placement.spec import BlockSpec, Norm, Placement, norms_of

_CARRIES = {
    "raw": "the raw stream",
    "normed": "the normed stream",
    "block_input": "the block's input",
    "raw+block_input": "the raw stream and the block's input",
}


def facts(placement: Placement, n_layers: int) -> list[tuple[str, str]]:
    """Pairs of a label and what it says, for a model of `n_layers` blocks."""
    rows = []
    for layers, spec in distinct_blocks(placement, n_layers):
        rows.append((block_title(layers), _norms(spec)))
        carried = {_CARRIES[sub.skip] for sub in (spec.attention, spec.feed_forward)}
        rows.append(("residual carries", " / ".join(sorted(carried, reverse=True))))
    blocks = [canonical(placement, layer, n_layers) for layer in range(n_layers)]
    on_stream = sum(
        bool(sub.post_norm) + (sub.skip == "normed")
        for block in blocks
        for sub in (block.attention, block.feed_forward)
    )
    final = placement.final(n_layers)
    rows += [
        ("norms on the stream", f"{on_stream} in {n_layers} blocks, before the final norm"),
        ("final norm", norm_label(final) if final else "none: the last sublayer ends in one"),
        ("published init", placement.init),
        ("equivalent to", ", ".join(equivalents(placement, n_layers)) or "no other built-in"),
        ("also known as", ", ".join(placement.aliases)),
        ("source", placement.source),
        ("note", placement.note),
    ]
    return [(label, text) for label, text in rows if text]


def canonical(placement: Placement, layer: int, n_layers: int) -> BlockSpec:
    """A block in the spelling where a normed skip is a post-norm on the sublayer before it.

    Within one block `{ff: input_norm=N, skip=normed}` and `{attention: post_norm=N, ff: no norm}`
    are the same computation graph, unless the feed-forward network reads the block's input or the
    attention sublayer ends in a norm already.
    """
    spec = placement.block(layer, n_layers)
    attention, feed_forward = spec.attention, spec.feed_forward
    if feed_forward.skip == "normed" and attention.post_norm is None:
        attention = replace(attention, post_norm=feed_forward.input_norm)
        feed_forward = replace(feed_forward, skip="raw", input_norm=None)
    return BlockSpec(attention=attention, feed_forward=feed_forward)


def equivalents(placement: Placement, n_layers: int) -> list[str]:
    """Built-in placements that are the same function, `placement` itself left out."""
    mine = _function(placement, n_layers)
    return [
        name
        for name, other in strategies().items()
        if name != placement.name and _function(other, n_layers) == mine
    ]


def _function(placement: Placement, n_layers: int) -> tuple[object, ...]:
    blocks = [canonical(placement, layer, n_layers) for layer in range(n_layers)]
    return (
        placement.embed_scale,
        placement.embed_norm,
        placement.final(n_layers),
        *blocks,
    )


def _norms(spec: BlockSpec) -> str:
    found = list(_named_norms(spec))
    kinds = {norm_label(norm) for _, norm in found}
    where = ", ".join(name for name, _ in found)
    return f"{len(found)} norms: {where} ({'; '.join(sorted(kinds))})" if found else "no norm"


def _named_norms(spec: BlockSpec) -> Iterator[tuple[str, Norm]]:
    for part in ("attention", "feed_forward"):
        for name, norm in norms_of(getattr(spec, part)).items():
            yield f"{part.replace('_', '-')} {name.removesuffix('_norm').replace('_', ' ')}", norm
