"""Boxes, arrows and nodes on a matplotlib figure, in points from the bottom left."""

from collections.abc import Sequence
from functools import cache

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.textpath import TextPath

Point = tuple[float, float]

INK = "#3b4252"
GREY = "#7b8494"
FONT = "DejaVu Sans"  # comes with matplotlib, so a drawing is the same everywhere
FILL = {
    "norm": ("#fdebc3", "#d3a447"),
    "attention": ("#d5e5f6", "#6d97c4"),
    "attention-frame": ("#eef5fc", "#a9c5e3"),
    "ffn": ("#d9ecd5", "#7cab71"),
    "ffn-frame": ("#f0f8ee", "#b3d3ac"),
    "node": ("#ffffff", "#3b4252"),
    "end": ("#eceff4", "#a7afbe"),
    "block": ("#fafbfd", "#dce1ea"),
}
TEXT_SIZE, NOTE_SIZE = 9.0, 6.5
_HEAD = 5.0  # length of an arrow's head


@cache
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a text in points."""
    if not text.strip():
        return 0.0
    path = TextPath(
        (0, 0), _verbatim(text), size=size, prop=FontProperties(family=FONT, weight=weight)
    )
    return float(path.get_extents().width)


class Canvas:
    """A figure of `width` by `height` points whose only axes count in points."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), facecolor="white")
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(0, height))
        self.axes.set_axis_off()

    def box(self, x: float, bottom: float, width: float, height: float, kind: str) -> None:
        """A box with round corners, centred on `x`."""
        fill, edge = FILL[kind]
        is_frame = kind == "block"
        style = f"round,pad=0,rounding_size={8 if is_frame else 4}"
        box = FancyBboxPatch((x - width / 2, bottom), width, height, boxstyle=style)
        box.set(facecolor=fill, edgecolor=edge, linewidth=0.9)
        box.set_zorder(0 if is_frame else 2)
        self.axes.add_patch(box)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = TEXT_SIZE,
        color: str = INK,
        align: str = "center",
        weight: str = "normal",
    ) -> None:
        """A line of text, vertically centred on `y`."""
        self.axes.text(
            x,
            y,
            _verbatim(text),
            size=size,
            color=color,
            ha=align,
            va="center_baseline",
            weight=weight,
            family=FONT,
            zorder=4,
        )

    def labelled_box(
        self, x: float, bottom: float, width: float, height: float, kind: str, lines: Sequence[str]
    ) -> None:
        """A box with a text, and smaller notes below it; what is too wide is set smaller."""
        self.box(x, bottom, width, height, kind)
        offsets = [0.0, *(10.5 + 8.5 * note for note in range(len(lines) - 1))]
        top = bottom + (height + offsets[-1]) / 2
        for line, offset in zip(lines, offsets, strict=True):
            size = NOTE_SIZE if offset else TEXT_SIZE
            fit = min(1.0, (width - 6) / max(text_width(line, size), 1))
            self.text(x, top - offset, line, size * fit)

    def arrow(
        self, points: Sequence[Point], color: str = INK, *, head: bool = True, radius: float = 7
    ) -> None:
        """A line through `points` with round corners, axis-parallel, with a head at its end."""
        *_, before, end = points
        length = abs(end[0] - before[0]) + abs(end[1] - before[1])
        along = ((end[0] - before[0]) / length, (end[1] - before[1]) / length)
        stop = (end[0] - along[0] * _HEAD * head, end[1] - along[1] * _HEAD * head)
        line = PathPatch(_rounded([*points[:-1], stop], radius), fill=False, edgecolor=color)
        line.set(linewidth=1.1, zorder=3, capstyle="butt")
        self.axes.add_patch(line)
        if head:
            side = (-along[1] * 2.3, along[0] * 2.3)
            wings = [(stop[0] + s * side[0], stop[1] + s * side[1]) for s in (1, -1)]
            self.axes.add_patch(Polygon([end, *wings], facecolor=color, linewidth=0, zorder=3))

    def dot(self, x: float, y: float, color: str) -> None:
        """Where a line leaves another."""
        self.axes.add_patch(Circle((x, y), 2.1, facecolor=color, linewidth=0, zorder=4))

    def node(self, x: float, y: float, sign: str, radius: float = 7) -> None:
        """A circled `+` or `×`."""
        fill, edge = FILL["node"]
        self.axes.add_patch(
            Circle((x, y), radius, facecolor=fill, edgecolor=edge, lw=1.1, zorder=4)
        )
        reach = radius * (0.62 if sign == "+" else 0.45)
        ends = [((-1, 0), (1, 0)), ((0, -1), (0, 1))]
        if sign == "×":
            ends = [((-1, -1), (1, 1)), ((-1, 1), (1, -1))]
        for a, b in ends:
            stroke = [(x + reach * px, y + reach * py) for px, py in (a, b)]
            patch = PathPatch(Path(stroke), fill=False, edgecolor=edge, linewidth=1.1, zorder=5)
            self.axes.add_patch(patch)


def _verbatim(text: str) -> str:
    """For matplotlib, to which two dollars are a formula; a box stands for what the font lacks."""
    glyphs = get_font(findfont(FontProperties(family=FONT)))
    shown = (c if c == "\n" or glyphs.get_char_index(ord(c)) else "\N{WHITE SQUARE}" for c in text)
    return "".join(shown).replace("$", r"\$")


def _rounded(points: Sequence[Point], radius: float) -> Path:
    """The axis-parallel path through `points`, its corners rounded."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        near, far = (_towards(corner, other, radius) for other in (before, after))
        vertices += [near, corner, far]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _towards(start: Point, end: Point, distance: float) -> Point:
    length = abs(end[0] - start[0]) + abs(end[1] - start[1])
    part = min(distance, length / 2) / length
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])
