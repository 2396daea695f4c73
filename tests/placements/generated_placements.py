"""Placements by hypothesis: any combination of the vocabulary."""

from dataclasses import replace

from hypothesis import assume
from hypothesis import strategies as st

from hybridnorm.errors import HybridNormError
from hybridnorm.placements import Override, Placement
from hybridnorm.placements.spec import (
    AttentionSpec,
    FeedForwardSpec,
    Norm,
    Scale,
    Sublayer,
)

scales = st.builds(
    Scale,
    value=st.floats(-1e6, 1e6),
    layer_power=st.sampled_from([0.0, -0.5, 1.0]),
    depth_power=st.floats(-4, 4),
    width_power=st.sampled_from([0.0, 0.5]),
    learned=st.sampled_from(["none", "scalar", "channel"]),
)


@st.composite
def norms(draw: st.DrawFn, gates: tuple[int, ...] = (0,)) -> Norm:
    kind = draw(st.sampled_from(["rms", "layer", "l2", "dyt", "derf"]))
    pointwise = kind in ("dyt", "derf")
    affine = "vector" if pointwise else draw(st.sampled_from(["none", "scalar", "vector"]))
    has_gain = affine != "none"
    return Norm(
        kind=kind,
        affine=affine,
        gain_init=replace(draw(scales), learned="none") if has_gain else Scale(),
        zero_centered=has_gain and draw(st.booleans()),
        eps=draw(st.none() | st.floats(1e-12, 1e-3)),
        axis=draw(st.sampled_from(["head", "full"])),
        alpha_init=draw(st.floats(0.1, 2)),
        gate=draw(st.sampled_from(gates)),
    )


_AROUND = ("input_norm", "output_norm", "post_norm")


def fields(*norm_names: str) -> st.SearchStrategy[dict[str, object]]:
    """Some fields of a sublayer."""
    return st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(_AROUND, st.none() | norms((0, 4))),
            **dict.fromkeys(norm_names, st.none() | norms()),
            **dict.fromkeys(("input_scale", "skip_scale", "branch_scale"), scales),
            "skip": st.sampled_from(["raw", "normed", "block_input", "raw+block_input"]),
        },
    )


attention_fields = fields("q_norm", "k_norm", "v_norm", "context_norm")
feed_forward_fields = fields("mid_norm")


def built(cls: type[Sublayer], values: dict[str, object]) -> Sublayer:
    assume(values.get("skip") != "normed" or values.get("input_norm"))
    return cls(**values)  # type: ignore[arg-type]


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    overrides = st.builds(
        Override,
        layers=st.sampled_from(["first", "last 2", "every 3", "first 40%", "blocks 2"]),
        attention=attention_fields.map(lambda values: tuple(values.items())),
        feed_forward=feed_forward_fields.map(lambda values: tuple(values.items())),
    )
    topology = draw(st.sampled_from(["sequential", "parallel"]))
    try:
        return Placement(
            name="generated",
            attention=built(AttentionSpec, draw(attention_fields)),  # type: ignore[arg-type]
            feed_forward=built(FeedForwardSpec, draw(feed_forward_fields)),  # type: ignore[arg-type]
            overrides=tuple(draw(st.lists(overrides, max_size=2))),
            embed_norm=draw(st.none() | norms()),
            embed_scale=replace(draw(scales), layer_power=0.0),
            final_norm=draw(st.none() | norms()),
            topology=topology,
            shared_norm=draw(st.none() | norms()) if topology == "parallel" else None,
        )
    except HybridNormError:
        assume(False)
        raise
