"""Our configuration and placement as those of `transformers`, and back."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.interop.huggingface.configuration_hybridnorm import HybridNormConfig
from hybridnorm.model import ModelConfig, scheme, standard_deviation
from hybridnorm.placements import (
    Norm,
    Placement,
    Scale,
    Sublayer,
    placement_from_dict,
    placement_to_dict,
)

_ACTIVATIONS = {"swiglu": ("silu", True), "gelu": ("gelu", False)}
_AUTO_MAP = {
    "AutoConfig": "configuration_hybridnorm.HybridNormConfig",
    "AutoModel": "modeling_hybridnorm.HybridNormModel",
    "AutoModelForCausalLM": "modeling_hybridnorm.HybridNormForCausalLM",
}
# Our matrices by their names there; those of a block are looked up in each.
_MATRICES = {
    **{f"{name}_proj": f"attention.branch.{name}_proj" for name in "qkvo"},
    **{f"{name}_proj": f"feed_forward.branch.{name}_proj" for name in ("gate", "up", "down")},
    "router": "feed_forward.branch.router",
    "gate_down": "feed_forward.input_norm.gate_down",
}
_LATER = [("output_gate", "none")]
"""Left out, as exports made before there were such fields do not have them."""


def to_config(config: ModelConfig, placement: Placement, **others: Any) -> HybridNormConfig:
    """The configuration for `transformers`; `others` are fields that a `ModelConfig` lacks."""
    hidden_act, gated = _ACTIVATIONS[config.activation]
    return HybridNormConfig(
        **describe(placement, config),
        **common_fields(config),
        intermediate_size=config.d_ff,
        hidden_act=hidden_act,
        gated_mlp=gated,
        num_experts=config.n_experts,
        num_experts_per_tok=config.top_k,
        moe_intermediate_size=config.expert_width,
        norm_topk_prob=config.norm_topk_prob,
        n_shared_experts=config.n_shared_experts,
        moe_every=config.moe_every,
        initializer_range=config.sigma,
        auto_map=dict(_AUTO_MAP),
        **others,
    )


def common_fields(config: ModelConfig) -> dict[str, Any]:
    """The shape in the words that all architectures share."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
    }


def model_config(config: Any) -> ModelConfig:
    """The `ModelConfig` of a configuration of `transformers`, ours or a stock one.

    Raises:
        HybridNormError: a setting that has no counterpart here; it is named.
    """
    activation = (config.hidden_act, getattr(config, "gated_mlp", True))
    known = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
    if activation not in known:
        raise HybridNormError(f"hidden_act={config.hidden_act!r} has no counterpart here")
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise HybridNormError(f"rope_type={rope['rope_type']!r} has no counterpart here")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        raise HybridNormError(
            f"head_dim={head_dim} times {config.num_attention_heads} heads is not "
            f"hidden_size {config.hidden_size}, as it must be here"
        )
    shape = ModelConfig(
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        d_ff=config.intermediate_size,
        vocab_size=config.vocab_size,
        tie_embeddings=config.tie_word_embeddings,
        activation=known[activation],  # type: ignore[arg-type]
        rope_theta=rope.get("rope_theta", 10_000.0),
        norm_eps=config.rms_norm_eps,
        **_experts(config),
    )
    sigma = getattr(config, "initializer_range", shape.sigma)
    return shape if sigma == shape.sigma else replace(shape, init_std=sigma)


def from_config(config: HybridNormConfig) -> tuple[ModelConfig, Placement]:
    """Our configuration and placement of an export.

    Raises:
        HybridNormError: the configuration has no placement, or one that contradicts itself.
    """
    shape = model_config(config)
    resolved = config.placement if isinstance(config.placement, dict) else {}
    if "definition" not in resolved:
        raise HybridNormError("placement.definition is missing; export the model again")
    placement = placement_from_dict(resolved["definition"])
    # A definition may be older than a word for the same.
    if resolve(placement, shape) | {"definition": resolved["definition"]} != resolved:
        raise HybridNormError(
            "placement.definition is not what placement.kinds say; export the model again"
        )
    return shape, placement


def describe(placement: Placement, config: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration that come from the placement: its norms, its initialization."""
    return {
        "placement": resolve(placement, config),
        "initializer": _deviations(config, scheme(config, placement)),
    }


def resolve(placement: Placement, config: ModelConfig) -> dict[str, Any]:
    """What every kind of block does, with a number for every power law.

    `definition` is the placement in our own words, so that an import finds it again; the model
    does not read it.
    """
    kinds: list[dict[str, Any]] = []
    layers: list[int] = []
    for layer in range(config.n_layers):
        block = placement.block(layer, config.n_layers)
        value = _resolver(layer, config)
        kind = {
            "attention": _sublayer(block.attention, value),
            "feed_forward": _sublayer(block.feed_forward, value),
            "experts": config.has_experts(layer),
        }
        if block.topology == "parallel":
            kind |= {"parallel": True, "shared_norm": value(block.shared_norm)}
        if block.leak:
            kind["leak"] = True
        if kind not in kinds:
            kinds.append(kind)
        layers.append(kinds.index(kind))
    first, last = _resolver(0, config), _resolver(config.n_layers - 1, config)
    return {
        "definition": placement_to_dict(placement),
        "kinds": kinds,
        "layers": layers,
        "embed_scale": first(placement.embed_scale),
        "embed_norm": first(placement.embed_norm),
        "final_norm": last(placement.final(config.n_layers)),
    }


def _sublayer(spec: Sublayer, value: Callable[[Any], Any]) -> dict[str, Any]:
    found = {f.name: value(getattr(spec, f.name)) for f in fields(spec)}
    return {name: field for name, field in found.items() if (name, field) not in _LATER}


def _resolver(layer: int, config: ModelConfig) -> Callable[[Any], Any]:
    """A function that turns a field of block `layer` into what JSON can hold."""

    def number(scale: Scale) -> float:
        return scale.at(layer, config.n_layers, config.d_model)

    def value(field: Any) -> Any:
        if isinstance(field, Norm):
            norm = {
                "kind": field.kind,
                "axis": field.axis,
                "affine": {"none": False, "vector": True}.get(field.affine, field.affine),
                "zero_centered": field.zero_centered,
                "eps": config.norm_eps if field.eps is None else field.eps,
                "gain_init": number(field.gain_init),
                "alpha_init": field.alpha_init,
            }
            return norm | {"gate": field.gate} if field.gate else norm
        if isinstance(field, Scale):
            factor = {"value": number(field), "learned": field.learned}
            return None if factor == {"value": 1.0, "learned": "none"} else factor
        return field

    return value


def _deviations(config: ModelConfig, init: str) -> dict[str, float | list[float]]:
    """The standard deviations of matrices under scheme `init`, where they are not sigma."""
    found: dict[str, float | list[float]] = {
        "embed_tokens": standard_deviation(config, init, "embedding.weight"),
        "lm_head": standard_deviation(config, init, "head.weight"),
    }
    for theirs, ours in _MATRICES.items():
        layers = range(config.n_layers)
        each = [standard_deviation(config, init, f"blocks.{n}.{ours}.weight") for n in layers]
        found[theirs] = each[0] if len(set(each)) == 1 else each
    return {name: std for name, std in found.items() if std != config.sigma}


def _experts(config: Any) -> dict[str, Any]:
    n_experts = getattr(config, "num_local_experts", 0) or getattr(config, "num_experts", 0)
    if not n_experts:
        return {}
    return {
        "n_experts": n_experts,
        "top_k": config.num_experts_per_tok,
        "d_expert": getattr(config, "moe_intermediate_size", None),
        "norm_topk_prob": getattr(config, "norm_topk_prob", True),  # Mixtral has no such field
        "n_shared_experts": getattr(config, "n_shared_experts", 0),
        "moe_every": getattr(config, "moe_every", 1),
    }
