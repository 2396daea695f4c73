"""From what a layer is asked for to the norms of one depth."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from hybridnorm.errors import HybridNormError
from hybridnorm.model import Norm, NormBuilder, Scale
from hybridnorm.placements import (
    AttentionSpec,
    BlockSpec,
    FeedForwardSpec,
    Placement,
    check_choice,
    norms_of,
    placement,
)
from hybridnorm.placements import Norm as NormSpec
from hybridnorm.ranges import NotNegative, Ranged, Width

Kind = Literal["rms", "layer"]
_Spec = TypeVar("_Spec", AttentionSpec, FeedForwardSpec)


@dataclass(frozen=True, kw_only=True)
class Plan(Ranged):
    """Which norms a layer is to have, whatever its depth."""

    placement: Placement
    kind: Kind | None
    """Of all norms that are RMSNorm or LayerNorm; None: what the placement says."""
    d_model: Width
    head_dim: Width
    eps: NotNegative
    bias: bool

    def norm(self, spec: NormSpec | None) -> NormSpec | None:
        """The norm, of the kind that was asked for."""
        if spec is None or self.kind is None or spec.kind not in get_args(Kind):
            return spec
        return replace(spec, kind=self.kind)

    def at(self, layer: int, n_layers: int) -> tuple[BlockSpec, NormBuilder]:
        """The block's spec at a depth, and what builds its norms.

        Raises:
            HybridNormError: `layer` is not one of `n_layers`.
        """
        block = self.placement.block(layer, n_layers)
        block = replace(
            block,
            attention=self._of_kind(block.attention),
            feed_forward=self._of_kind(block.feed_forward),
            shared_norm=self.norm(block.shared_norm),
        )
        return block, NormBuilder(layer, _Widths(self.d_model, self.head_dim, n_layers, self.eps))

    def _of_kind(self, spec: _Spec) -> _Spec:
        norms = {name: self.norm(norm) for name, norm in norms_of(spec).items()}
        return replace(spec, **norms)  # type: ignore[arg-type]

    def start(self, module: nn.Module, like: torch.Tensor) -> None:
        """Give the norms and scales of `module` values, and the device and dtype of `like`."""
        for part in module.modules():
            if isinstance(part, Norm) and not self.bias:
                part.bias = None
            if isinstance(part, Norm | Scale):
                part.reset_parameters()
                part.to(like.device, like.dtype)
            if isinstance(part, Norm) and part.gate_down and part.gate_up:
                nn.init.xavier_uniform_(part.gate_down.weight)
                nn.init.zeros_(part.gate_up.weight)


@dataclass(frozen=True)
class _Widths:
    d_model: int
    head_dim: int
    n_layers: int
    norm_eps: float


def resolve(
    asked: str | Path | Placement | None, norm: str | None, norm_first: bool
) -> tuple[Placement, Kind | None]:
    """The placement, and the kind of its norms; without one, torch.nn's own: `norm_first`.

    Raises:
        HybridNormError: an unknown placement or kind, or `norm_first` beside a placement.
    """
    if norm is not None:
        check_choice("norm", norm, get_args(Kind))
    kind: Any = norm
    if asked is None:
        return placement("pre-norm" if norm_first else "post-norm"), kind or "layer"
    if norm_first:
        raise HybridNormError(
            "norm_first: the placement says where norms sit; leave norm_first out"
        )
    return asked if isinstance(asked, Placement) else placement(asked), kind
