"""Checkpoints of the authors' dense implementation (a fork of OLMo) as our models, and back.

Their switches (`attn_norm`, `ffn_residual_after_norm`, `use_query_norm`, ...) become a `Placement`;
their fused matrices become ours:

    att_proj = [q; k; v]      ff_proj = [up; gate] for SwiGLU (their chunk order)
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hybridnorm.errors import HybridNormError
from hybridnorm.model import ModelConfig, Transformer
from hybridnorm.placements import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    Norm,
    Override,
    Patch,
    Placement,
)

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
_REQUIRED = ("d_model", "n_heads", "n_layers", "vocab_size")
# What a configuration may not ask for, with the value that means "not asked for".
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "alibi": (False, None),
    "include_bias": (False, None),
    "clip_qkv": (None,),
    "norm_after": (False, None),
    "scale_logits": (False, None),
    "rope": (True,),
    "block_type": ("sequential",),
    "activation_type": ("swiglu", "gelu"),
    "layer_norm_type": ("rms", "default", "low_precision"),
}
_INNER = ("q_norm", "k_norm", "v_norm")
_PARTS = {"att_proj", "attn_out", "ff_proj", "ff_out", "attn_norm", "ff_norm", *_INNER}


def from_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Transformer:
    """Our model with the weights of a checkpoint of the authors' dense implementation.

    Args:
        config: their model configuration (`d_model`, `n_heads`, the norm switches,
            `norm_pos_special_config`, ...).
        state_dict: their tensors, with or without the `transformer.` prefix.

    Raises:
        HybridNormError: a switch this library cannot express, or a missing, unexpected or wrongly
            shaped tensor; it is named.
    """
    theirs = {name.removeprefix("transformer."): value for name, value in state_dict.items()}
    if missing := [name for name in _REQUIRED if config.get(name) is None]:
        raise HybridNormError(f"config: missing {missing[0]!r}")
    with torch.device("meta"):
        model = Transformer(_model_config(config), _placement(config))
    model.to_empty(device="cpu")
    names = _names(model, theirs)
    for name, parameter in model.named_parameters():
        _fill(parameter, name, theirs, names)
    if unused := set(theirs) - {source for source, _, _ in names.values()}:
        raise HybridNormError(f"state_dict: unexpected tensor {min(unused)!r}")
    return model


def to_official(
    model: Transformer, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Tensors by our names (by default the parameters; or gradients) in the authors' layout."""
    tensors = dict(model.named_parameters()) if tensors is None else tensors
    parts: dict[str, dict[int, Tensor]] = {}
    for name, (theirs, start, _) in _names(model, {}).items():
        if name in tensors:
            parts.setdefault(f"transformer.{theirs}", {})[start] = tensors[name].detach()
    return {
        name: torch.cat([pieces[start] for start in sorted(pieces)])
        for name, pieces in parts.items()
    }


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


def _placement(config: Mapping[str, Any]) -> Placement:
    for name, allowed in _UNSUPPORTED.items():
        if config.get(name, allowed[0]) not in allowed:
            raise HybridNormError(f"config: {name}={config[name]!r} has no counterpart here")
    base = {name: bool(config.get(name, default)) for name, default in _SWITCHES.items()}
    specials = special_config(config.get("norm_pos_special_config"))
    for layer in specials:
        if not 0 <= layer < config["n_layers"]:
            raise HybridNormError(f"norm_pos_special_config: there is no layer {layer}")
    block = _block(config, base)
    overrides = []
    for layer, switches in sorted(specials.items()):
        special = _block(config, {**base, **switches})
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
        source="the authors' dense implementation",
    )


def _norm(config: Mapping[str, Any], *, affine: bool, axis: str = "head") -> Norm:
    kind = "rms" if config.get("layer_norm_type", "default") == "rms" else "layer"
    return Norm(kind=kind, affine="vector" if affine else "none", axis=axis)  # type: ignore[arg-type]


def _block(config: Mapping[str, Any], on: Mapping[str, bool]) -> BlockSpec:
    stream = _norm(config, affine=bool(config.get("layer_norm_with_affine", True)))
    head_affine = bool(config.get("attention_layer_norm_with_affine", True))
    head = _norm(config, affine=head_affine)
    # OLMo's own switch: q and k norms over the full width.
    full = _norm(config, affine=head_affine, axis="full")
    both = bool(config.get("attention_layer_norm", False))
    skips = {
        part: "normed" if on[f"{part}_norm"] and on[f"{part}_residual_after_norm"] else "raw"
        for part in ("attn", "ffn")
    }
    return BlockSpec(
        attention=AttentionSpec(
            input_norm=stream if on["attn_norm"] else None,
            skip=skips["attn"],  # type: ignore[arg-type]
            q_norm=full if both else head if on["use_query_norm"] else None,
            k_norm=full if both else head if on["use_key_norm"] else None,
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
        rope_theta=float(config.get("rope_theta", 10_000)),
        norm_eps=float(config.get("layer_norm_eps") or 1e-5),
        init_std=config.get("init_std"),
    )


def _names(model: Transformer, theirs: Iterable[str]) -> dict[str, tuple[str, int, int]]:
    """Our parameter names to theirs: the tensor, and the rows of it that are ours."""
    names: dict[str, tuple[str, int, int]] = {}
    fused: dict[str, int] = {}
    context = _context_name(theirs)
    # Within a fused tensor our order of definition is theirs, but for the gate, which is last.
    parameters = sorted(
        model.named_parameters(), key=lambda item: item[0].split(".")[-2] == "gate_proj"
    )
    for name, parameter in parameters:
        target = _their_name(name, context)
        start = fused.get(target, 0)
        fused[target] = start + len(parameter)
        names[name] = (target, start, fused[target])
    return names


def _their_name(name: str, context: str) -> str:
    if not name.startswith("blocks."):
        module, kind = name.rsplit(".", 1)
        known = {
            "embedding": "wte",
            "final_norm": "ln_f",
            "head": "ff_out",
            "embed_norm": "emb_norm",
        }
        return f"{known[module]}.{kind}"
    _, layer, sublayer, *rest = name.split(".")
    part = rest[1] if rest[0] == "branch" else rest[0]
    known = {
        "q_proj": "att_proj",
        "k_proj": "att_proj",
        "v_proj": "att_proj",
        "o_proj": "attn_out",
        "up_proj": "ff_proj",
        "gate_proj": "ff_proj",
        "down_proj": "ff_out",
        "input_norm": "attn_norm" if sublayer == "attention" else "ff_norm",
        "context_norm": context,
        **{norm: norm for norm in _INNER},
    }
    return f"blocks.{layer}.{known[part]}.{rest[-1]}"


def _context_name(theirs: Iterable[str]) -> str:
    """What the checkpoint calls its context norm: the one part of a block with no other role."""
    parts = {name.split(".")[2] for name in theirs if name.startswith("blocks.")}
    return min(parts - _PARTS, default="context_norm")


def _fill(
    parameter: Tensor,
    name: str,
    theirs: Mapping[str, Tensor],
    names: Mapping[str, tuple[str, int, int]],
) -> None:
    source, start, stop = names[name]
    if source not in theirs:
        if name.endswith(".bias"):  # a LayerNorm without bias
            parameter.data.zero_()
            return
        raise HybridNormError(f"state_dict: missing tensor {source!r}")
    total = max(end for tensor, _, end in names.values() if tensor == source)
    expected = (total, *parameter.shape[1:])
    if theirs[source].shape != expected:
        raise HybridNormError(
            f"state_dict: {source!r} has shape {tuple(theirs[source].shape)}, expected {expected}"
        )
    parameter.data.copy_(theirs[source][start:stop])
