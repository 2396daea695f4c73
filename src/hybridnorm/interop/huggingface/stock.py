"""Placements that are an architecture of `transformers`: which, and what has no place there."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.interop.huggingface.shape import common_fields
from hybridnorm.interop.huggingface.weights import StockNames
from hybridnorm.model import ModelConfig
from hybridnorm.placements import (
    AttentionSpec,
    FeedForwardSpec,
    Norm,
    Placement,
    Scale,
    placement,
)

_PRE = {
    "attention.input_norm": "input_layernorm",
    "feed_forward.input_norm": "post_attention_layernorm",
}
_OUTPUT = {
    "attention.output_norm": "post_attention_layernorm",
    "feed_forward.output_norm": "post_feedforward_layernorm",
}
_FULL = Norm(axis="full")
_OLMOE = Placement(
    name="olmoe",
    title="OLMoE",
    attention=AttentionSpec(input_norm=Norm(), q_norm=_FULL, k_norm=_FULL),
    feed_forward=FeedForwardSpec(input_norm=Norm()),
    source="Muennighoff et al. 2024, arXiv 2409.02060",
)
_NO_PLACE = "has no place for the"
# Settings of theirs that change what is computed, with the values that mean "not used".
_UNUSED: dict[str, tuple[object, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "clip_qkv": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
}


@dataclass(frozen=True)
class Stock:
    """An architecture of `transformers`."""

    prefix: str
    """Of its classes: LlamaConfig, LlamaForCausalLM."""
    placement: Placement
    names: StockNames
    experts: str | None = None
    """Its field for the number of experts."""
    norm_topk_prob: bool | None = None
    """The only choice it has; None: both."""

    def config(self, config: ModelConfig, **others: Any) -> Any:
        """Its configuration for a model of ours that fits."""
        import transformers

        width = {"intermediate_size": config.expert_width if self.experts else config.d_ff}
        experts = {}
        if self.experts:
            experts = {self.experts: config.n_experts, "num_experts_per_tok": config.top_k}
            experts["norm_topk_prob"] = config.norm_topk_prob
        cls = getattr(transformers, f"{self.prefix}Config")
        found = {**common_fields(config), **width, **experts, **others}
        return cls(**found, hidden_act="silu")


STOCK = {
    "llama": Stock("Llama", placement("pre-norm"), _PRE),
    "qwen3": Stock("Qwen3", placement("pre-norm-qk"), _PRE),
    "olmo2": Stock("Olmo2", placement("olmo2"), _OUTPUT),
    "olmoe": Stock("Olmoe", _OLMOE, _PRE, "num_experts"),
    "mixtral": Stock("Mixtral", placement("pre-norm"), _PRE, "num_local_experts", True),
}


def stock(name: str) -> Stock:
    """The architecture called `name`.

    Raises:
        HybridNormError: no such architecture; the nearest name is offered.
    """
    if name not in STOCK:
        raise HybridNormError(f"unknown architecture {name!r}; {nearest(name, STOCK)}")
    return STOCK[name]


def check_fit(name: str, config: ModelConfig, placement: Placement) -> None:
    """Raise `HybridNormError` naming what of a model has no place in the architecture `name`."""
    misfits = list(_misfits(stock(name), config, placement))
    if misfits:
        # What it cannot hold says more than what it would want.
        misfit = next((m for m in misfits if m.startswith(_NO_PLACE)), misfits[0])
        raise HybridNormError(
            f"as: {name} {misfit}; export without --as, which takes every placement"
        )


def check_settings(config: Any) -> None:
    """Raise `HybridNormError` for a setting of a stock configuration that we cannot express."""
    for name, unused in _UNUSED.items():
        if getattr(config, name, None) not in unused:
            if name == "sliding_window" and getattr(config, "use_sliding_window", None) is False:
                continue
            raise HybridNormError(f"{name}={getattr(config, name)!r} has no counterpart here")


def _misfits(stock: Stock, config: ModelConfig, placement: Placement) -> Iterator[str]:
    """What does not fit, in words that follow the architecture's name."""
    if config.activation != "swiglu":
        yield f"has no {config.activation} feed-forward network"
    if bool(config.n_experts) != bool(stock.experts):
        yield f"{'needs' if stock.experts else 'has no'} experts"
    if config.n_shared_experts:
        yield "has no shared experts"
    if config.moe_every > 1:
        yield "has experts in every block"
    if config.n_experts and stock.norm_topk_prob not in (None, config.norm_topk_prob):
        yield f"needs norm_topk_prob = {stock.norm_topk_prob}".lower()
    if placement.embed_norm is not None:
        yield f"{_NO_PLACE} embed_norm"
    if not placement.embed_scale.is_one:
        yield f"{_NO_PLACE} embed_scale"
    if placement.topology != "sequential":
        yield f"{_NO_PLACE} topology {placement.topology}"
    if placement.leak:
        yield f"{_NO_PLACE} leak"
    wanted = stock.placement.block(0, 1)
    for layer in range(config.n_layers):
        found = placement.block(layer, config.n_layers)
        for part in ("attention", "feed_forward"):
            sublayers = getattr(found, part), getattr(wanted, part)
            for field in fields(sublayers[0]):
                ours, theirs = (_plain(getattr(s, field.name), layer, config) for s in sublayers)
                if ours != theirs:
                    yield f"{_how(ours, theirs)} {part}.{field.name} (block {layer + 1})"
    final = _plain(placement.final(config.n_layers), config.n_layers - 1, config)
    if final != Norm():
        yield f"{_how(final, Norm())} final_norm"


def _how(ours: object, theirs: object) -> str:
    if theirs in (None, "none"):
        return _NO_PLACE
    return "needs the" if ours is None else "has another"


def _plain(field: Any, layer: int, config: ModelConfig) -> Any:
    """A field without what weights or the configuration say anyway; None for a scale of 1."""
    if isinstance(field, Norm):
        eps = None if field.eps in (None, config.norm_eps) else field.eps
        return replace(field, gain_init=Scale(), eps=eps)
    if isinstance(field, Scale) and field.learned == "none":
        factor = field.at(layer, config.n_layers, config.d_model)
        return None if factor == 1.0 else factor
    return field
