"""What encoder and decoder layers share: attention and feed-forward around one stream."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hybridnorm.model import Leak, Residual
from hybridnorm.nn.attention import MultiheadAttention
from hybridnorm.nn.branches import Activation, Attend, FeedForward
from hybridnorm.nn.placing import Plan, resolve
from hybridnorm.placements import Placement


class Layer(nn.Module):
    """A block of sublayers, each a `Residual` as in our own models.

    The arguments before `placement` are torch.nn's. Without a placement `norm_first` decides, and
    the layer is torch.nn's. Attention to a memory has the placement's attention norms, too.

    Args:
        placement: a name (`hybridnorm show` lists them), a `Placement` or a TOML file.
        norm: "rms" or "layer" in place of the kind the placement says. None: its own.
        n_kv_heads: key/value heads, each for `nhead / n_kv_heads` query heads. None: as many.
        layer, n_layers: which block of how many this is, for placements that depend on it; the
            stacks set it.

    Raises:
        HybridNormError: an unknown placement, norm or activation; `norm_first` beside a
            placement; heads that do not divide the width.
    """

    attentions: tuple[str, ...] = ("self_attention",)
    """The sublayers before the feed-forward network."""
    self_attention: Any
    feed_forward: Any

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        placement: str | Path | Placement | None = None,
        norm: str | None = None,
        n_kv_heads: int | None = None,
        layer: int = 0,
        n_layers: int = 1,
    ) -> None:
        super().__init__()
        found, kind = resolve(placement, norm, norm_first)
        self.is_placed = placement is not None
        self.batch_first = batch_first
        factory: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        for name in self.attentions:
            attention = MultiheadAttention(
                d_model,
                nhead,
                dropout,
                batch_first=batch_first,
                n_kv_heads=n_kv_heads,
                **factory,
            )
            self.add_module(name, Attend(attention, dropout))
        self.feed_forward = FeedForward(d_model, dim_feedforward, dropout, activation, **factory)
        self.plan = Plan(
            placement=found,
            kind=kind,
            d_model=d_model,
            head_dim=self.self_attn.head_dim,
            eps=layer_norm_eps,
            bias=bias,
        )
        self.place(layer, n_layers)

    def place(self, layer: int, n_layers: int) -> None:
        """Give this the norms and scales of block `layer` of `n_layers`; they start anew.

        Raises:
            HybridNormError: `layer` is not one of `n_layers`.
        """
        spec, build = self.plan.at(layer, n_layers)
        self.is_parallel = spec.topology == "parallel"
        self.shared_norm = build.norm(spec.shared_norm)
        self.leak = Leak() if spec.leak else nn.Identity()
        for name in (*self.attentions, "feed_forward"):
            branch = self._branch(name)
            sublayer = spec.feed_forward if name == "feed_forward" else spec.attention
            branch.place(sublayer, build)
            self.add_module(name, Residual(branch, sublayer, build))
        self.plan.start(self, self.self_attn.out_proj.weight)

    @property
    def self_attn(self) -> MultiheadAttention:
        """The attention within, under torch.nn's name."""
        return self._branch("self_attention").attention  # type: ignore[no-any-return]

    def _branch(self, name: str) -> Any:
        found = getattr(self, name)
        return found.branch if isinstance(found, Residual) else found
