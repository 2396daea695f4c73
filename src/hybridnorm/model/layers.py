"""Rotary embedding, attention and feed-forward network.

Shape suffixes: B batch, T sequence, D d_model, H query heads, G key/value heads, K head width,
F d_ff.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels import Mask, at_least_float32, attention
from hybridnorm.model.linear import Linear
from hybridnorm.model.norms import NormBuilder
from hybridnorm.placements import AttentionSpec, FeedForwardSpec


class Rope(NamedTuple):
    """Cosines and sines of the rotary embedding, float32 `([batch,] seq, 1, head_dim)`."""

    cos: Tensor
    sin: Tensor
    """Negative in the left half, where the rotation subtracts."""

    def at(self, start: int, end: int) -> "Rope":
        """The positions from `start` to before `end` of these."""
        return Rope(self.cos[start:end], self.sin[start:end])


def rope(positions: Tensor, head_dim: int, theta: float) -> Rope:
    """The rotary embedding at positions `([batch,] seq)` (Su et al. 2021, half-split layout)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    # Rounded as in OLMo and Llama: far positions times a last-bit difference would show.
    frequencies = 1.0 / theta ** (exponents / head_dim)
    angles = positions.float()[..., None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return Rope(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def apply_rope(x_BTHK: Tensor, rope: Rope) -> Tensor:
    """Rotate heads `(batch, seq, heads, head_dim)` in float32 at least."""
    x = at_least_float32(x_BTHK)
    left, right = x.chunk(2, dim=-1)
    swapped = torch.cat((right, left), dim=-1)
    return torch.addcmul(x * rope.cos, swapped, rope.sin).to(x_BTHK.dtype)


class KVCache:
    """Keys (normed and rotated) and values (normed) of one layer."""

    def __init__(self, max_len: int) -> None:
        self.max_len, self.length = max_len, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k_BTGK: Tensor, v_BTGK: Tensor) -> tuple[Tensor, Tensor]:
        """Store new positions; return all keys and values so far, `(batch, seq, kv_heads, K)`."""
        batch, new, heads, width = k_BTGK.shape
        if self.keys is None or self.values is None:
            self.keys = k_BTGK.new_empty(batch, heads, self.max_len, width)
            self.values = torch.empty_like(self.keys)
        end = self.length + new
        for stored, added in ((self.keys, k_BTGK), (self.values, v_BTGK)):
            stored[:, :, self.length : end] = added.transpose(1, 2)
        self.length = end
        return self.keys[:, :, :end].transpose(1, 2), self.values[:, :, :end].transpose(1, 2)


class KVCaches(NamedTuple):
    """What a model keeps of a text: keys and values of its layers, and the rotary embedding."""

    layers: list[KVCache]
    rope: Rope
    """Of all positions that fit."""

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self.layers[0].length


class Attention(nn.Module):
    """Causal grouped-query attention with optional norms on q, k, v (before RoPE) and context.

    An output gate multiplies the context before W_o (Qiu et al. 2025, arXiv 2505.06708).
    """

    def __init__(self, config: ModelConfig, spec: AttentionSpec, build: NormBuilder) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        n_heads, kv_heads = config.n_heads, config.kv_heads
        self.q_proj = Linear(config.d_model, n_heads * self.head_dim)
        self.k_proj = Linear(config.d_model, kv_heads * self.head_dim)
        self.v_proj = Linear(config.d_model, kv_heads * self.head_dim)
        self.o_proj = Linear(n_heads * self.head_dim, config.d_model)
        width = spec.gate_width(n_heads, config.d_model)
        self.gate_proj = Linear(config.d_model, width) if width else None
        self.q_norm = build.head_norm(spec.q_norm, n_heads)
        self.k_norm = build.head_norm(spec.k_norm, kv_heads)
        self.v_norm = build.head_norm(spec.v_norm, kv_heads)
        self.context_norm = build.head_norm(spec.context_norm, n_heads)

    def forward(
        self,
        x_BTD: Tensor,
        rope: Rope,
        cache: KVCache | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """The stream `(batch, seq, d_model)` to what attention adds; without `mask` causal."""
        projections = self.q_proj, self.k_proj, self.v_proj
        q_BTHK, k_BTGK, v_BTGK = (
            proj(x_BTD).unflatten(-1, (-1, self.head_dim)) for proj in projections
        )
        q_BTHK = apply_rope(self.q_norm(q_BTHK), rope)
        k_BTGK = apply_rope(self.k_norm(k_BTGK), rope)
        v_BTGK = self.v_norm(v_BTGK)
        if cache is not None:
            k_BTGK, v_BTGK = cache.append(k_BTGK, v_BTGK)
        context_BTHK = self.context_norm(attention(q_BTHK, k_BTGK, v_BTGK, mask))
        if self.gate_proj is not None:
            gate_BTHK = self.gate_proj(x_BTD).unflatten(-1, (context_BTHK.shape[2], -1))
            context_BTHK = context_BTHK * torch.sigmoid(gate_BTHK)
        return self.o_proj(context_BTHK.flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU (or GELU) network with an optional norm on its hidden activation."""

    def __init__(self, config: ModelConfig, spec: FeedForwardSpec, build: NormBuilder) -> None:
        super().__init__()
        gated = config.activation == "swiglu"
        self.gate_proj = Linear(config.d_model, config.d_ff) if gated else None
        self.up_proj = Linear(config.d_model, config.d_ff)
        self.down_proj = Linear(config.d_ff, config.d_model)
        self.mid_norm = build.norm(spec.mid_norm, config.d_ff)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF = self.up_proj(x_BTD)
        if self.gate_proj is None:
            hidden_BTF = F.gelu(up_BTF)
        else:
            hidden_BTF = F.silu(self.gate_proj(x_BTD)) * up_BTF
        return self.down_proj(self.mid_norm(hidden_BTF))  # type: ignore[no-any-return]
