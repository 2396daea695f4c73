"""What lies on the stream of a drawing: norms, branches, factors and sums, bottom to top."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hybridnorm.placements.show.canvas import NOTE_SIZE, Canvas, text_width
from hybridnorm.placements.show.symbols import Symbols, norm_notes
from hybridnorm.placements.spec import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    Norm,
    Placement,
    Scale,
    Sublayer,
)

_NORM = {"rms": "Norm", "layer": "LayerNorm", "l2": "L2 norm", "dyt": "DyT", "derf": "Derf"}
_WIDTH = 104.0  # of a box on the stream
_SMALL = 46.0  # of a q, k or v norm
_HEIGHT, _NOTE = 20.0, 9.0  # of a box, and of each note in it
_GAP, _TAP_GAP, _MARGIN, _INSIDE = 17.0, 10.0, 11.0, 12.0


@dataclass
class Part:
    """Something on the stream; a tap, where a skip leaves it, has no height."""

    height: float = 0.0
    width: float = 0.0
    paint: Callable[[Canvas, float, float], None] = lambda canvas, x, bottom: None
    role: str = ""
    """What skips look for: raw, normed, entry, read, sum."""
    has_head: bool = True
    """Whether the line that enters it ends in an arrow head."""
    bottom: float = 0.0

    @property
    def middle(self) -> float:
        return self.bottom + self.height / 2

    @property
    def top(self) -> float:
        return self.bottom + self.height


_SPACE = Part(role="space")


def sublayer(block: BlockSpec, spec: Sublayer, symbols: Symbols) -> list[Part]:
    """The parts of a sublayer in the order of the stream."""
    # Attention comes first in its block, so the block's input is the stream it reads.
    is_first = isinstance(spec, AttentionSpec)
    is_raw = spec.skip != "normed" if is_first else "raw" in spec.skip
    is_parallel = block.topology == "parallel"
    has_own_tap = block.shared_norm is not None or not is_raw
    parts = [
        Part(role="raw") if is_raw else None,
        _norm(block.shared_norm) if is_first else None,
        Part(role="entry") if is_first and reads_entry(block) and has_own_tap else None,
        Part(role="read") if is_parallel and not is_first else None,
        _norm(spec.input_norm),
        Part(role="normed") if spec.skip == "normed" else None,
        _factor(spec.input_scale, symbols),
        _branch(spec),
        _norm(spec.output_norm),
        _factor(spec.branch_scale, symbols),
        Part(14, 14, lambda canvas, x, bottom: canvas.node(x, bottom + 7, "+"), "sum"),
        _norm(spec.post_norm),
        _box(["Leak"], "node") if block.leak else None,
    ]
    return [part for part in parts if part]


def reads_entry(block: BlockSpec) -> bool:
    """Whether the feed-forward half reads the block's input: in its sum, or in its branch."""
    return block.topology == "parallel" or "block_input" in block.feed_forward.skip


def entry(placement: Placement, symbols: Symbols) -> list[Part]:
    """The parts below the first block."""
    parts = [
        _box(["Embedding"], "end"),
        _factor(placement.embed_scale, symbols),
        _norm(placement.embed_norm),
        _SPACE,
    ]
    return [part for part in parts if part]


def head(placement: Placement, n_layers: int) -> list[Part]:
    """The parts above the last block."""
    parts = [_SPACE, _norm(placement.final(n_layers)), _box(["Head"], "end")]
    return [part for part in parts if part]


def natural_height(parts: Sequence[Part]) -> float:
    """The least height of a stack of parts, with a margin at both ends."""
    return 2 * _MARGIN + sum(part.height for part in parts) + sum(_gaps(parts))


def spread(parts: Sequence[Part], bottom: float, height: float) -> None:
    """Place the parts between `bottom` and `bottom + height`, the gaps stretched alike."""
    gaps = [_MARGIN, *_gaps(parts), _MARGIN]
    stretch = 1 + (height - natural_height(parts)) / sum(gaps)
    for part, gap in zip(parts, gaps, strict=False):
        part.bottom = bottom + gap * stretch
        bottom = part.top


def _gaps(parts: Sequence[Part]) -> list[float]:
    return [_GAP if low.height and high.height else _TAP_GAP for low, high in pairwise(parts)]


def _box(lines: Sequence[str], kind: str, width: float = _WIDTH) -> Part:
    height = _HEIGHT + _NOTE * (len(lines) - 1)

    def paint(canvas: Canvas, x: float, bottom: float) -> None:
        canvas.labelled_box(x, bottom, width, height, kind, lines)

    return Part(height, width, paint)


def _norm(norm: Norm | None, site: str = "") -> Part | None:
    return _box(_norm_lines(norm, site), "norm") if norm else None


def _norm_lines(norm: Norm, site: str) -> list[str]:
    return [_NORM[norm.kind], *norm_notes(norm, site)]


def _factor(scale: Scale, symbols: Symbols) -> Part | None:
    if scale.is_one:
        return None
    label = symbols.label(scale)

    def paint(canvas: Canvas, x: float, bottom: float) -> None:
        canvas.node(x, bottom + 7, "×")
        canvas.text(x + 11, bottom + 7, label, 8, align="left")

    return Part(14, 2 * (text_width(label, 8) + 11), paint)


def _branch(spec: Sublayer) -> Part:
    if isinstance(spec, AttentionSpec):
        return _attention(spec)
    assert isinstance(spec, FeedForwardSpec)
    return _feed_forward(spec)


def _attention(spec: AttentionSpec) -> Part:
    inner = {"q": spec.q_norm, "k": spec.k_norm, "v": spec.v_norm}
    context = _norm(spec.context_norm, "context_norm")
    gated = spec.output_gate != "none"
    gate = _box(["× gate", f"for each {spec.output_gate}"], "attention") if gated else None
    if not any(inner.values()):
        core = _box(["Attention"], "attention")
        above = context or gate
        return _framed([core, context, gate], "attention-frame") if above else core
    rows = {c: _norm_lines(norm, f"{c}_norm") for c, norm in inner.items() if norm}
    height = _HEIGHT + _NOTE * (max(map(len, rows.values())) - 1)
    notes = [note for lines in rows.values() for note in lines[1:]]
    width = max([_SMALL, *(text_width(note, NOTE_SIZE) + 8 for note in notes)])
    pitch, fan, letters = width + 8, 19.0, 19.0

    def projections(canvas: Canvas, x: float, bottom: float) -> None:
        low, high = bottom + fan, bottom + fan + height
        for column, letter in enumerate(inner):
            end = x + (column - 1) * pitch
            turn = [(x, bottom)] if end == x else [(x, bottom), (x, bottom + 8), (end, bottom + 8)]
            if letter in rows:
                canvas.arrow([*turn, (end, low)], radius=5)
                canvas.labelled_box(end, low, width, height, "norm", rows[letter])
                turn = [(end, high)]
            canvas.arrow([*turn, (end, high + letters)], radius=5)
            canvas.text(end + 5, high + letters / 2, letter, 8, align="left")

    core = _box(["Attention"], "attention", 2 * pitch + width)
    below = Part(fan + height + letters, core.width, projections)
    return _framed([core, context, gate], "attention-frame", below)


def _feed_forward(spec: FeedForwardSpec) -> Part:
    mid = _norm(spec.mid_norm)
    if mid is None:
        return _box(["FFN"], "ffn")
    return _framed([_box(["up, activation"], "ffn"), mid, _box(["down"], "ffn")], "ffn-frame")


def _lead(canvas: Canvas, x: float, bottom: float) -> None:
    canvas.arrow([(x, bottom), (x, bottom + _INSIDE)])


def _framed(parts: Sequence[Part | None], kind: str, below: Part | None = None) -> Part:
    """Parts stacked in a frame, joined by arrows; `below` leads from the edge to the first."""
    stack = [part for part in parts if part]
    below = below or Part(_INSIDE, 0.0, _lead)
    height = below.height + sum(part.height + _INSIDE for part in stack)
    width = max(part.width for part in stack) + 16

    def paint(canvas: Canvas, x: float, bottom: float) -> None:
        canvas.box(x, bottom, width, height, kind)
        below.paint(canvas, x, bottom)
        y = bottom + below.height
        for part in stack:
            part.paint(canvas, x, y)
            y += part.height + _INSIDE
            canvas.arrow([(x, y - _INSIDE), (x, y)], head=part is not stack[-1])

    return Part(height, width, paint, has_head=False)
