"""The equations of a placement, generated from its data."""

from typing import NamedTuple

from hybridnorm.placements.show.symbols import Symbols
from hybridnorm.placements.spec import AttentionSpec, BlockSpec, Norm, Placement, Sublayer

_LEAK = (
    "leak(u) = u - silu(g)·u, the second u without gradient; g learned in each block, 0 at first"
)


class Section(NamedTuple):
    """Equations under a title such as `blocks 2..12`."""

    title: str
    lines: list[str]


def equations(placement: Placement, n_layers: int = 12) -> list[Section]:
    """The equations of a model of `n_layers`, from the token to the logits, then the symbols.

    In a block, x is the stream that enters it and x' the one that leaves it.

    Raises:
        HybridNormError: no layers, or overrides that contradict each other.
    """
    symbols = Symbols(placement, n_layers)
    entry = symbols.times(placement.embed_scale, "E[token]")
    entry = _apply(symbols, placement.embed_norm, "embed_norm", entry)
    read = _apply(symbols, placement.final(n_layers), "final_norm", "x")
    return [
        Section("embedding", [f"x = {entry}"]),
        *(
            Section(
                group.title,
                [
                    *_shared(group.spec, symbols),
                    *_attention(group.spec, symbols),
                    *_feed_forward(group.spec, symbols),
                ],
            )
            for group in symbols.groups
        ),
        Section("head", [f"logits = {read} W_head"]),
        Section("where", [*symbols.legend(), *[_LEAK] * placement.leak]),
    ]


def block_lines(placement: Placement, n_layers: int = 12) -> list[str]:
    """The equations of the blocks alone, distinct ones under titles, and their symbols.

    Raises:
        HybridNormError: no layers, or overrides that contradict each other.
    """
    sections = [s for s in equations(placement, n_layers) if s.title not in ("embedding", "head")]
    if len(sections) == 2:
        return [line for section in sections for line in section.lines]
    return [line for s in sections for line in (f"{s.title}:", *(f"  {e}" for e in s.lines))]


def reads(block: BlockSpec, spec: Sublayer) -> str:
    """What a sublayer of the block reads: `x`, `y`, or `n` where both read the same, normed."""
    if block.topology == "parallel":
        return "n" if block.shared_norm else "x"
    return _stream(spec)


def carried(block: BlockSpec, spec: Sublayer, symbols: Symbols) -> str:
    """What the residual of a sublayer carries: `x`, `N(y)`, `y + x`."""
    stream = _stream(spec)
    return {
        "raw": stream,
        "normed": _normed(block, spec, symbols),
        "block_input": "x",
        "raw+block_input": f"{stream} + x",
    }[spec.skip]


def residual_term(block: BlockSpec, spec: Sublayer, symbols: Symbols) -> str:
    """What the residual carries, scaled: `(2L)^¼·x`."""
    term = carried(block, spec, symbols)
    if spec.skip == "raw+block_input" and not spec.skip_scale.is_one:
        term = f"({term})"
    return symbols.times(spec.skip_scale, term)


def _shared(block: BlockSpec, symbols: Symbols) -> list[str]:
    norm = block.shared_norm
    return [f"n = {_apply(symbols, norm, 'shared_norm', 'x')}"] if norm else []


def _attention(block: BlockSpec, symbols: Symbols) -> list[str]:
    """The projections where a norm sits on one of them, then the sublayer."""
    spec = block.attention
    read = _branch_input(block, spec, symbols)
    lines = []
    is_gated = spec.output_gate != "none"
    if is_gated or any((spec.q_norm, spec.k_norm, spec.v_norm, spec.context_norm)):
        norms = {"q": spec.q_norm, "k": spec.k_norm, "v": spec.v_norm}
        for letter, norm in norms.items():
            projection = f"{_factor(spec, read)} W_{letter}"
            lines.append(f"{letter} = {_apply(symbols, norm, f'{letter}_norm', projection)}")
        context = _apply(symbols, spec.context_norm, "context_norm", "c")
        if is_gated:
            each = {"head": "each head", "element": "each element"}[spec.output_gate]
            lines.append(f"g = σ({_factor(spec, read)} W_g), for {each}")
            context = f"(g ⊙ {context})"
        lines.append("c = softmax(RoPE(q) RoPE(k)ᵀ / √d_head) v")
        lines.append(f"Attn({read}) = {context} W_o")
    return [*lines, f"y = {_sum(block, spec, symbols, f'Attn({read})')}"]


def _feed_forward(block: BlockSpec, symbols: Symbols) -> list[str]:
    """The network where a norm sits inside it, then the sublayer."""
    spec = block.feed_forward
    read = _branch_input(block, spec, symbols)
    lines = []
    if spec.mid_norm:
        hidden = f"act({_factor(spec, read)} W_up)"
        lines.append(f"FFN({read}) = {_apply(symbols, spec.mid_norm, 'mid_norm', hidden)} W_down")
    return [*lines, f"x' = {_sum(block, spec, symbols, f'FFN({read})')}"]


def _sum(block: BlockSpec, spec: Sublayer, symbols: Symbols, branch: str) -> str:
    """The residual sum, with the norms after the branch and after the sum."""
    branch = _apply(symbols, spec.output_norm, "output_norm", branch)
    total = f"{residual_term(block, spec, symbols)} + {symbols.times(spec.branch_scale, branch)}"
    total = _apply(symbols, spec.post_norm, "post_norm", total)
    return f"leak({total})" if block.leak else total


def _stream(spec: Sublayer) -> str:
    return "x" if isinstance(spec, AttentionSpec) else "y"


def _normed(block: BlockSpec, spec: Sublayer, symbols: Symbols) -> str:
    return _apply(symbols, spec.input_norm, "input_norm", reads(block, spec))


def _apply(symbols: Symbols, norm: Norm | None, site: str, term: str) -> str:
    return f"{symbols.norm(norm, site)}({term})" if norm else term


def _branch_input(block: BlockSpec, spec: Sublayer, symbols: Symbols) -> str:
    return symbols.times(spec.input_scale, _normed(block, spec, symbols))


def _factor(spec: Sublayer, read: str) -> str:
    """A branch input as a factor of a product: a scaled one needs brackets."""
    return read if spec.input_scale.is_one else f"({read})"
