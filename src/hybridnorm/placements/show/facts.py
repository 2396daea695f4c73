"""What can be said of a placement without a model: its norms, its residual, its equals."""

from hybridnorm.placements.equivalence import equivalents, same_function_class
from hybridnorm.placements.properties import stream_norms
from hybridnorm.placements.show.equations import residual_term
from hybridnorm.placements.show.symbols import Symbols, norm_notes
from hybridnorm.placements.spec import BlockSpec, Norm, Placement, norms_of
from hybridnorm.text import count

_CARRIES = {
    "raw": "raw",
    "normed": "normed",
    "block_input": "block input",
    "raw+block_input": "raw and block input",
}


def facts(placement: Placement, n_layers: int = 12) -> dict[str, str]:
    """Facts by label, for a model of `n_layers` blocks; empty ones are left out.

    Raises:
        HybridNormError: no layers, or overrides that contradict each other.
    """
    symbols = Symbols(placement, n_layers)
    found = {}
    for group in symbols.groups:
        found[f"norms in {group.title}"] = norms_in(group.spec)
        found[f"residual in {group.title}"] = residual(group.spec, symbols)
    found |= {
        "norms on the stream": _stream_norms(placement, n_layers),
        "source": placement.source,
        "published init": placement.init,
        "also called": ", ".join(placement.aliases),
        "note": placement.note,
        "equivalent to": ", ".join(equivalents(placement)) or "no other built-in",
    }
    for name, reason in same_function_class(placement).items():
        found[f"same function class as {name}"] = reason
    return {label: text for label, text in found.items() if text}


def norms_in(block: BlockSpec) -> str:
    """How many norms a block has, and which: `4 (attention q, k, v; feed-forward input)`."""
    parts = {"both": block, "attention": block.attention, "feed-forward": block.feed_forward}
    texts = [
        f"{part} {', '.join(_norm_name(field, norm) for field, norm in norms_of(spec).items())}"
        for part, spec in parts.items()
        if norms_of(spec)
    ]
    total = sum(len(norms_of(spec)) for spec in parts.values())
    return f"{total} ({'; '.join(texts)})" if texts else "none"


def residual(block: BlockSpec, symbols: Symbols) -> str:
    """What the residuals carry: `attention x (raw); feed-forward N(y) (normed)`."""
    parts = {"attention": block.attention, "feed-forward": block.feed_forward}
    return "; ".join(
        f"{part} {residual_term(block, spec, symbols)} ({_CARRIES[spec.skip]})"
        for part, spec in parts.items()
    )


def _stream_norms(placement: Placement, n_layers: int) -> str:
    ends = {"embedding norm": placement.embed_norm, "final norm": placement.final(n_layers)}
    named = [f"the {name}" for name, norm in ends.items() if norm]
    inside = f"{stream_norms(placement, n_layers)} in {count(n_layers, 'block')}"
    return f"{inside}, and {' and '.join(named)}" if named else inside


def _norm_name(field: str, norm: Norm) -> str:
    name = field.removesuffix("_norm")
    notes = ", ".join(norm_notes(norm, field))
    return f"{name} ({notes})" if notes else name
