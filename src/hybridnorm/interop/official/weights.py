"""Checkpoints of the authors' implementations (forks of OLMo and OLMoE) as our models, and back.

Their fused matrices become ours, and so do the experts, which they have below each other:

    att_proj = [q; k; v]      ff_proj = [up; gate] for SwiGLU (their chunk order)
    w1, v1, w2 = gate, up and transposed down projections, each (experts * width, d_model)
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybridnorm.errors import HybridNormError
from hybridnorm.interop.official.config import model_and_placement
from hybridnorm.model import ModelConfig, Transformer

_OUTSIDE = {"embedding": "wte", "embed_norm": "emb_norm", "final_norm": "ln_f", "head": "ff_out"}
_IN_BLOCK = {
    "q_proj": "att_proj",
    "k_proj": "att_proj",
    "v_proj": "att_proj",
    "o_proj": "attn_out",
    "up_proj": "ff_proj",
    "gate_proj": "ff_proj",
    "down_proj": "ff_out",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
    "v_norm": "v_norm",
    "context_norm": "c_norm",
}
_OF_EXPERTS = {
    "router.weight": "router.layer.weight",
    "gate_proj.weight": "experts.mlp.w1",
    "up_proj.weight": "experts.mlp.v1",
    "down_proj.weight": "experts.mlp.w2",
    "shared.gate_proj.weight": "shared_expert.gate_proj.weight",
    "shared.up_proj.weight": "shared_expert.up_proj.weight",
    "shared.down_proj.weight": "shared_expert.down_proj.weight",
}


def from_official(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Transformer:
    """Our model with the weights of a checkpoint of the authors.

    Args:
        config: their model configuration (`d_model`, `n_heads`, `block_type`, the norm switches,
            `norm_pos_special_config`, `moe_num_experts`, ...).
        state_dict: their tensors, with or without the `transformer.` prefix.

    Raises:
        HybridNormError: a setting this library cannot express, or a missing, unexpected, wrongly
            shaped or damaged tensor; it is named.
    """
    theirs = {
        name.removeprefix("transformer."): _checked(name, value)
        for name, value in state_dict.items()
    }
    q_gain = theirs.get("blocks.0.q_norm.weight")
    known = model_and_placement(config, None if q_gain is None else len(q_gain))
    with torch.device("meta"):
        model = Transformer(*known)
    model.to_empty(device="cpu")
    names = _names(model)
    for name, parameter in model.named_parameters():
        _fill(parameter, name, theirs, names)
    if unused := set(theirs) - {source for source, _, _ in names.values()}:
        raise HybridNormError(f"state_dict: unexpected tensor {min(unused)!r}")
    return model


def _checked(name: str, value: Any) -> Tensor:
    plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
    if not (plain and value.is_floating_point() and value.ndim and value.isfinite().all()):
        raise HybridNormError(f"state_dict: {name!r} is no plain tensor of finite numbers")
    found: Tensor = value
    return found


def to_official(
    model: Transformer, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Tensors by our names (by default the parameters; or gradients) in the authors' layout."""
    tensors = dict(model.named_parameters()) if tensors is None else tensors
    parts: dict[str, dict[int, Tensor]] = {}
    for name, (theirs, start, _) in _names(model).items():
        if name in tensors:
            ours = _as_theirs(name, tensors[name].detach())
            parts.setdefault(f"transformer.{theirs}", {})[start] = ours.reshape(_flat(ours))
    return {
        name: torch.cat([pieces[start] for start in sorted(pieces)])
        for name, pieces in parts.items()
    }


def _names(model: Transformer) -> dict[str, tuple[str, int, int]]:
    """Our parameter names to theirs: the tensor, and the rows of it that are ours."""
    names: dict[str, tuple[str, int, int]] = {}
    fused: dict[str, int] = {}
    # Within a fused tensor our order of definition is theirs, but for the gate, which is last.
    parameters = sorted(
        model.named_parameters(), key=lambda item: item[0].split(".")[-2] == "gate_proj"
    )
    for name, parameter in parameters:
        target = _their_name(name, model.config)
        start = fused.get(target, 0)
        fused[target] = start + _flat(_as_theirs(name, parameter))[0]
        names[name] = (target, start, fused[target])
    return names


def _their_name(name: str, config: ModelConfig) -> str:
    if not name.startswith("blocks."):
        module, kind = name.rsplit(".", 1)
        return f"{_OUTSIDE[module]}.{kind}"
    _, layer, sublayer, rest = name.split(".", 3)
    part = rest.removeprefix("branch.")
    if part in _OF_EXPERTS and config.has_experts(int(layer)):
        return f"blocks.{layer}.ffn.{_OF_EXPERTS[part]}"
    module, kind = part.split(".")
    input_norm = {"input_norm": "attn_norm" if sublayer == "attention" else "ff_norm"}
    return f"blocks.{layer}.{(_IN_BLOCK | input_norm)[module]}.{kind}"


def _as_theirs(name: str, tensor: Tensor) -> Tensor:
    """A view of a tensor of ours; if it is of experts, `(experts, width, d_model)`."""
    return tensor.mT if tensor.ndim == 3 and name.endswith("down_proj.weight") else tensor


def _flat(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor with experts below each other."""
    shape = tuple(tensor.shape)
    return shape if tensor.ndim < 3 else (shape[0] * shape[1], shape[2])


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
    ours = _as_theirs(name, parameter.data)
    total = max(end for tensor, _, end in names.values() if tensor == source)
    expected = (total, *_flat(ours)[1:])
    if theirs[source].shape != expected:
        raise HybridNormError(
            f"state_dict: {source!r} has shape {tuple(theirs[source].shape)}, expected {expected}"
        )
    ours.copy_(theirs[source][start:stop].reshape(ours.shape))
