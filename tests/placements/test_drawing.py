"""Drawings: complete, legible, and right about where the residual comes from."""

import itertools
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from generated_placements import placements
from hypothesis import given, settings
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch, PathPatch

from hybridnorm import Placement, placement
from hybridnorm.errors import HybridNormError
from hybridnorm.placements import strategies
from hybridnorm.placements.parse import placement_from_dict
from hybridnorm.placements.show.drawing import SKIP_COLOR, draw, drawing_svg, save_drawing
from hybridnorm.placements.show.symbols import distinct_blocks
from hybridnorm.placements.spec import norms_of


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Texts that touch each other, as matplotlib's own renderer measures them."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in figure.axes[0].texts]
    page = figure.bbox
    outside = [(t, "") for t, b in boxes if b.x0 < 0 or b.x1 > page.x1 or b.y1 > page.y1]
    pairs = itertools.combinations(boxes, 2)
    return outside + [(a, b) for (a, box), (b, other) in pairs if box.overlaps(other)]


@pytest.mark.parametrize("name", [*strategies(), "pre-qkvc-post"])
def test_a_drawing_has_every_norm_and_its_texts_are_legible(name: str) -> None:
    spec = placement(name)
    figure = draw(spec, 12)
    found = texts(figure)
    blocks = distinct_blocks(spec, 12)
    norms = [norm for g in blocks for part in (g.spec, g.spec.attention, g.spec.feed_forward)
             for norm in norms_of(part).values()]  # fmt: skip
    norms += [norm for norm in (spec.embed_norm, spec.final(12)) if norm]
    assert sum(text in ("Norm", "LayerNorm", "DyT", "Derf") for text in found) == len(norms)
    assert found.count("Attention") == len(blocks)
    assert {group.title for group in blocks} <= set(found)
    assert overlapping_texts(figure) == []


def skips(spec: Placement, carried: str) -> list[tuple[float, float]]:
    """Where the skips of that kind start and end, as heights."""
    lines = [p for p in draw(spec, 1).axes[0].patches if isinstance(p, PathPatch)]
    lines = [p for p in lines if to_hex(p.get_edgecolor()) == SKIP_COLOR[carried]]
    return [(p.get_path().vertices[0][1], p.get_path().vertices[-1][1]) for p in lines]


def boxes(spec: Placement, text: str) -> list[tuple[float, float]]:
    """The lower and upper edge of the boxes with that text, bottom to top."""
    axes = draw(spec, 1).axes[0]
    heights = [t.get_position()[1] for t in axes.texts if t.get_text() == text]
    edges = [(p.get_y(), p.get_y() + p.get_height()) for p in axes.patches
             if isinstance(p, FancyBboxPatch) and p.get_height() < 60]  # fmt: skip
    return sorted({edge for y in heights for edge in edges if edge[0] < y < edge[1]})


def test_a_normed_skip_leaves_above_the_norm_and_a_raw_one_below() -> None:
    hybrid, pre = placement("hybridnorm"), placement("pre-norm")
    (start, end), *others = skips(hybrid, "normed")
    assert not others
    (ffn,) = boxes(hybrid, "FFN")
    norm = boxes(hybrid, "Norm")[-2]  # the last one is the final norm
    assert norm[1] < start < ffn[0] < ffn[1] < end
    assert len(skips(hybrid, "raw")) == 1
    attention_norm, ffn_norm, _ = boxes(pre, "Norm")
    (low, _), (high, _) = skips(pre, "raw")
    assert low < attention_norm[0]
    assert attention_norm[1] < high < ffn_norm[0]


def test_a_block_input_skip_leaves_at_the_bottom_and_enters_the_upper_sum() -> None:
    for name in ("b2t", "spannorm"):
        spec = placement(name)
        ((start, end),) = skips(spec, "block_input")
        assert start < boxes(spec, "Attention")[0][0]
        assert boxes(spec, "FFN")[0][1] < end
    assert len(skips(placement("b2t"), "raw")) == 2
    assert len(skips(placement("spannorm"), "raw")) == 1


def test_both_branches_of_a_parallel_block_read_its_input() -> None:
    for name, n_norms in (("parallel", 3), ("parallel-shared", 2)):
        spec = placement(name)
        ((start, end),) = skips(spec, "block_input")
        norms, (attention,), (ffn,) = (boxes(spec, text) for text in ("Norm", "Attention", "FFN"))
        assert len(norms) == n_norms
        below = norms[0] if name == "parallel" else attention
        above = norms[1] if name == "parallel" else ffn
        assert start < below[0] and attention[1] < end < above[0]
        assert len(skips(spec, "raw")) == 2


def test_scales_are_written_at_their_place() -> None:
    assert texts(draw(placement("deepnorm"))).count("(2L)^¼") == 2
    assert texts(draw(placement("lns"))).count("1/√(l+1)") == 2
    assert "gain starts at 0.283/√L" in texts(draw(placement("dssn")))
    assert "λ, learned" in texts(draw(placement("layerscale")))


def test_svg_can_be_inlined_and_is_the_same_every_time() -> None:
    names = ("hybridnorm", "hybridnorm-star", "pre-norm")
    drawn = [drawing_svg(placement(name)) for name in names]
    assert drawn[0] == drawing_svg(placement("hybridnorm"))
    ids: list[str] = []
    for svg in drawn:
        root = ET.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        own = [e.get("id") for e in root.iter() if e.get("id")]
        ids += [i for i in own if i]
        used = re.findall(r'(?:url\(|href=")#([^")]+)', svg)
        assert set(used) <= set(own)
        assert "<dc:date>" not in svg
    assert len(ids) == len(set(ids))


def test_drawings_are_files_of_the_placements_name(tmp_path: Path) -> None:
    spec = placement_from_dict({"name": "../my own *", "attention": {"post_norm": "rms"}})
    svg, png = save_drawing(spec, tmp_path / "new" / "folder")
    assert {svg.parent, png.parent} == {tmp_path / "new" / "folder"}
    assert (svg.name, png.name) == ("my-own.svg", "my-own.png")
    assert ET.parse(svg).getroot().tag.endswith("svg")
    height, width, _ = imread(png).shape
    assert height > width > 300
    before = svg.read_bytes(), png.read_bytes()
    save_drawing(spec, svg.parent)
    assert (svg.read_bytes(), png.read_bytes()) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HybridNormError, match=r"out: cannot write .*file.*; choose"):
        save_drawing(placement("pre-norm"), tmp_path / "file")


@settings(deadline=None, max_examples=15)
@given(placements())
def test_any_placement_can_be_drawn(spec: Placement) -> None:
    try:
        figure = draw(spec, 5)
    except HybridNormError:  # overrides that contradict each other
        return
    assert overlapping_texts(figure) == []
