"""Configurations of the authors' implementations, forks of OLMo (dense) and OLMoE (with experts).

Their switches (`attn_norm`, `ffn_residual_after_norm`, `use_query_norm`, ...) become a `Placement`.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.model import ModelConfig
from hybridnorm.placements import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    Norm,
    Override,
    Patch,
    Placement,
)
from hybridnorm.ranges import Count, Layers, Positive, Ranged
from hybridnorm.strict_toml import build

_SWITCHES = {
    "attn_norm": True,
    "ffn_norm": True,
    "attn_residual_after_norm": False,
    "ffn_residual_after_norm": False,
    "use_query_norm": False,
    "use_key_norm": False,
    "use_value_norm": False,
    "use_context_norm": False,
}
_SHORT = {"attn_residual": "attn_residual_after_norm", "ffn_residual": "ffn_residual_after_norm"}
_SHORT |= {f"{part}_norm": f"use_{part}_norm" for part in ("query", "key", "value", "context")}


@dataclass(frozen=True, kw_only=True)
class _Settings(Ranged):
    """What is read of their configurations, of its type."""

    d_model: Count
    n_heads: Count
    n_layers: Layers
    vocab_size: Count
    embedding_size: Count | None = None
    n_kv_heads: Count | None = None
    mlp_hidden_size: Count | None = None
    mlp_ratio: Count | None = None
    max_sequence_length: Count | None = None
    rope_theta: Positive | None = None
    layer_norm_eps: Positive | None = None
    init_std: Positive | None = None
    multi_query_attention: bool | None = None
    weight_tying: bool | None = None
    embedding_layer_norm: bool | None = None
    layer_norm_with_affine: bool | None = None
    attention_layer_norm: bool | None = None
    attention_layer_norm_with_affine: bool | None = None
    attn_norm: bool | None = None
    ffn_norm: bool | None = None
    attn_residual_after_norm: bool | None = None
    ffn_residual_after_norm: bool | None = None
    use_query_norm: bool | None = None
    use_key_norm: bool | None = None
    use_value_norm: bool | None = None
    use_context_norm: bool | None = None
    moe_num_experts: Count | None = None
    moe_top_k: Count | None = None
    moe_shared_expert: bool | None = None


_READ = {field.name for field in fields(_Settings)}
_FLOATS = {"rope_theta", "layer_norm_eps", "init_std"}
# What a configuration may not ask for, with the value that means "not asked for".
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "alibi": (False, None),
    "include_bias": (False, None),
    "clip_qkv": (None,),
    "norm_after": (False, None),
    "scale_logits": (False, None),
    "rope": (True,),
    "block_type": ("sequential", "moe"),
    "activation_type": ("swiglu", "gelu"),
    "layer_norm_type": ("rms", "default", "low_precision"),
}
_UNSUPPORTED_OF_EXPERTS: dict[str, tuple[object, ...]] = {
    "activation_type": ("swiglu",),
    "moe_dropless": (True,),
}
# What a model with experts has, or what changes none of its numbers.
_OF_EXPERTS = {
    "moe_num_experts",
    "moe_top_k",
    "moe_shared_expert",
    "moe_mlp_impl",
    "moe_capacity_factor",
    "moe_loss_weight",
    "moe_zloss_weight",
    "moe_lbl_in_fp32",
    "moe_log_expert_assignment",
}


def model_and_placement(
    config: Mapping[str, Any], q_gain: int | None
) -> tuple[ModelConfig, Placement]:
    """What a configuration of theirs is here.

    Args:
        q_gain: width of the gain of the norm of queries, where there is one. OLMo and OLMoE take
            that norm over the full width, the authors over each head, under the same name.

    Raises:
        HybridNormError: a setting without a counterpart here, or a missing one; it is named.
    """
    # What is null in their files is not said.
    config = {n: _number(v) if n in _FLOATS else v for n, v in config.items() if v is not None}
    build(_Settings, {name: config[name] for name in _READ & config.keys()}, "config")
    if config["vocab_size"] > config.get("embedding_size", config["vocab_size"]):
        raise HybridNormError(
            f"config.vocab_size: {config['vocab_size']} is more than embedding_size "
            f"{config['embedding_size']}"
        )
    _check_supported(config)
    return _model_config(config), _placement(config, _qk_axis(config, q_gain))


def _number(value: object) -> object:
    """A number that YAML 1.1 takes for text, as it does 1e-05."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _has_experts(config: Mapping[str, Any]) -> bool:
    return config.get("block_type") == "moe"


def _check_supported(config: Mapping[str, Any]) -> None:
    supported = dict(_UNSUPPORTED)
    if _has_experts(config):
        unknown = {name for name in config if name.startswith("moe_")} - _OF_EXPERTS
        supported |= dict.fromkeys(sorted(unknown), (None, False)) | _UNSUPPORTED_OF_EXPERTS
    for name, allowed in supported.items():
        if config.get(name, allowed[0]) not in allowed:
            raise HybridNormError(f"config: {name}={config[name]!r} has no counterpart here")


def _qk_axis(config: Mapping[str, Any], q_gain: int | None) -> str:
    of_a_head = config.get("use_query_norm") or config.get("use_key_norm")
    if of_a_head or not config.get("attention_layer_norm"):
        return "head"
    if not config.get("attention_layer_norm_with_affine", True):
        raise HybridNormError(
            "config: attention_layer_norm without a gain may be of a head (the authors) or of the "
            "full width (OLMo); set use_query_norm and use_key_norm if it is of a head"
        )
    return "full" if q_gain == config["d_model"] else "head"


def special_config(text: object) -> dict[int, dict[str, bool]]:
    """The per-layer switches of `norm_pos_special_config`, by layer (from 0), full names.

    Their string is a Python literal in underscores, `"_{0:{'attn_norm':True}}_"`, whose keys are
    layers or tuples of layers. It is parsed as a literal, never evaluated.

    Raises:
        HybridNormError: not such a literal, or an unknown switch.
    """
    if not text:
        return {}
    try:
        table: Any = ast.literal_eval(text.strip("_ ")) if isinstance(text, str) else text
        items = [
            (layer, switches)
            for key, switches in (table or {}).items()
            for layer in (key if isinstance(key, tuple | list) else (key,))
        ]
        found: dict[int, dict[str, bool]] = {}
        for layer, switches in items:
            named = {_SHORT.get(name, name): bool(value) for name, value in switches.items()}
            found[int(layer)] = {**found.get(int(layer), {}), **named}
    except (ValueError, SyntaxError, AttributeError, TypeError, RecursionError, MemoryError):
        raise HybridNormError(f"norm_pos_special_config: cannot read {text!r:.99}") from None
    for switch in {name for named in found.values() for name in named} - set(_SWITCHES):
        raise HybridNormError(f"norm_pos_special_config: unknown switch {switch!r}")
    return found


def _placement(config: Mapping[str, Any], qk_axis: str) -> Placement:
    base = {name: bool(config.get(name, default)) for name, default in _SWITCHES.items()}
    specials = special_config(config.get("norm_pos_special_config"))
    for layer in specials:
        if not 0 <= layer < config["n_layers"]:
            raise HybridNormError(f"norm_pos_special_config: there is no layer {layer}")
    block = _block(config, base, qk_axis)
    overrides = []
    for layer, switches in sorted(specials.items()):
        special = _block(config, {**base, **switches}, qk_axis)
        overrides.append(
            Override(
                layers=f"blocks {layer + 1}",
                attention=_patch(block.attention, special.attention),
                feed_forward=_patch(block.feed_forward, special.feed_forward),
            )
        )
    kind = _norm(config, affine=bool(config.get("layer_norm_with_affine", True)))
    return Placement(
        name="official",
        attention=block.attention,
        feed_forward=block.feed_forward,
        overrides=tuple(overrides),
        embed_norm=kind if config.get("embedding_layer_norm") else None,
        final_norm=kind,
        init="megatron",
        source="the authors' implementation",
    )


def _norm(config: Mapping[str, Any], *, affine: bool, axis: str = "head") -> Norm:
    kind = "rms" if config.get("layer_norm_type", "default") == "rms" else "layer"
    return Norm(kind=kind, affine="vector" if affine else "none", axis=axis)  # type: ignore[arg-type]


def _block(config: Mapping[str, Any], on: Mapping[str, bool], qk_axis: str) -> BlockSpec:
    stream = _norm(config, affine=bool(config.get("layer_norm_with_affine", True)))
    head_affine = bool(config.get("attention_layer_norm_with_affine", True))
    head = _norm(config, affine=head_affine)
    qk = _norm(config, affine=head_affine, axis=qk_axis)
    both = bool(config.get("attention_layer_norm", False))
    skips = {
        part: "normed" if on[f"{part}_norm"] and on[f"{part}_residual_after_norm"] else "raw"
        for part in ("attn", "ffn")
    }
    return BlockSpec(
        attention=AttentionSpec(
            input_norm=stream if on["attn_norm"] else None,
            skip=skips["attn"],  # type: ignore[arg-type]
            q_norm=qk if both or on["use_query_norm"] else None,
            k_norm=qk if both or on["use_key_norm"] else None,
            v_norm=head if on["use_value_norm"] else None,
            context_norm=head if on["use_context_norm"] else None,
        ),
        feed_forward=FeedForwardSpec(
            input_norm=stream if on["ffn_norm"] else None,
            skip=skips["ffn"],  # type: ignore[arg-type]
        ),
    )


def _patch(base: Any, special: Any) -> Patch:
    pairs = ((f.name, getattr(special, f.name)) for f in fields(base))
    return tuple((name, value) for name, value in pairs if value != getattr(base, name))


def _model_config(config: Mapping[str, Any]) -> ModelConfig:
    d_model, n_heads = int(config["d_model"]), int(config["n_heads"])
    hidden = config.get("mlp_hidden_size") or int(config.get("mlp_ratio", 4)) * d_model
    gated = config.get("activation_type", "swiglu") == "swiglu"
    kv_heads = config.get("n_kv_heads")
    if kv_heads is None and config.get("multi_query_attention"):
        kv_heads = 1
    # Where it is not said they build 8 experts, of which a token takes 2. The weights of a token's
    # experts are never divided by their sum: nothing in their configuration asks for it.
    moe = config if _has_experts(config) else {"moe_num_experts": 0}
    return ModelConfig(
        d_model=d_model,
        n_layers=int(config["n_layers"]),
        n_heads=n_heads,
        n_kv_heads=kv_heads,
        d_ff=hidden // 2 if gated else hidden,
        # Their logits cover the padding rows of the vocabulary, too.
        vocab_size=int(config.get("embedding_size") or config["vocab_size"]),
        vocab_multiple_of=1,
        tie_embeddings=bool(config.get("weight_tying", True)),
        activation="swiglu" if gated else "gelu",
        n_experts=int(moe.get("moe_num_experts", 8)),
        top_k=int(moe.get("moe_top_k", 2)),
        n_shared_experts=int(bool(moe.get("moe_shared_expert"))),
        rope_theta=float(config.get("rope_theta", 10_000)),
        norm_eps=float(config.get("layer_norm_eps") or 1e-5),
        init_std=config.get("init_std"),
    )
