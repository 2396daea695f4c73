"""Configurations of the authors' implementations, forks of OLMo (dense) and OLMoE (with experts).

Their switches (`attn_norm`, `ffn_residual_after_norm`, `use_query_norm`, ...) become a `Placement`.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from hybridnorm.errors import HybridNormError
from hybridnorm.model import ModelConfig
from hybridnorm.placements import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    Norm,
    Override,
    Placement,
    patch,
)
from hybridnorm.ranges import Count, Layers, Positive, Ranged
from hybridnorm.strict_toml import build

_Axis = Literal["head", "full"]
_SHORT = {"attn_residual": "attn_residual_after_norm", "ffn_residual": "ffn_residual_after_norm"}
_SHORT |= {f"{part}_norm": f"use_{part}_norm" for part in ("query", "key", "value", "context")}


@dataclass(frozen=True, kw_only=True)
class _Switches:
    """Which norms a block has."""

    attn_norm: bool = True
    ffn_norm: bool = True
    attn_residual_after_norm: bool = False
    ffn_residual_after_norm: bool = False
    use_query_norm: bool = False
    use_key_norm: bool = False
    use_value_norm: bool = False
    use_context_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class _Settings(_Switches, Ranged):
    """What is read of a configuration, with their defaults."""

    d_model: Count
    n_heads: Count
    n_layers: Layers
    vocab_size: Count
    embedding_size: Count | None = None
    n_kv_heads: Count | None = None
    mlp_hidden_size: Count | None = None
    mlp_ratio: Count = 4
    max_sequence_length: Count | None = None
    rope_theta: Positive = 10_000.0
    layer_norm_eps: Positive = 1e-5
    init_std: Positive | None = None
    block_type: str = "sequential"
    activation_type: str = "swiglu"
    layer_norm_type: str = "default"
    multi_query_attention: bool = False
    weight_tying: bool = True
    embedding_layer_norm: bool = False
    layer_norm_with_affine: bool = True
    attention_layer_norm: bool = False
    attention_layer_norm_with_affine: bool = True
    moe_num_experts: Count = 8
    moe_top_k: Count = 2
    moe_shared_expert: bool = False


_SWITCHES = {field.name for field in fields(_Switches)}
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
    said = {n: _number(v) if n in _FLOATS else v for n, v in config.items() if v is not None}
    _check_supported(said)
    read = said.keys() & {field.name for field in fields(_Settings)}
    found = build(_Settings, {name: said[name] for name in read}, "config")
    if found.vocab_size > (found.embedding_size or found.vocab_size):
        raise HybridNormError(
            f"config.vocab_size: {found.vocab_size} is more than embedding_size "
            f"{found.embedding_size}"
        )
    specials = special_config(said.get("norm_pos_special_config"))
    return _model_config(found), _placement(found, specials, _qk_axis(found, q_gain))


def _number(value: object) -> object:
    """A number that YAML 1.1 takes for text, as it does 1e-05."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_supported(config: Mapping[str, Any]) -> None:
    supported = dict(_UNSUPPORTED)
    if config.get("block_type") == "moe":
        unknown = {name for name in config if name.startswith("moe_")} - _OF_EXPERTS
        supported |= dict.fromkeys(sorted(unknown), (None, False)) | _UNSUPPORTED_OF_EXPERTS
    for name, allowed in supported.items():
        if config.get(name, allowed[0]) not in allowed:
            raise HybridNormError(f"config: {name}={config[name]!r} has no counterpart here")


def _qk_axis(config: _Settings, q_gain: int | None) -> _Axis:
    if config.use_query_norm or config.use_key_norm or not config.attention_layer_norm:
        return "head"
    if not config.attention_layer_norm_with_affine:
        raise HybridNormError(
            "config: attention_layer_norm without a gain may be of a head (the authors) or of the "
            "full width (OLMo); set use_query_norm and use_key_norm if it is of a head"
        )
    return "full" if q_gain == config.d_model else "head"


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
    for switch in {name for named in found.values() for name in named} - _SWITCHES:
        raise HybridNormError(f"norm_pos_special_config: unknown switch {switch!r}")
    return found


def _placement(
    config: _Settings, specials: Mapping[int, Mapping[str, Any]], qk_axis: _Axis
) -> Placement:
    for layer in specials:
        if not 0 <= layer < config.n_layers:
            raise HybridNormError(f"norm_pos_special_config: there is no layer {layer}")
    block = _block(config, qk_axis)
    overrides = []
    for layer, switches in sorted(specials.items()):
        special = _block(replace(config, **switches), qk_axis)
        overrides.append(
            Override(
                layers=f"blocks {layer + 1}",
                attention=patch(block.attention, special.attention),
                feed_forward=patch(block.feed_forward, special.feed_forward),
            )
        )
    kind = _norm(config, affine=config.layer_norm_with_affine)
    return Placement(
        name="official",
        attention=block.attention,
        feed_forward=block.feed_forward,
        overrides=tuple(overrides),
        embed_norm=kind if config.embedding_layer_norm else None,
        final_norm=kind,
        init="megatron",
        source="the authors' implementation",
    )


def _norm(config: _Settings, *, affine: bool) -> Norm:
    kind: Literal["rms", "layer"] = "rms" if config.layer_norm_type == "rms" else "layer"
    return Norm(kind=kind, affine="vector" if affine else "none")


def _block(config: _Settings, qk_axis: _Axis) -> BlockSpec:
    stream = _norm(config, affine=config.layer_norm_with_affine)
    head = _norm(config, affine=config.attention_layer_norm_with_affine)
    qk = replace(head, axis=qk_axis)
    both = config.attention_layer_norm
    attn_normed = config.attn_norm and config.attn_residual_after_norm
    ffn_normed = config.ffn_norm and config.ffn_residual_after_norm
    return BlockSpec(
        attention=AttentionSpec(
            input_norm=stream if config.attn_norm else None,
            skip="normed" if attn_normed else "raw",
            q_norm=qk if both or config.use_query_norm else None,
            k_norm=qk if both or config.use_key_norm else None,
            v_norm=head if config.use_value_norm else None,
            context_norm=head if config.use_context_norm else None,
        ),
        feed_forward=FeedForwardSpec(
            input_norm=stream if config.ffn_norm else None,
            skip="normed" if ffn_normed else "raw",
        ),
    )


def _model_config(config: _Settings) -> ModelConfig:
    hidden = config.mlp_hidden_size or config.mlp_ratio * config.d_model
    gated = config.activation_type == "swiglu"
    kv_heads = config.n_kv_heads or (1 if config.multi_query_attention else None)
    # Where it is not said they build 8 experts, of which a token takes 2. The weights of a token's
    # experts are never divided by their sum: nothing in their configuration asks for it.
    experts: dict[str, Any] = {}
    if config.block_type == "moe":
        experts = {
            "n_experts": config.moe_num_experts,
            "top_k": config.moe_top_k,
            "n_shared_experts": int(config.moe_shared_expert),
        }
    return ModelConfig(
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=kv_heads,
        d_ff=hidden // 2 if gated else hidden,
        # Their logits cover the padding rows of the vocabulary, too.
        vocab_size=config.embedding_size or config.vocab_size,
        vocab_multiple_of=1,
        tie_embeddings=config.weight_tying,
        activation="swiglu" if gated else "gelu",
        rope_theta=config.rope_theta,
        norm_eps=config.layer_norm_eps,
        init_std=config.init_std,
        **experts,
    )
