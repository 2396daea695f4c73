"""The generated equations, against equations written by hand and against the model."""

import math
import re

import pytest
import torch
from generated_placements import placements
from hypothesis import given, settings

from hybridnorm import ModelConfig, Placement, Transformer, placement
from hybridnorm.errors import HybridNormError
from hybridnorm.model.layers import rope
from hybridnorm.placements import strategies
from hybridnorm.placements.parse import placement_from_dict
from hybridnorm.placements.show.equations import equations
from hybridnorm.placements.show.symbols import distinct_blocks, scale_text
from hybridnorm.placements.spec import Scale

QKV = ["q = N_q({0} W_q)", "k = N_k({0} W_k)", "v = N_v({0} W_v)"]
CONTEXT = "c = softmax(RoPE(q) RoPE(k)ᵀ / √d_head) v"


def lines(name: str, n_layers: int = 12) -> dict[str, list[str]]:
    return dict(equations(placement(name), n_layers))


def test_hybridnorm_star_is_equation_7_of_the_paper() -> None:
    found = lines("hybridnorm-star")
    assert list(found) == ["embedding", "block 1", "blocks 2..12", "head", "where"]
    assert found["block 1"] == [
        *(line.format("N(x)") for line in QKV),
        CONTEXT,
        "Attn(N(x)) = c W_o",
        "y = x + Attn(N(x))",
        "x' = y + FFN(N(y))",
    ]
    assert found["blocks 2..12"] == [
        *(line.format("x") for line in QKV),
        CONTEXT,
        "Attn(x) = c W_o",
        "y = x + Attn(x)",
        "x' = N(y) + FFN(N(y))",
    ]
    assert found["head"] == ["logits = N(x) W_head"]


# Written from the papers (norm_zoo A.2 and A.3), blocks in order of appearance.
BY_HAND = {
    "pre-norm": [["y = x + Attn(N(x))", "x' = y + FFN(N(y))"]],
    "post-norm": [["y = N(x + Attn(x))", "x' = N(y + FFN(y))"]],
    "deepnorm": [["y = N((2L)^¼·x + Attn(x))", "x' = N((2L)^¼·y + FFN(y))"]],
    "sandwich-ln": [["y = x + N(Attn(N(x)))", "x' = y + N(FFN(N(y)))"]],
    "lns": [["y = x + Attn(N(x)/√(l+1))", "x' = y + FFN(N(y)/√(l+1))"]],
    "b2t": [["y = N(x + Attn(x))", "x' = N(y + x + FFN(y))"]],
    "keel": [
        ["y = x + Attn(N(x))", "x' = y + FFN(N(y))"],
        ["y = N(2L·x + Attn(N(x)))", "x' = N(2L·y + FFN(N(y)))"],
    ],
    "spannorm": [
        ["y = N(x + Attn(N(x)))", "x' = N(x + FFN(y))"],
        ["y = N(x + Attn(x))", "x' = N(x + FFN(y))"],
    ],
    "mix-ln": [
        ["y = N(x + Attn(x))", "x' = N(y + FFN(y))"],
        ["y = x + Attn(N(x))", "x' = y + FFN(N(y))"],
    ],
    "gpas": [["y = leak(x + Attn(N(x)))", "x' = leak(y + FFN(N(y)))"]],
    "parallel": [["y = x + Attn(N(x))", "x' = y + FFN(N(x))"]],
    "parallel-shared": [["n = N(x)", "y = x + Attn(n)", "x' = y + FFN(n)"]],
    "layerscale": [["y = x + λ ⊙ Attn(N(x))", "x' = y + λ ⊙ FFN(N(y))"]],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_equations_written_by_hand(name: str) -> None:
    sections = equations(placement(name), 12)
    assert [section.lines for section in sections if "block" in section.title] == BY_HAND[name]


def test_norms_inside_the_branches_and_at_the_ends() -> None:
    subln = lines("subln")["blocks 1..12"]
    assert "Attn(N(x)) = N_c(c) W_o" in subln
    assert "FFN(N(y)) = N_m(act(N(y) W_up)) W_down" in subln
    assert "v = x W_v" in lines("olmo2")["blocks 1..12"]
    assert lines("peri-ln")["embedding"] == ["x = N(E[token])"]
    assert lines("gemma")["embedding"] == ["x = √d·E[token]"]
    assert lines("post-norm")["head"] == ["logits = x W_head"]


def test_the_legend_says_what_the_symbols_mean() -> None:
    assert lines("gemma-v")["where"] == [
        "N: RMSNorm",
        "N_q, N_k: RMSNorm per head",
        "N_v: RMSNorm per head, no gain",
    ]
    assert "N_q, N_k: RMSNorm, full width" in lines("olmo2")["where"]
    seven_b = lines("hybridnorm-star-7b", 32)
    assert "y = x + N₁(Attn(x))" in seven_b["blocks 2..32"]
    assert "N₁: RMSNorm, gain starts at 1/√(2L)" in seven_b["where"]
    assert "1/√(2L) = 0.125 for L = 32 blocks" in seven_b["where"]
    assert "1/√(l+1) = 1 to 0.5 for l = 0 to 3" in lines("lns", 4)["where"]


@pytest.mark.parametrize(
    ("layers", "titles"),
    [
        ("every 4", ["blocks 1..3, 5..7, 9..11", "blocks 4, 8, 12"]),
        ("last", ["blocks 1..11", "block 12"]),
        ("blocks 2, 5", ["blocks 1, 3..4, 6..12", "blocks 2, 5"]),
        ("first 5%", ["blocks 1..12"]),
        ("every 2", ["blocks 1, 3, 5, ..., 11", "blocks 2, 4, 6, ..., 12"]),
    ],
)
def test_equal_blocks_are_told_once(layers: str, titles: list[str]) -> None:
    table = {"name": "p", "overrides": [{"layers": layers, "attention": {"post_norm": "rms"}}]}
    assert [g.title for g in distinct_blocks(placement_from_dict(table), 12)] == titles


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (Scale(value=0.22), "0.22"),
        (Scale(value=-2.0), "-2"),
        (Scale(value=2.0, depth_power=1.0), "2L"),
        (Scale(value=0.5, depth_power=-1.0), "1/(2L)"),
        (Scale(value=2**-0.5, depth_power=-0.5), "1/√(2L)"),
        (Scale(value=8**-0.25, depth_power=-0.25), "1/(8L)^¼"),
        (Scale(value=1.4, depth_power=-0.5), "1.4/√L"),
        (Scale(layer_power=-1.0), "1/(l+1)"),
        (Scale(depth_power=-0.5, layer_power=-0.5), "1/(√L·√(l+1))"),
        (Scale(layer_power=0.3), "(l+1)^0.3"),
        (Scale(width_power=0.5), "√d"),
        (Scale(width_power=-2.0), "1/d²"),
    ],
)
def test_scales_are_formulas(scale: Scale, text: str) -> None:
    assert scale_text(scale) == text


def test_no_layers_is_an_error() -> None:
    with pytest.raises(HybridNormError, match="n_layers: must be from 1 to 10,000, got 0"):
        equations(placement("pre-norm"), 0)


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def as_python(equation: str) -> str:
    """The right-hand side of a generated equation, as a Python expression."""
    text = equation.split(" = ")[1]
    for sign, operator in (
        ("·", "*"),
        (" ⊙ ", "*"),
        ("^¼", "**0.25"),
        ("2L", "2*L"),
        ("√", "sqrt"),
    ):
        text = text.replace(sign, operator)
    return re.sub(r"sqrt(\w)", r"sqrt(\1)", text)


# Gains that do not start at 1, and pointwise maps, have no plain N.
def equations_text(placement: Placement, n_layers: int = 12) -> str:
    return "\n".join(line for section in equations(placement, n_layers) for line in section.lines)


EVALUATED = [name for name in strategies() if "N₁" not in equations_text(placement(name))]


@pytest.mark.parametrize("name", [n for n in EVALUATED if n not in ("dyt", "derf")])
def test_the_equations_are_what_the_model_computes(name: str) -> None:
    config = ModelConfig(
        d_model=16, n_layers=5, n_heads=2, d_ff=24, vocab_size=11, placement=name, norm_eps=1e-5
    )
    model = Transformer(config).double()
    angles = rope(torch.arange(7), config.head_dim, config.rope_theta)
    torch.manual_seed(0)
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    sections = dict(equations(placement(name), 5))
    for group in distinct_blocks(placement(name), 5):
        layer = group.layers[-1]
        block = model.blocks[layer]
        names = {
            "N": rms,
            "LN": lambda x: rms(x - x.mean(-1, keepdim=True)),
            "Attn": lambda x, block=block: block.attention.branch(x, rope=angles),
            "FFN": block.feed_forward.branch,
            "sqrt": math.sqrt,
            "L": 5,
            "l": layer,
            "λ": 0.1,
            "α": 0.0,
            "x": x,
        }
        attention, feed_forward = [
            line for line in sections[group.title] if line.startswith(("y = ", "x' = "))
        ]
        names |= {
            "leak": lambda x: x,
            "n": rms(x),
            "GN": lambda x: rms(x) / 2,
        }  # gates start half open
        names["y"] = eval(as_python(attention), names)
        expected = eval(as_python(feed_forward), names)
        stream, _ = block(x, angles)
        torch.testing.assert_close(stream, expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(placements())
def test_any_placement_has_equations(spec: Placement) -> None:
    try:
        text = equations_text(spec, 6)
    except HybridNormError:  # overrides that contradict each other
        return
    assert text.count("y = ") == text.count("x' = ") == len(distinct_blocks(spec, 6))
    assert text.count("(") == text.count(")")
