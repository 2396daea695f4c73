"""Facts and equivalences, against norm_zoo's identities and against the model itself."""

import pytest
import torch

from hybridnorm import ModelConfig, Placement, Transformer, placement
from hybridnorm.placements import strategies
from hybridnorm.placements.equivalence import canonical_form, equivalents, same_function_class
from hybridnorm.placements.parse import placement_from_dict
from hybridnorm.placements.show.facts import facts, stream_norms

QKV = {"q_norm": "rms", "k_norm": "rms", "v_norm": "rms"}
PRE = {"input_norm": "rms"}
NORMED = {"input_norm": "rms", "skip": "normed"}
BARE_FIRST = {"layers": "first", "attention": {"input_norm": "none", "skip": "raw"}}


def spelled(**table: object) -> Placement:
    return placement_from_dict({"name": "spelled", **table})


# Other spellings of built-in placements (A.1.1, A.1.2 no. 1 to 3).
SAME = {
    "hybridnorm": spelled(attention=QKV | {"post_norm": "rms"}),
    "hybridnorm-star": spelled(
        attention=QKV | {"post_norm": "rms"},
        overrides=[
            {
                "layers": "first",
                "attention": {"input_norm": "rms", "post_norm": "none"},
                "feed_forward": PRE,
            }
        ],
    ),
    "post-norm": spelled(attention=NORMED, feed_forward=NORMED, overrides=[BARE_FIRST]),
    "megatron-post-residual": spelled(
        attention={"post_norm": "rms"}, feed_forward={"post_norm": "rms"}, embed_norm="rms"
    ),
}

# One condition of A.1.1 broken, or a trap of A.6: each looks like the built-in and is not.
DIFFERENT = {
    "hybridnorm": [
        placement("hybridnorm-star"),
        spelled(attention=QKV | {"post_norm": "rms"}, final_norm="none"),
        spelled(attention=QKV | {"post_norm": "rms"}, feed_forward={"skip": "block_input"}),
        spelled(attention=QKV, feed_forward={"post_norm": "rms"}),
        spelled(attention=QKV | {"post_norm": "layer"}),
    ],
    "hybridnorm-star": [
        # Block 1 is not rewritable: no norm sits on its stream.
        spelled(
            attention=QKV | {"post_norm": "rms"},
            overrides=[{"layers": "first", "attention": {"input_norm": "rms"}}],
        ),
    ],
    # Trap 2: a gain that starts at 1/sqrt(l+1) is learned, the constant is not.
    "lns": [
        spelled(
            attention={"input_norm": {"gain_init": {"layer_power": -0.5}}},
            feed_forward={"input_norm": {"gain_init": {"layer_power": -0.5}}},
        )
    ],
}


def logits(spec: Placement, n_layers: int, eps: float = 1e-5) -> torch.Tensor:
    """Of a small model; weights are drawn by name, so all placements share them."""
    config = ModelConfig(
        d_model=16,
        n_layers=n_layers,
        n_heads=2,
        d_ff=24,
        vocab_size=11,
        norm_eps=eps,
        init="normal",
    )
    return Transformer(config, spec).double()(torch.arange(10).view(2, 5)).detach()


@pytest.mark.parametrize("name", SAME)
def test_other_spellings_are_recognized_and_compute_the_same(name: str) -> None:
    assert equivalents(SAME[name]) == [name]
    assert name not in same_function_class(SAME[name])
    for n_layers in (1, 4, 9):
        assert torch.equal(logits(SAME[name], n_layers), logits(placement(name), n_layers))


@pytest.mark.parametrize(
    ("name", "other"), [(name, spec) for name, specs in DIFFERENT.items() for spec in specs]
)
def test_what_only_looks_the_same_is_not_called_equal(name: str, other: Placement) -> None:
    assert name not in equivalents(other)


def test_the_mirror_image_has_two_spellings() -> None:
    """A.1.2 no. 2: the last post-norm is the final norm, and the first attention is bare."""
    mirror = spelled(attention=QKV, feed_forward={"post_norm": "rms"}, final_norm="none")
    other = spelled(attention=QKV | NORMED, overrides=[BARE_FIRST])
    with_entry_norm = spelled(attention=QKV | NORMED)
    for n_layers in (1, 5):
        assert canonical_form(mirror, n_layers) == canonical_form(other, n_layers)
        assert torch.equal(logits(mirror, n_layers), logits(other, n_layers))
        assert canonical_form(mirror, n_layers) != canonical_form(with_entry_norm, n_layers)


def test_a_norm_does_not_move_past_a_read_of_the_blocks_input() -> None:
    """Moving the attention's norm into the block before would change what block_input reads."""
    reads_raw = {
        "attention": NORMED,
        "feed_forward": {"input_norm": "rms", "skip": "block_input"},
        "overrides": [BARE_FIRST],
    }
    moved = spelled(attention={}, feed_forward={**PRE, "skip": "block_input", "post_norm": "rms"})
    assert canonical_form(spelled(**reads_raw), 4) != canonical_form(moved, 4)
    assert not torch.allclose(logits(spelled(**reads_raw), 4), logits(moved, 4))


def test_the_built_in_names_are_all_different() -> None:
    assert [name for name, spec in strategies().items() if equivalents(spec)] == []


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("first-qkv-pre", ["hybridnorm-star"]),
        ("hybridnorm-star", ["first-qkv-pre"]),
        ("pre-qkv-post", ["hybridnorm"]),
        ("dssn", ["sandwich-ln"]),
        ("pre-qkvc-post", []),
        ("pre-kv-post", []),  # q is not normed, so the scale of the input matters
        ("pre-norm-qk", []),
    ],
)
def test_same_function_class(name: str, others: list[str]) -> None:
    assert list(same_function_class(placement(name))) == others


def test_redundant_input_norms_change_nothing_but_eps() -> None:
    reason = same_function_class(placement("first-qkv-pre"))["hybridnorm-star"]
    assert "up to eps" in reason
    pair = [logits(placement(n), 4, eps=1e-30) for n in ("first-qkv-pre", "hybridnorm-star")]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(*(logits(placement(n), 4, 0.1) for n in ("lns", "pre-norm")))


def test_the_ratio_of_scales_is_what_a_post_norm_sees() -> None:
    branch = {"post_norm": "rms", "branch_scale": {"value": 2**-0.25, "depth_power": -0.25}}
    divided = spelled(attention=branch, feed_forward=branch)
    assert equivalents(divided) == []
    assert "ratio" in same_function_class(divided)["deepnorm"]
    torch.testing.assert_close(
        logits(divided, 4, eps=1e-30),
        logits(placement("deepnorm"), 4, eps=1e-30),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("n_layers", [1, 12])
def test_norms_on_the_stream(n_layers: int) -> None:
    """norm_zoo A.1.1: HybridNorm has L and the final norm, HybridNorm* one less."""
    assert stream_norms(placement("hybridnorm"), n_layers) == n_layers
    assert stream_norms(SAME["hybridnorm"], n_layers) == n_layers
    assert stream_norms(placement("hybridnorm-star"), n_layers) == n_layers - 1
    assert stream_norms(placement("post-norm"), n_layers) == 2 * n_layers
    assert stream_norms(placement("peri-ln"), n_layers) == 0


def test_facts_of_hybridnorm_star() -> None:
    found = facts(placement("hybridnorm-star"), 12)
    assert found["norms in block 1"] == "5 (attention input, q, k, v; feed-forward input)"
    assert found["norms in blocks 2..12"] == "4 (attention q, k, v; feed-forward input)"
    assert found["residual in block 1"] == "attention x (raw); feed-forward y (raw)"
    assert found["residual in blocks 2..12"] == "attention x (raw); feed-forward N(y) (normed)"
    assert found["norms on the stream"] == "11 in 12 blocks, and the final norm"
    assert found["published init"] == "megatron"
    assert found["also called"] == "hybridnorm*"
    assert found["equivalent to"] == "no other built-in"


def test_facts_of_other_residuals() -> None:
    b2t = facts(placement("b2t"), 3)["residual in blocks 1..3"]
    assert b2t == "attention x (raw); feed-forward y + x (raw and block input)"
    span = facts(placement("spannorm"), 3)["residual in blocks 2..3"]
    assert span == "attention x (raw); feed-forward x (block input)"
    deep = facts(placement("deepnorm"), 3)
    assert deep["residual in blocks 1..3"].startswith("attention (2L)^¼·x (raw)")
    assert deep["norms on the stream"] == "6 in 3 blocks"
    peri = facts(placement("peri-ln"), 3)["norms on the stream"]
    assert peri == "0 in 3 blocks, and the embedding norm and the final norm"
