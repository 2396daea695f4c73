"""The vocabulary: a normalization placement as data.

A sublayer F (attention or feed-forward) is a function of the stream x, and of x_block, the stream
at the entry of its block:

    n  = input_norm(x)                                   # or x
    b  = output_norm(F(input_scale * n))                 # or the bare branch
    r  = {raw: x, normed: n, block_input: x_block, raw+block_input: x + x_block}[skip]
    x' = post_norm(skip_scale * r + branch_scale * b)    # or the bare sum

In a parallel block (`topology`) both branches read x_block, or shared_norm(x_block), in place of x
in the first line. A block that leaks (GPAS) passes x' - silu(g) * stop_gradient(x') on after both
sublayers, with one learned g that starts at 0.

Everything here is immutable, validated when built, and free of torch.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal, TypeVar, get_args

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.placements.override import Override, Patch
from hybridnorm.ranges import NotNegative, Range, Ranged

Kind = Literal["rms", "layer", "l2", "dyt", "derf"]
Affine = Literal["none", "scalar", "vector"]
Axis = Literal["head", "full"]
OutputGate = Literal["none", "head", "element"]
Skip = Literal["raw", "normed", "block_input", "raw+block_input"]
Topology = Literal["sequential", "parallel"]
Learned = Literal["none", "scalar", "channel"]
Init = Literal["normal", "depth-scaled", "megatron", "deepnorm", "subln", "tiny"]


def check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `HybridNormError` naming `field` unless `value` is one of `choices`."""
    if value not in choices:
        raise HybridNormError(f"{field}: unknown value {value!r}; {nearest(str(value), choices)}")


Value = Annotated[float, Range(at_least=-1_000_000_000, at_most=1_000_000_000)]
Power = Annotated[float, Range(at_least=-4, at_most=4)]
"""The literature stays below 1, and large powers overflow."""
Rank = Annotated[int, Range(at_least=0, at_most=100_000)]


@dataclass(frozen=True, kw_only=True)
class Scale(Ranged):
    """A factor: `value * (l+1)^layer_power * L^depth_power * d_model^width_power`.

    l is the block's index from 0, L the number of blocks. Where `learned`, this is the initial
    value of a scalar, or of one entry per channel.
    """

    value: Value = 1.0
    layer_power: Power = 0.0
    depth_power: Power = 0.0
    width_power: Power = 0.0
    learned: Learned = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("learned", self.learned, get_args(Learned))

    @property
    def is_one(self) -> bool:
        return self == Scale()

    def at(self, layer: int, n_layers: int, d_model: int) -> float:
        """The factor as a number for block `layer` (from 0) of `n_layers`."""
        return self.value * math.prod(
            (
                math.pow(layer + 1, self.layer_power),
                math.pow(n_layers, self.depth_power),
                math.pow(d_model, self.width_power),
            )
        )


ONE = Scale()
HEAD_NORMS = ("q_norm", "k_norm", "v_norm", "context_norm")
"""The fields whose norms act on heads, one by one or (`axis = "full"`) all together."""
_UNGATED = (*HEAD_NORMS, "mid_norm", "embed_norm", "final_norm")


@dataclass(frozen=True, kw_only=True)
class Norm(Ranged):
    """A normalization. `eps` None takes the model's; `axis` matters only inside attention.

    `affine` is what it is multiplied by: nothing, one learned number, or one per channel. A `gate`
    of a rank r above 0 multiplies the result y by sigmoid(W_up silu(W_down y)), W_up zero at first.
    """

    kind: Kind = "rms"
    affine: Affine = "vector"
    gain_init: Scale = ONE
    zero_centered: bool = False
    eps: NotNegative | None = None
    axis: Axis = "head"
    alpha_init: Value = 0.5
    gate: Rank = 0

    @property
    def has_bias(self) -> bool:
        return self.affine == "vector" and self.kind in ("layer", "dyt", "derf")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, get_args(Kind))
        check_choice("affine", self.affine, get_args(Affine))
        check_choice("axis", self.axis, get_args(Axis))
        if self.gain_init.learned != "none":
            raise HybridNormError(
                "gain_init: a gain is learned already; set only its initial value"
            )
        if self.affine == "none" and (self.zero_centered or not self.gain_init.is_one):
            raise HybridNormError("affine: a norm without a gain has no gain_init or zero_centered")
        if self.kind in ("dyt", "derf") and self.affine != "vector":
            raise HybridNormError(f"affine: {self.kind} always has its gain and bias")


def _check_gates(spec: object) -> None:
    """Raise `HybridNormError` where a norm that has no gate in the literature is given one."""
    for name, norm in norms_of(spec).items():
        if norm.gate and name in _UNGATED:
            raise HybridNormError(f"{name}.gate: only the norms around a branch have gates")


def norms_of(spec: object) -> dict[str, Norm]:
    """The norms among a spec's fields, by field name."""
    values = {f.name: getattr(spec, f.name) for f in fields(spec)}  # type: ignore[arg-type]
    return {name: value for name, value in values.items() if isinstance(value, Norm)}


@dataclass(frozen=True, kw_only=True)
class Sublayer:
    """Norms, scales and skip around one branch (the four lines at the top of this file)."""

    input_norm: Norm | None = None
    input_scale: Scale = ONE
    output_norm: Norm | None = None
    skip: Skip = "raw"
    skip_scale: Scale = ONE
    branch_scale: Scale = ONE
    post_norm: Norm | None = None

    @property
    def scales(self) -> dict[str, Scale]:
        """By field name."""
        return {name: getattr(self, name) for name in ("input_scale", "skip_scale", "branch_scale")}

    def __post_init__(self) -> None:
        _check_gates(self)
        check_choice("skip", self.skip, get_args(Skip))
        if self.skip == "normed" and self.input_norm is None:
            raise HybridNormError("skip: 'normed' carries the input norm, so it needs input_norm")


@dataclass(frozen=True, kw_only=True)
class AttentionSpec(Sublayer):
    """The attention sublayer; its inner norms act before RoPE, the context norm before W_o.

    With an `output_gate` what W_o reads is multiplied by sigmoid(n W_gate), n the branch's input:
    one number for each head, or for each of its elements.
    """

    q_norm: Norm | None = None
    k_norm: Norm | None = None
    v_norm: Norm | None = None
    context_norm: Norm | None = None
    output_gate: OutputGate = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("output_gate", self.output_gate, get_args(OutputGate))

    def gate_width(self, n_heads: int, d_model: int) -> int:
        """How many numbers the output gate has; 0 where there is none."""
        return {"none": 0, "head": n_heads, "element": d_model}[self.output_gate]


@dataclass(frozen=True, kw_only=True)
class FeedForwardSpec(Sublayer):
    """The feed-forward (or MoE) sublayer; `mid_norm` acts on the hidden activation."""

    mid_norm: Norm | None = None


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """What one block does: its attention sublayer, then its feed-forward sublayer.

    In a parallel one both read the block's input, through `shared_norm` where there is one.
    """

    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    topology: Topology = "sequential"
    shared_norm: Norm | None = None
    leak: bool = False

    def __post_init__(self) -> None:
        check_choice("topology", self.topology, get_args(Topology))
        if self.topology == "parallel" and self.feed_forward.skip != "raw":
            raise HybridNormError(
                "feed_forward.skip: only 'raw' keeps what attention adds to a parallel block"
            )
        sublayers = (self.attention, self.feed_forward)
        if self.leak and any(s.post_norm or s.skip == "normed" for s in sublayers):
            raise HybridNormError("leak: norms on the stream undo it; it is for raw skips alone")
        if self.topology == "sequential" and self.shared_norm:
            raise HybridNormError(
                "shared_norm: the branches of a sequential block read different streams; set "
                'topology = "parallel"'
            )


_Spec = TypeVar("_Spec", AttentionSpec, FeedForwardSpec)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where every norm of a decoder-only transformer sits, and what its residual carries.

    `final_norm` is used where the last sublayer has no post-norm (`final` decides). `init` names
    the initialization the strategy was published with (model/initialization.py); `aliases` are
    other names it is known by.
    """

    name: str
    title: str = ""
    attention: AttentionSpec = AttentionSpec()
    feed_forward: FeedForwardSpec = FeedForwardSpec()
    overrides: tuple[Override, ...] = ()
    embed_norm: Norm | None = None
    embed_scale: Scale = ONE
    final_norm: Norm | None = Norm()
    topology: Topology = "sequential"
    shared_norm: Norm | None = None
    leak: bool = False
    init: Init = "normal"
    source: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("init", self.init, get_args(Init))
        _check_gates(self)
        if self.embed_scale.layer_power:
            raise HybridNormError(
                "embed_scale.layer_power: the embedding is in no block; remove it"
            )
        # A broken override must fail when the placement is read, not when the model is built.
        self._block(self.attention, self.feed_forward)
        for i, override in enumerate(self.overrides):
            self._block(
                _patched(self.attention, override.attention, f"overrides[{i}].attention"),
                _patched(self.feed_forward, override.feed_forward, f"overrides[{i}].feed_forward"),
            )

    def block(self, layer: int, n_layers: int) -> BlockSpec:
        """The spec of block `layer` (from 0) of `n_layers`, overrides applied in order.

        Raises:
            HybridNormError: the overrides contradict each other in this block.
        """
        if not 0 <= layer < n_layers:
            raise HybridNormError(f"layer {layer} is not one of {n_layers} blocks")
        attention, feed_forward = self.attention, self.feed_forward
        for override in self.overrides:
            if override.selects(layer, n_layers):
                where = f"overrides: in block {layer + 1} of {n_layers}, "
                attention = _patched(attention, override.attention, f"{where}attention")
                feed_forward = _patched(feed_forward, override.feed_forward, f"{where}feed_forward")
        return self._block(attention, feed_forward)

    def _block(self, attention: AttentionSpec, feed_forward: FeedForwardSpec) -> BlockSpec:
        return BlockSpec(
            attention=attention,
            feed_forward=feed_forward,
            topology=self.topology,
            shared_norm=self.shared_norm,
            leak=self.leak,
        )

    def final(self, n_layers: int) -> Norm | None:
        """The norm before the head: a last sublayer that ends in a post-norm needs no second one.

        It depends on that sublayer, not on what the placement is called: HybridNorm in its
        post-norm spelling still ends in a branch, so it keeps the final norm.
        """
        last = self.block(n_layers - 1, n_layers).feed_forward
        return None if last.post_norm else self.final_norm


def _patched(spec: _Spec, patch: Patch, where: str) -> _Spec:
    try:
        return replace(spec, **dict(patch)) if patch else spec  # type: ignore[arg-type]
    except HybridNormError as error:
        raise HybridNormError(f"{where}.{error}") from None
