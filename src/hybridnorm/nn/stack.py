"""Copies of a layer, each at its depth, between the norms that a placement has at the ends."""

import copy
from typing import Any

from torch import Tensor, nn

from hybridnorm.nn.layer import Layer
from hybridnorm.ranges import Count, check_number


class Stack(nn.Module):
    """What encoder and decoder share. A placement brings its embedding scale and norm along.

    Raises:
        HybridNormError: no layers.
    """

    def __init__(self, layer: nn.Module, num_layers: int, norm: nn.Module | None) -> None:
        super().__init__()
        check_number("num_layers", num_layers, Count)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.num_layers = num_layers
        self.embed_scale: nn.Module | None = None
        self.embed_norm: nn.Module | None = None
        self.norm = norm
        if isinstance(layer, Layer):
            self._place(layer)

    def _place(self, prototype: Layer) -> None:
        for depth, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            layer.place(depth, self.num_layers)
        if not prototype.is_placed:
            return
        plan = prototype.plan
        _, build = plan.at(self.num_layers - 1, self.num_layers)
        self.embed_scale = build.scale(plan.placement.embed_scale)
        self.embed_norm = build.norm(plan.norm(plan.placement.embed_norm))
        final = build.norm(plan.norm(plan.placement.final(self.num_layers)))
        ends = nn.ModuleList([self.embed_scale, self.embed_norm, final])
        plan.start(ends, prototype.self_attn.out_proj.weight)
        self.norm = self.norm or final

    def _run(self, x: Tensor, **inputs: Any) -> Tensor:
        if self.embed_scale is not None and self.embed_norm is not None:
            x = self.embed_norm(self.embed_scale(x))
        for layer in self.layers:
            x = layer(x, **inputs)
        return x if self.norm is None else self.norm(x)
