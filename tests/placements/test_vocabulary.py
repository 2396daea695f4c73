"""The vocabulary: what is valid, what is refused and how, and that it survives TOML."""

import tomllib
from dataclasses import replace

import pytest
import tomli_w
from generated_placements import placements
from hypothesis import given

from hybridnorm.errors import HybridNormError
from hybridnorm.placements import Placement, placement, strategies
from hybridnorm.placements.override import Override
from hybridnorm.placements.parse import placement_from_dict, placement_to_dict
from hybridnorm.placements.spec import FeedForwardSpec, Norm, Scale

REFUSED = {
    "attention.input_nrm": ({"attention": {"input_nrm": "rms"}}, "did you mean 'input_norm'"),
    "attention.mid_norm": ({"attention": {"mid_norm": "rms"}}, "unknown field"),
    "attentoin": ({"attentoin": {}}, "did you mean 'attention'"),
    "attention": ({"attention": "rms"}, "expected a table"),
    "attention.q_norm": ({"attention": {"q_norm": "rmsnorm"}}, "did you mean 'rms'"),
    "attention.k_norm": ({"attention": {"k_norm": 3}}, '"none" or a table'),
    "attention.v_norm.kind": ({"attention": {"v_norm": {"kind": "ln"}}}, "known: "),
    "feed_forward.mid_norm.eps": ({"feed_forward": {"mid_norm": {"eps": -1}}}, "at least 0"),
    "feed_forward.skip": ({"feed_forward": {"skip": "normed"}}, "needs input_norm"),
    "attention.skip": ({"attention": {"skip": "norm"}}, "did you mean 'normed'"),
    "attention.branch_scale": ({"attention": {"branch_scale": "1"}}, "expected a number"),
    "attention.skip_scale.value": (
        {"attention": {"skip_scale": float("nan")}},
        "to 1,000,000,000 and below 2^127",
    ),
    "attention.skip_scale.depth_power": (
        {"attention": {"skip_scale": {"depth_power": 1e6}}},
        "from -4 to 4",
    ),
    "embed_scale.layer_power": ({"embed_scale": {"layer_power": 1}}, "remove it"),
    "embed_scale.learned": ({"embed_scale": {"learned": "vector"}}, "known: "),
    "final_norm.affine": ({"final_norm": {"kind": "dyt", "affine": False}}, "gain and bias"),
    "embed_norm.gain_init": (
        {"embed_norm": {"gain_init": {"learned": "scalar"}}},
        "set only its initial value",
    ),
    "final_norm.affine ": (
        {"final_norm": {"affine": False, "zero_centered": True}},
        "without a gain has no gain_init",
    ),
    "attention.output_gate": ({"attention": {"output_gate": "heads"}}, "did you mean 'head'"),
    "attention.q_norm.gate": ({"attention": {"q_norm": {"gate": 4}}}, "only the norms around"),
    "final_norm.gate": ({"final_norm": {"gate": 4}}, "only the norms around"),
    "leak": ({"leak": True, "attention": {"post_norm": "rms"}}, "raw skips alone"),
    "topology": ({"topology": "paralel"}, "did you mean 'parallel'"),
    "shared_norm": ({"shared_norm": "rms"}, 'set topology = "parallel"'),
    "feed_forward.skip ": (
        {"topology": "parallel", "feed_forward": {"input_norm": "rms", "skip": "normed"}},
        "only 'raw' keeps what attention adds",
    ),
    "init": ({"init": "megatorn"}, "did you mean 'megatron'"),
    "aliases": ({"aliases": "p"}, "expected an array"),
    "overrides": ({"overrides": {"layers": "first"}}, "expected an array"),
    "overrides[0]": ({"overrides": [{"attention": {}}]}, "missing field 'layers'"),
    "overrides[0].layers": ({"overrides": [{"layers": "frist"}]}, "write first"),
    "overrides[1].attention.skip": (
        {"overrides": [{"layers": "last"}, {"layers": "first", "attention": {"skip": "normed"}}]},
        "needs input_norm",
    ),
    "overrides[0].feed_forward.q_norm": (
        {"overrides": [{"layers": "first", "feed_forward": {"q_norm": "rms"}}]},
        "unknown field",
    ),
}


@pytest.mark.parametrize("field", REFUSED)
def test_an_error_names_its_field_and_a_remedy_in_one_line(field: str) -> None:
    table, remedy = REFUSED[field]
    with pytest.raises(HybridNormError) as caught:
        placement_from_dict({"name": "p", **table})
    message = str(caught.value)
    assert message.startswith(f"{field.strip()}: ")
    assert remedy in message
    assert "\n" not in message


def test_a_placement_needs_a_name() -> None:
    with pytest.raises(HybridNormError, match="missing field 'name'"):
        placement_from_dict({})


@pytest.mark.parametrize(
    ("layers", "n_layers", "selected"),
    [
        ("first", 4, [0]),
        ("first 3", 2, [0, 1]),
        ("first 25%", 12, [0, 1, 2]),
        ("first 25%", 7, [0]),
        ("first 25%", 3, []),
        ("first 29%", 100, list(range(29))),  # 0.29 * 100 is 28.999... in floating point
        ("first 0%", 4, []),
        ("last", 1, [0]),
        ("last 2", 5, [3, 4]),
        ("last 50%", 5, [3, 4]),
        ("every 4", 3, []),
        ("every 4", 9, [3, 7]),
        ("every 1", 3, [0, 1, 2]),
        ("blocks 1, 3", 4, [0, 2]),
    ],
)
def test_selectors(layers: str, n_layers: int, selected: list[int]) -> None:
    override = Override(layers=layers)
    assert [i for i in range(n_layers) if override.selects(i, n_layers)] == selected


@pytest.mark.parametrize(
    "layers",
    ["", "first0", "first 0", "first 2.5", "first -1", "first 101%", "every 0", "every 00",
     "every", "last 3 ", "blocks 0", "blocks", "First", "first ٣"],
)  # fmt: skip
def test_what_is_no_selector(layers: str) -> None:
    with pytest.raises(HybridNormError, match="cannot read"):
        Override(layers=layers)


def test_overrides_apply_in_order_and_may_not_contradict() -> None:
    bare = {"input_norm": "none"}
    normed = {"input_norm": "rms", "skip": "normed"}
    table = {
        "name": "p",
        "overrides": [{"layers": "first 2", "attention": normed}, {"layers": "last 2"}],
    }
    assert placement_from_dict(table).block(1, 3).attention.skip == "normed"
    table["overrides"][1]["attention"] = bare  # type: ignore[index]
    contradictory = placement_from_dict(table)
    assert contradictory.block(0, 4).attention.skip == "normed"
    with pytest.raises(HybridNormError, match=r"block 2 of 3, attention\.skip"):
        contradictory.block(1, 3)


def test_depth_constants_are_python_numbers_of_the_global_layer() -> None:
    """Traps 1 and 6: no tensor to lose on the meta device, no index local to a pipeline stage."""
    value = Scale(value=3.0, layer_power=-0.5, depth_power=1.0, width_power=0.5).at(3, 8, 16)
    assert type(value) is float
    assert value == 3 / 2 * 8 * 4
    star = placement("hybridnorm-star")
    assert star.block(0, 8).attention.input_norm
    assert not star.block(4, 8).attention.input_norm  # the first block of a second stage
    with pytest.raises(HybridNormError, match="layer 8"):
        star.block(8, 8)


def test_published_depth_constants() -> None:
    deepnorm, keel = (placement(name).block(2, 80).attention for name in ("deepnorm", "keel"))
    assert deepnorm.skip_scale.at(2, 80, 64) == pytest.approx(3.5566, abs=1e-4)  # MiniMax-01
    assert keel.skip_scale.at(2, 80, 64) == 160
    dssn = placement("dssn").feed_forward.output_norm
    assert dssn
    assert dssn.gain_init.at(2, 94, 64) == pytest.approx(0.432 / 94**0.5)  # Pangu Ultra
    seven_b = placement("hybridnorm-star-7b").attention.output_norm
    assert seven_b
    assert seven_b.gain_init.at(2, 32, 64) == pytest.approx(1 / 8)
    lns = placement("lns").attention.input_scale
    assert [lns.at(layer, 4, 64) for layer in (0, 3)] == [1, 0.5]


def test_the_final_norm_depends_on_the_last_sublayer_not_on_the_name() -> None:
    """Trap 9, and norm_zoo A.1.1: canonical HybridNorm ends in a branch."""
    in_post_spelling = replace(
        placement("post-norm"), feed_forward=FeedForwardSpec(), final_norm=Norm()
    )
    assert in_post_spelling.final(4) == Norm()
    assert placement("post-norm").final(4) is None
    # Mix-LN ends in Pre-Norm, unless a model is so short that no block is Post-Norm either.
    assert placement("mix-ln").final(12) == placement("mix-ln").final(1) == Norm()
    assert placement("keel").final(1) == Norm()
    assert placement("keel").final(2) is None


@pytest.mark.parametrize("name", strategies())
def test_every_strategy_survives_toml(name: str) -> None:
    assert survives(placement(name)) == placement(name)


def survives(spec: Placement) -> Placement:
    return placement_from_dict(tomllib.loads(tomli_w.dumps(placement_to_dict(spec))))


@given(placements())
def test_any_placement_survives_toml(spec: Placement) -> None:
    assert survives(spec) == spec
