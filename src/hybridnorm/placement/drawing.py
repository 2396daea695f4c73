"""Drawings of a placement's distinct blocks, in the style of the paper's Figure 1.

Generated from the data alone: the stream runs upwards, branches lie on it, skips bow around them.
"""

import io
import textwrap
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from hybridnorm.errors import HybridNormError
from hybridnorm.placement.equations import block_title, distinct_blocks, scale_text
from hybridnorm.placement.spec import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    Norm,
    Placement,
    Scale,
    Sublayer,
)

_FILL = {"norm": "#f6d8a8", "attention": "#bcd6ee", "ffn": "#c9e4c5", "scale": "#e6dcf0"}
_INK = "#333333"
_STEP, _HEIGHT, _WIDTH = 0.78, 0.5, 2.2
_KIND = {"rms": "Norm", "layer": "LayerNorm", "l2": "L2 norm", "dyt": "DyT", "derf": "Derf"}


def draw(placement: Placement, n_layers: int = 12) -> Figure:
    """The distinct blocks of a model of `n_layers`, side by side."""
    blocks = distinct_blocks(placement, n_layers)
    figure = Figure(figsize=(2.6 * len(blocks) + 0.4, 6.2))
    columns = []
    for column, (layers, spec) in enumerate(blocks):
        axes = figure.add_subplot(1, len(blocks), column + 1)
        axes.set_axis_off()
        axes.set_aspect("equal")
        top = _Column(axes).block(spec)
        axes.set_title(block_title(layers) if len(blocks) > 1 else "", fontsize=9, color=_INK)
        columns.append((axes, top))
    highest = max(top for _, top in columns)
    for axes, _ in columns:
        axes.set_xlim(-2.1, 2.1)
        axes.set_ylim(-0.5, highest + 0.3)
    figure.set_size_inches(2.5 * len(blocks), 0.62 * (highest + 1.8))
    title = textwrap.fill(placement.title or placement.name, 22 * len(blocks))
    figure.suptitle(title, fontsize=12, color=_INK)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    return figure


def drawing_svg(placement: Placement, n_layers: int = 12) -> str:
    """The drawing as an SVG element to inline; its ids are unique to the placement."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": placement.name, "svg.fonttype": "path"}):
        draw(placement, n_layers).savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def save_drawing(placement: Placement, folder: Path, n_layers: int = 12) -> tuple[Path, Path]:
    """Write `NAME.svg` and `NAME.png` into `folder`.

    Raises:
        HybridNormError: the folder cannot be written.
    """
    svg, png = folder / f"{placement.name}.svg", folder / f"{placement.name}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        svg.write_text(drawing_svg(placement, n_layers), encoding="utf-8")
        draw(placement, n_layers).savefig(png, dpi=160)
    except OSError as error:
        raise HybridNormError(f"out: cannot write {folder}: {error.strerror}") from None
    return svg, png


class _Column:
    """One block; `y` is the height reached so far."""

    def __init__(self, axes: Axes) -> None:
        self.axes, self.y = axes, 0.0

    def block(self, spec: BlockSpec) -> float:
        self.axes.text(0, -0.25, "x", ha="center", va="center", fontsize=9, style="italic")
        self._sublayer(spec.attention, entry := self.y, side=-1)
        self._sublayer(spec.feed_forward, entry, side=-1)
        self._line(self.y, self.y + 0.35)
        self.axes.text(0, self.y + 0.48, "x′", ha="center", va="center", fontsize=9, style="italic")
        return self.y + 0.6

    def _sublayer(self, spec: Sublayer, block_entry: float, side: int) -> None:
        start = self.y + 0.15
        self._line(self.y, start)
        self.y = start
        leaves = [start]
        if spec.input_norm:
            self._box(_norm_text(spec.input_norm), "norm")
        if spec.skip == "normed":
            leaves = [self.y + 0.12]
            self._line(self.y, self.y + 0.12)
            self.y += 0.12
        if not spec.input_scale.is_one:
            self._box(f"× {_scale_text(spec.input_scale)}", "scale")
        self._branch(spec)
        if spec.output_norm:
            self._box(_norm_text(spec.output_norm), "norm")
        if not spec.branch_scale.is_one:
            self._box(f"× {_scale_text(spec.branch_scale)}", "scale")
        if spec.skip == "block_input":
            leaves = []
        centre = self.y + 0.42
        self._line(self.y, centre - 0.16)
        label = "" if spec.skip_scale.is_one else f"× {_scale_text(spec.skip_scale)}"
        for leaf in leaves:
            self._skip(leaf, centre, side, 1.5, label)
        if spec.skip in ("block_input", "raw+block_input"):
            self._skip(block_entry + 0.08, centre, -side, 1.7, "" if leaves else label)
        self._plus(centre)
        self.y = centre + 0.16
        if spec.post_norm:
            self._box(_norm_text(spec.post_norm), "norm")

    def _branch(self, spec: Sublayer) -> None:
        if isinstance(spec, AttentionSpec):
            letters = {"Q": spec.q_norm, "K": spec.k_norm, "V": spec.v_norm}
            if any(letters.values()):
                self._row(letters)
            self._box("Attention", "attention")
            if spec.context_norm:
                self._box(_norm_text(spec.context_norm, "context "), "norm")
        elif isinstance(spec, FeedForwardSpec) and spec.mid_norm:
            self._box("FFN in", "ffn")
            self._box(_norm_text(spec.mid_norm), "norm")
            self._box("FFN out", "ffn")
        else:
            self._box("FFN", "ffn")

    def _row(self, letters: dict[str, Norm | None]) -> None:
        """Q, K and V side by side, a small norm on those that have one."""
        bottom = self.y + _STEP - _HEIGHT
        width = _WIDTH / 3
        for index, (letter, norm) in enumerate(letters.items()):
            x = (index - 1) * width
            self._polyline([(0, self.y), (0, self.y + 0.12), (x, self.y + 0.12), (x, bottom)])
            if norm:
                self._shape(x, bottom, width - 0.1, _HEIGHT, _FILL["norm"])
                text = f"{letter} norm" + ("\nno gain" if not norm.affine else "")
                text += "\nfull" if norm.axis == "full" else ""
                self.axes.text(x, bottom + _HEIGHT / 2, text, ha="center", va="center", fontsize=6)
            else:
                self._polyline([(x, bottom), (x, bottom + _HEIGHT)])
                self.axes.text(x + 0.08, bottom + _HEIGHT / 2, letter, va="center", fontsize=7)
            self._polyline([(x, bottom + _HEIGHT), (x, bottom + _STEP)])
        # The attention box starts where the three lines end.
        self.y = bottom + _HEIGHT

    def _box(self, text: str, kind: str) -> None:
        bottom = self.y + _STEP - _HEIGHT
        self._line(self.y, bottom)
        self._shape(0, bottom, _WIDTH, _HEIGHT, _FILL[kind])
        size = 9 if len(text) <= 18 else 7
        self.axes.text(0, bottom + _HEIGHT / 2, text, ha="center", va="center", fontsize=size)
        self.y = bottom + _HEIGHT

    def _shape(self, x: float, bottom: float, width: float, height: float, fill: str) -> None:
        style = "round,pad=0,rounding_size=0.12"
        patch = FancyBboxPatch((x - width / 2, bottom), width, height, boxstyle=style)
        patch.set(facecolor=fill, edgecolor=_INK, linewidth=0.8, zorder=2)
        self.axes.add_patch(patch)

    def _line(self, low: float, high: float) -> None:
        self._polyline([(0, low), (0, high)])

    def _polyline(self, points: list[tuple[float, float]]) -> None:
        self.axes.plot(*zip(*points, strict=True), color=_INK, linewidth=0.9, zorder=1)

    def _plus(self, y: float) -> None:
        self.axes.add_patch(Circle((0, y), 0.16, facecolor="white", edgecolor=_INK, zorder=3))
        self._polyline([(-0.1, y), (0.1, y)])
        self._polyline([(0, y - 0.1), (0, y + 0.1)])
        for line in self.axes.lines[-2:]:
            line.set_zorder(4)

    def _skip(self, low: float, high: float, side: int, reach: float, label: str) -> None:
        """A line with rounded corners that leaves the stream at `low` and joins at `high`."""
        x, r = side * reach, 0.18
        inner = x - side * r
        vertices = [(0, low), (inner, low), (x, low), (x, low + r), (x, high - r)]
        vertices += [(x, high), (inner, high), (side * 0.16, high)]
        codes = [Curve.MOVETO, Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
        codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3, Curve.LINETO]
        patch = PathPatch(Curve(vertices, codes), fill=False, edgecolor=_INK, linewidth=0.9)
        self.axes.add_patch(patch)
        if label:
            middle, beside = (low + high) / 2, x + side * 0.2
            self.axes.text(beside, middle, label, ha="center", va="center", fontsize=7, rotation=90)


def _norm_text(norm: Norm, prefix: str = "") -> str:
    text = prefix + _KIND[norm.kind]
    if norm.zero_centered:
        text += " (1+γ)"
    if not norm.affine:
        text += ", no gain"
    if not norm.gain_init.is_one:
        text += f", γ₀ = {scale_text(norm.gain_init)}"
    return text


def _scale_text(scale: Scale) -> str:
    return "λ (learned)" if scale.learned != "none" else scale_text(scale)
