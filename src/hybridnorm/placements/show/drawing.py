"""Drawings of a placement's distinct blocks, in the style of the paper's Figure 1.

Generated from the data alone. The stream runs upwards, norms and branches lie on it, skips go
around them from where they leave the stream to the sum they enter.
"""

import hashlib
import html
import re
from pathlib import Path

from matplotlib.figure import Figure

from hybridnorm.errors import HybridNormError
from hybridnorm.placements.show import parts
from hybridnorm.placements.show.canvas import GREY, Canvas, text_width
from hybridnorm.placements.show.equations import carried, reads
from hybridnorm.placements.show.parts import Part
from hybridnorm.placements.show.symbols import Group, Symbols
from hybridnorm.placements.spec import Placement, Scale, Sublayer
from hybridnorm.text import svg

SKIP_COLOR = {"raw": "#5b6b82", "normed": "#b9821b", "block_input": "#8461a8"}
_CLEAR, _PAD, _BETWEEN = 16.0, 14.0, 26.0  # box to skip, frame's inside, between frames
_TITLE, _HEADING, _STUB = 34.0, 16.0, 18.0  # heights
_HEADING_SIZE = 8.5


def draw(placement: Placement, n_layers: int = 12) -> Figure:
    """The distinct blocks of a model of `n_layers` side by side.

    The embedding is below the block that comes first, the head above the one that comes last.

    Raises:
        HybridNormError: no layers, or overrides that contradict each other.
    """
    symbols = Symbols(placement, n_layers)
    entry, head = parts.entry(placement, symbols), parts.head(placement, n_layers)
    columns = [
        _Column(
            group,
            symbols,
            entry if 0 in group.layers else [],
            head if n_layers - 1 in group.layers else [],
        )
        for group in symbols.groups
    ]
    below, above = parts.natural_height(entry), parts.natural_height(head)
    heights = [max(parts.natural_height(c.halves[i]) for c in columns) for i in (0, 1)]
    title = placement.title or placement.name
    inner = sum(c.width for c in columns) + _BETWEEN * (len(columns) - 1)
    width = max(inner, text_width(title, 13, "bold")) + 2 * _BETWEEN
    canvas = Canvas(width, below + sum(heights) + _HEADING + above + _TITLE)
    canvas.text(width / 2, canvas.height - _TITLE / 2, title, 13, weight="bold")
    left = (width - inner) / 2
    for column in columns:
        column.paint(canvas, left, below, heights)
        left += column.width + _BETWEEN
    return canvas.figure


def drawing_svg(placement: Placement, n_layers: int = 12) -> str:
    """The drawing as an `<svg>` element for an HTML page, the same for the same placement.

    Its ids begin with a digest of the placement, so that several drawings fit in one page.
    """
    prefix = hashlib.sha256(f"{placement}{n_layers}".encode()).hexdigest()[:8]
    drawn = svg(draw(placement, n_layers), placement.name)
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>d{prefix}-", drawn)
    drawn = drawn.replace("*{stroke", f"#d{prefix}-figure_1 *{{stroke")
    label = html.escape(f"Drawing of {placement.title or placement.name}")
    return drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def save_drawing(placement: Placement, folder: Path, n_layers: int = 12) -> tuple[Path, Path]:
    """Write NAME.svg and NAME.png into `folder` (made if missing) and return their paths.

    Raises:
        HybridNormError: the folder cannot be written.
    """
    stem = re.sub(r"[^\w.+-]+", "-", placement.name).strip("-.") or "placement"
    drawing, png = folder / f"{stem}.svg", folder / f"{stem}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawing.write_text(drawing_svg(placement, n_layers), encoding="utf-8")
        draw(placement, n_layers).savefig(png, dpi=200, metadata={"Software": None})
    except OSError as error:
        hint = "choose a folder you can write to"
        raise HybridNormError(f"out: cannot write {folder}: {error.strerror}; {hint}") from None
    return drawing, png


class _Column:
    """A distinct block: its parts, the skips around them, and the model's ends next to it."""

    def __init__(self, group: Group, symbols: Symbols, entry: list[Part], head: list[Part]) -> None:
        self.group, self.symbols, self.entry, self.head = group, symbols, entry, head
        self.specs: tuple[Sublayer, Sublayer] = (group.spec.attention, group.spec.feed_forward)
        self.halves = [parts.sublayer(group.spec, spec, symbols) for spec in self.specs]
        self.reads_entry = parts.reads_entry(group.spec)
        self.reach = max(part.width for half in self.halves for part in half) / 2 + _CLEAR
        right = max(self._label_width(s, carried(group.spec, s, symbols)) for s in self.specs)
        left = self._label_width(self.specs[1], "x") if self.reads_entry else -_CLEAR
        heading = text_width(group.title, _HEADING_SIZE, "bold") + 2 * _PAD
        self.left = max(self.reach + left + _PAD, heading)
        self.right = max([self.reach + right + _PAD, *(part.width / 2 for part in entry)])
        self.width = self.left + self.right

    def _label_width(self, spec: Sublayer, text: str) -> float:
        factor = "" if spec.skip_scale.is_one else self.symbols.label(spec.skip_scale)
        return max(text_width(text, 8) + 6, text_width(factor, 8) + 12)

    def paint(self, canvas: Canvas, left: float, bottom: float, heights: list[float]) -> None:
        x, top = left + self.left, bottom + sum(heights) + _HEADING
        canvas.box(left + self.width / 2, bottom, self.width, top - bottom, "block")
        canvas.text(left + 10, top - 12, self.group.title, _HEADING_SIZE, GREY, "left", "bold")
        parts.spread(self.entry, 0, bottom)
        parts.spread(self.halves[0], bottom, heights[0])
        parts.spread(self.halves[1], bottom + heights[0], heights[1])
        parts.spread(self.head, top, parts.natural_height(self.head))
        self._stream(canvas, x, bottom, top)
        for text, level in (("x", bottom - 10), ("y", bottom + heights[0]), ("x'", top + 9)):
            canvas.text(x - 6, level, text, 8, GREY, "right")
        for spec, half in zip(self.specs, self.halves, strict=True):
            self._skips(canvas, x, spec, half)

    def _stream(self, canvas: Canvas, x: float, bottom: float, top: float) -> None:
        """The parts, joined by the stream."""
        stack = [*self.entry, *self.halves[0], *self.halves[1], *self.head]
        y = stack[0].bottom if self.entry else bottom - _STUB
        for part in stack:
            if part.role == "read":  # here the stream is in the skip; the branch has another input
                canvas.arrow([(x, y), (x, self.halves[1][0].bottom)], head=False)
                y = part.bottom
            elif part.height and part.bottom > y:
                canvas.arrow([(x, y), (x, part.bottom)], head=part.has_head)
            if part.height:
                part.paint(canvas, x, part.bottom)
                y = part.top
        if not self.head:
            canvas.arrow([(x, y), (x, top + _STUB)])

    def _skips(self, canvas: Canvas, x: float, spec: Sublayer, half: list[Part]) -> None:
        """The lines that enter the sum: from this sublayer on the right, from the entry left."""
        places = {part.role: part.middle for part in half if part.role}
        total = places["sum"]
        if source := places.keys() & {"raw", "normed"}:
            role = source.pop()
            text = carried(self.group.spec, spec, self.symbols)
            text = text.removesuffix(" + x") if spec is self.specs[1] else text
            self._skip(canvas, x, (places[role], total), 1, SKIP_COLOR[role], spec.skip_scale, text)
        if self.reads_entry and spec is self.specs[1]:
            first = self.halves[0]
            start = next((p for p in first if p.role == "entry"), first[0]).middle
            color = SKIP_COLOR["block_input"]
            if "read" in places:
                text = reads(self.group.spec, spec)
                self._input(canvas, x, start, places["read"], color, text)
            else:
                self._skip(canvas, x, (start, total), -1, color, spec.skip_scale, "x")

    def _input(
        self, canvas: Canvas, x: float, start: float, end: float, color: str, text: str
    ) -> None:
        """The line to the branch that does not read the stream below it."""
        lane = x - self.reach
        canvas.dot(x, start, color)
        canvas.arrow([(x, start), (lane, start), (lane, end), (x, end)], color, head=False)
        canvas.text(lane - 5, (start + end) / 2, text, 8, color, "right")

    def _skip(
        self,
        canvas: Canvas,
        x: float,
        span: tuple[float, float],
        side: int,
        color: str,
        scale: Scale,
        text: str,
    ) -> None:
        start, end = span
        lane, middle = x + side * self.reach, (start + end) / 2
        align = "left" if side > 0 else "right"
        canvas.dot(x, start, color)
        canvas.arrow([(x, start), (lane, start), (lane, end), (x + side * 7, end)], color)
        if not scale.is_one:
            canvas.node(lane, middle, "×")
            canvas.text(lane + side * 11, middle, self.symbols.label(scale), 8, align=align)
            middle = start + 0.22 * (end - start)
        canvas.text(lane + side * 5, middle, text, 8, color, align)
