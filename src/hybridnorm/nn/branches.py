"""What a `Residual` of these layers wraps: attention over a sequence, a feed-forward network."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.model import NormBuilder
from hybridnorm.nn.attention import MultiheadAttention
from hybridnorm.placements import AttentionSpec, FeedForwardSpec

Activation = str | Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class Attend(nn.Module):
    """Attention to the sequence itself, or to another one (`memory`), then dropout."""

    def __init__(self, attention: MultiheadAttention, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.dropout = nn.Dropout(dropout)

    def place(self, spec: AttentionSpec, build: NormBuilder) -> None:
        """Put the spec's inner norms in place of those that are there."""
        self.attention.place(spec, build)

    def forward(self, x: Tensor, memory: Tensor | None = None, **masks: Any) -> Tensor:
        keys = x if memory is None else memory
        out, _ = self.attention(x, keys, keys, need_weights=False, **masks)
        return self.dropout(out)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """torch.nn's two linear layers, with an optional norm on the hidden activation."""

    mid_norm: nn.Module

    def __init__(
        self, d_model: int, width: int, dropout: float, activation: Activation, **linear: Any
    ) -> None:
        super().__init__()
        self.linear1 = nn.Linear(d_model, width, **linear)
        self.activation = activation if callable(activation) else _named(activation)
        self.hidden_dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(width, d_model, **linear)
        self.dropout = nn.Dropout(dropout)

    def place(self, spec: FeedForwardSpec, build: NormBuilder) -> None:
        """Put the spec's inner norm in place of the one that is there."""
        self.mid_norm = build.norm(spec.mid_norm, self.linear1.out_features)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mid_norm(self.activation(self.linear1(x)))
        return self.dropout(self.linear2(self.hidden_dropout(hidden)))  # type: ignore[no-any-return]


def _named(activation: str) -> Callable[[Tensor], Tensor]:
    if activation not in _ACTIVATIONS:
        hint = nearest(activation, _ACTIVATIONS)
        raise HybridNormError(f"activation: unknown name {activation!r}; {hint}; or a function")
    return _ACTIVATIONS[activation]
