"""Our parameters by the names that `transformers` has for them.

    embedding                     model.embed_tokens
    blocks.0.attention.branch.*   model.layers.0.self_attn.*
    blocks.0.feed_forward.branch  model.layers.0.mlp
    blocks.0.attention.*_norm     model.layers.0.attention_residual.*_norm, or a stock name

Experts are packed as theirs are: gate and up in one tensor. The rows that pad our vocabulary are
left out.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hybridnorm.errors import HybridNormError
from hybridnorm.model import Transformer

StockNames = Mapping[str, str]
"""What an architecture calls the norms of a block, by ours: `attention.input_norm`, ..."""
_OUTSIDE = {
    "embedding": "model.embed_tokens",
    "embed_scale": "model.embed_scale",
    "embed_norm": "model.embed_norm",
    "final_norm": "model.norm",
    "head": "lm_head",
}
_BRANCH = {"attention": "self_attn", "feed_forward": "mlp"}
_IN_BRANCH = {"router": "gate", "shared": "shared_experts"}
_HALVES = {"gate_proj": 0, "up_proj": 1}


class Source(NamedTuple):
    """Where a parameter of ours is: the tensor, and which half of its rows where not all."""

    name: str
    half: int | None = None


def sources(model: Transformer, norms: StockNames) -> dict[str, Source]:
    """Where the parameters of `model` are in an architecture, by our names.

    Args:
        norms: what it calls the norms of a block; empty for our own.
    """
    return {name: _source(model, name, norms) for name, _ in model.named_parameters()}


def to_theirs(model: Transformer, norms: StockNames) -> dict[str, Tensor]:
    """The weights of `model` by their names."""
    halves: dict[str, dict[int, Tensor]] = {}
    weights = dict(model.named_parameters())
    for ours, (theirs, half) in sources(model, norms).items():
        weight = weights[ours].detach()
        if theirs in _OUTSIDE_ROWS:
            weight = weight[: model.config.vocab_size]
        halves.setdefault(theirs, {})[half or 0] = weight
    return {
        name: torch.cat([parts[0], parts[1]], dim=1) if len(parts) == 2 else parts[0]
        for name, parts in halves.items()
    }


_OUTSIDE_ROWS = {f"{_OUTSIDE[name]}.weight" for name in ("embedding", "head")}


@torch.no_grad()
def fill(model: Transformer, theirs: Mapping[str, Tensor], norms: StockNames) -> None:
    """Copy their weights into `model`; rows that pad the vocabulary become zero.

    Raises:
        HybridNormError: a tensor is missing, unexpected or of another shape; it is named.
    """
    found = sources(model, norms)
    if unlike := {source.name for source in found.values()} ^ theirs.keys():
        name = min(unlike)
        raise HybridNormError(f"weights: {'unexpected' if name in theirs else 'missing'} {name!r}")
    for name, parameter in model.named_parameters():
        source, half = found[name]
        weight = theirs[source] if half is None else theirs[source].chunk(2, dim=1)[half]
        target: Tensor = parameter
        if source in _OUTSIDE_ROWS:
            parameter.zero_()
            target = parameter[: model.config.vocab_size]
        if weight.shape != target.shape:
            raise HybridNormError(
                f"weights: {source!r} has shape {tuple(weight.shape)}, expected "
                f"{tuple(target.shape)}"
            )
        target.copy_(weight)


def _source(model: Transformer, name: str, norms: StockNames) -> Source:
    module, _, parameter = name.rpartition(".")
    if not name.startswith("blocks."):
        return Source(f"{_OUTSIDE[module]}.{parameter}")
    _, layer, sublayer, part, *rest = name.split(".")
    where = f"model.layers.{layer}"
    if sublayer not in _BRANCH:  # a norm of the block
        return Source(".".join((where, sublayer, part, *rest)))
    if part != "branch":
        stock = norms.get(f"{sublayer}.{part}", f"{sublayer}_residual.{part}")
        return Source(".".join((where, stock, *rest)))
    where = f"{where}.{_BRANCH[sublayer]}"
    is_of_experts = rest[0].endswith("_proj") or rest[0] == "mid_norm"
    if sublayer == "feed_forward" and model.config.has_experts(int(layer)) and is_of_experts:
        if rest[0] in _HALVES:
            return Source(f"{where}.experts.gate_up_proj", _HALVES[rest[0]])
        packed = "down_proj" if rest[0] == "down_proj" else f"mid_norm.{parameter}"
        return Source(f"{where}.experts.{packed}")
    return Source(".".join((where, _IN_BRANCH.get(rest[0], rest[0]), *rest[1:])))
