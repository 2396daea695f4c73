import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridnorm.errors import HybridNormError
from hybridnorm.placement import placement, strategies
from hybridnorm.placement.canonical import equivalents
from hybridnorm.placement.drawing import drawing_svg, save_drawing
from hybridnorm.placement.equations import equations_text
from hybridnorm.placement.parse import placement_from_dict, placement_to_dict
from hybridnorm.placement.registry import load_placement
from hybridnorm.placement.spec import Norm, Override, Scale, norms_of


@pytest.mark.parametrize("name", list(strategies()))
def test_every_strategy_survives_toml_and_can_be_drawn(name: str, tmp_path: Path) -> None:
    spec = placement(name)
    assert placement_from_dict(placement_to_dict(spec)) == spec
    assert spec.source and spec.title
    svg = drawing_svg(spec)
    assert svg.startswith("<svg") and svg == drawing_svg(spec)


letters = st.permutations("qkvc").flatmap(
    lambda order: st.integers(1, 4).map(lambda n: "".join(order[:n]))
)


@given(pre=st.booleans(), letters=letters, end=st.sampled_from(["post", "pre"]))
def test_the_grammar_means_what_the_paper_says(pre: bool, letters: str, end: str) -> None:
    spec = placement(f"{'pre-' if pre else ''}{letters}-{end}")
    block = spec.block(1, 4)
    names = {"q": "q_norm", "k": "k_norm", "v": "v_norm", "c": "context_norm"}
    expected = {names[letter] for letter in letters} | ({"input_norm"} if pre else set())
    assert norms_of(block.attention).keys() == expected
    assert norms_of(block.feed_forward).keys() == {"input_norm"}
    assert block.feed_forward.skip == ("normed" if end == "post" else "raw")
    assert block.attention.skip == "raw"


@pytest.mark.parametrize("name", ["qq-post", "qkx-post", "-post", "qkv", "qkv-mid", "post-qkv"])
def test_what_is_not_in_the_grammar_is_refused(name: str) -> None:
    with pytest.raises(HybridNormError, match="unknown name"):
        placement(name)


def test_names_of_the_paper_are_the_table_entries() -> None:
    assert placement("qkv-post") == placement("hybridnorm")
    assert placement("pre-qk-pre") == placement("pre-norm-qk")


@pytest.mark.parametrize(
    ("layers", "selected"),
    [
        ("first", [0]), ("first 3", [0, 1, 2]), ("first 25%", [0, 1]), ("first 1%", []),
        ("last", [7]), ("last 2", [6, 7]), ("every 4", [3, 7]), ("blocks 2, 5", [1, 4]),
    ],
)  # fmt: skip
def test_layer_selectors(layers: str, selected: list[int]) -> None:
    override = Override(layers=layers)
    assert [layer for layer in range(8) if override.selects(layer, 8)] == selected


def test_mix_ln_is_post_norm_in_the_first_quarter() -> None:
    blocks = [placement("mix-ln").block(layer, 12) for layer in range(12)]
    assert blocks[:3] == [placement("post-norm").block(0, 12)] * 3
    assert blocks[3:] == [placement("pre-norm").block(0, 12)] * 9


def test_a_final_norm_depends_on_the_last_sublayer_not_on_the_name() -> None:
    assert placement("post-norm").final(4) is None and placement("pre-norm").final(4)
    canonical = {"name": "c", "attention": {"post_norm": "rms"}}
    assert placement_from_dict(canonical).final(4)
    # With one block KEEL is Pre-Norm, and needs the norm that its last post-norm would be.
    assert placement("keel").final(1) and placement("keel").final(2) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[attention]\ninpt_norm = "rms"', "attention.inpt_norm: unknown field; did you mean"),
        ('[attention]\ninput_norm = "rmz"', "attention.input_norm: unknown norm 'rmz'; did you"),
        ('[feed_forward]\nskip = "normed"', "skip: 'normed' carries the input norm"),
        ('[feed_forward]\nskip = "rae"', "feed_forward.skip: unknown value 'rae'; did you mean"),
        (
            "[attention]\ninput_norm = {eps = -1}",
            "attention.input_norm.eps: must be finite and not negative",
        ),
        (
            "[attention]\nbranch_scale = true",
            "attention.branch_scale: expected a number or a table",
        ),
        ('[[overrides]]\nlayers = "frist"', "overrides[0].layers: cannot read 'frist'"),
        ('[[overrides]]\nlayers = "every 0"', "overrides[0].layers: cannot read"),
        ("attention = ", "is not TOML"),
    ],
)
def test_broken_files_name_the_field(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(HybridNormError) as caught:
        placement(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_users_file_may_say_what_a_builtin_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'attention = { q_norm = "rms", k_norm = "rms", v_norm = "rms", post_norm = "rms" }\n'
        'init = "megatron"\n'
    )
    mine = load_placement(path)
    assert mine.name == "mine"
    assert equivalents(mine) == ["hybridnorm"]
    assert equivalents(placement("hybridnorm-star")) == []
    with pytest.raises(HybridNormError, match="cannot read"):
        load_placement(tmp_path / "missing.toml")


def test_equations_read_like_the_paper() -> None:
    star = equations_text(placement("hybridnorm-star"), 9)
    for line in ("block 1\n", "y = x + Attn(N(x))", "x' = y + FFN(N(y))"):
        assert line in star.partition("blocks 2..9")[0]
    for line in ("q = N_q(x W_q)", "y = x + Attn(x)", "x' = N(y) + FFN(N(y))"):
        assert line in star.partition("blocks 2..9")[2]
    assert "y = N((2L)^¼·x + Attn(x))" in equations_text(placement("deepnorm"), 9)
    assert "x' = N(y + x + FFN(y))" in equations_text(placement("b2t"), 9)


def test_scales_are_numbers_of_the_absolute_layer() -> None:
    assert Scale(layer_power=-0.5).at(3, 8, 64) == 0.5
    assert placement("deepnorm").attention.skip_scale.at(5, 8, 64) == pytest.approx(16**0.25)
    assert placement("keel").attention.skip_scale.at(5, 8, 64) == pytest.approx(16)
    gain = placement("hybridnorm-star-7b").attention.output_norm
    assert gain is not None and gain.gain_init.at(0, 8, 64) == pytest.approx(0.25)


def test_impossible_norms_are_refused() -> None:
    with pytest.raises(HybridNormError, match="affine"):
        Norm(affine=False, zero_centered=True)
    with pytest.raises(HybridNormError, match="affine"):
        Norm(kind="dyt", affine=False)
    with pytest.raises(HybridNormError, match="learned already"):
        Norm(gain_init=Scale(learned="scalar"))


def test_show_draws_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hybridnorm.placement.show import show; "
        f"show('hybridnorm-star', Path({str(tmp_path)!r}), 12); show(None, Path(), 12); "
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "y = x + Attn(N(x))" in result.stdout
    assert all(name in result.stdout for name in strategies())
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"hybridnorm-star.svg", "hybridnorm-star.png"}
    with pytest.raises(HybridNormError, match="cannot write"):
        save_drawing(placement("pre-norm"), tmp_path / "hybridnorm-star.svg")
