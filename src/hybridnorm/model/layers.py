"""Linear layers, rotary embedding, attention and feed-forward network.

Shape suffixes: B batch, T sequence, D d_model, H query heads, G key/value heads, K head width,
F d_ff.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels import at_least_float32, blockwise_attention
from hybridnorm.model.masks import Mask, flex
from hybridnorm.model.norms import NormBuilder
from hybridnorm.placements import AttentionSpec, FeedForwardSpec
from hybridnorm.placements import Norm as NormSpec


class Linear(nn.Linear):
    """A bias-free linear layer whose float32 master weight is cast to its input's dtype.

    This is the whole precision policy: the activations' dtype decides, on every device.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def reset_parameters(self) -> None:
        """Left empty: initialization.initialize draws all weights by name."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Rope(NamedTuple):
    """Cosines and sines of the rotary embedding, float32 `(seq, 1, head_dim)`: for all heads."""

    cos: Tensor
    sin: Tensor
    """Negative in the left half, where the rotation subtracts."""

    def at(self, start: int, end: int) -> "Rope":
        """The positions from `start` to before `end` of these."""
        return Rope(self.cos[start:end], self.sin[start:end])


def rope(positions_T: Tensor, head_dim: int, theta: float) -> Rope:
    """The rotary embedding at integer positions `(seq,)` (Su et al. 2021, half-split layout)."""
    exponents = torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32)
    # Rounded as in OLMo and Llama: far positions times a last-bit difference would show.
    frequencies = 1.0 / theta ** (exponents / head_dim)
    angles = positions_T.float()[:, None, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return Rope(torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1))


def apply_rope(x_BTHK: Tensor, rope: Rope) -> Tensor:
    """Rotate heads `(batch, seq, heads, head_dim)` in float32 at least."""
    x = at_least_float32(x_BTHK)
    left, right = x.chunk(2, dim=-1)
    swapped = torch.cat((right, left), dim=-1)
    return torch.addcmul(x * rope.cos, swapped, rope.sin).to(x_BTHK.dtype)


class KVCache:
    """Keys (normed and rotated) and values (normed) of one layer, `(batch, kv_heads, seq, K)`."""

    def __init__(self, max_len: int) -> None:
        self.max_len, self.length = max_len, 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store new positions; return all keys and values so far."""
        batch, heads, new, width = k_BGTK.shape
        if self.keys is None or self.values is None:
            self.keys = k_BGTK.new_empty(batch, heads, self.max_len, width)
            self.values = torch.empty_like(self.keys)
        end = self.length + new
        self.keys[:, :, self.length : end] = k_BGTK
        self.values[:, :, self.length : end] = v_BGTK
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCaches(NamedTuple):
    """What a model keeps of a text: keys and values of its layers, and the rotary embedding."""

    layers: list[KVCache]
    rope: Rope
    """Of all positions that fit."""

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self.layers[0].length


class HeadNorm(nn.Module):
    """A norm on `(batch, seq, heads, head_dim)`: per head with one shared gain, or over all."""

    def __init__(
        self, config: NormSpec | None, n_heads: int, head_dim: int, build: NormBuilder
    ) -> None:
        super().__init__()
        self.full = config is not None and config.axis == "full"
        self.norm = build.norm(config, n_heads * head_dim if self.full else head_dim)

    def forward(self, x_BTHK: Tensor) -> Tensor:
        if self.full:
            normed: Tensor = self.norm(x_BTHK.flatten(2)).view_as(x_BTHK)
            return normed
        return self.norm(x_BTHK)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal grouped-query attention with optional norms on q, k, v (before RoPE) and context."""

    def __init__(self, config: ModelConfig, spec: AttentionSpec, build: NormBuilder) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        n_heads, kv_heads = config.n_heads, config.kv_heads
        self.q_proj = Linear(config.d_model, n_heads * self.head_dim)
        self.k_proj = Linear(config.d_model, kv_heads * self.head_dim)
        self.v_proj = Linear(config.d_model, kv_heads * self.head_dim)
        self.o_proj = Linear(n_heads * self.head_dim, config.d_model)
        self.q_norm = HeadNorm(spec.q_norm, n_heads, self.head_dim, build)
        self.k_norm = HeadNorm(spec.k_norm, kv_heads, self.head_dim, build)
        self.v_norm = HeadNorm(spec.v_norm, kv_heads, self.head_dim, build)
        self.context_norm = HeadNorm(spec.context_norm, n_heads, self.head_dim, build)

    def forward(
        self,
        x_BTD: Tensor,
        rope: Rope,
        cache: KVCache | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """The stream `(batch, seq, d_model)` to what attention adds; without `mask` causal."""
        q_BTHK, k_BTGK, v_BTGK = self.heads(x_BTD, rope)
        context_BTHK = self.context_norm(_attention(q_BTHK, k_BTGK, v_BTGK, cache, mask))
        return self.o_proj(context_BTHK.flatten(2))  # type: ignore[no-any-return]

    def heads(self, x_BTD: Tensor, rope: Rope) -> tuple[Tensor, ...]:
        """Queries, keys and values, normed and rotated, `(batch, seq, heads, head_dim)`."""
        projections = self.q_proj, self.k_proj, self.v_proj
        q_BTHK, k_BTGK, v_BTGK = (
            proj(x_BTD).unflatten(-1, (-1, self.head_dim)) for proj in projections
        )
        q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        return apply_rope(q_BTHK, rope), apply_rope(k_BTGK, rope), self.v_norm(v_BTGK)


def _attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, cache: KVCache | None, mask: Mask | None
) -> Tensor:
    """The context `(batch, seq, heads, head_dim)`."""
    if q_BTHK.is_cpu and q_BTHK.dtype == torch.bfloat16 and cache is None:
        return blockwise_attention(q_BTHK, k_BTGK, v_BTGK, mask)  # type: ignore[no-any-return]
    q_BHTK, k_BGTK, v_BGTK = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    if cache is not None:
        k_BGTK, v_BGTK = cache.append(k_BGTK, v_BGTK)
    if isinstance(mask, BlockMask):
        return flex(q_BHTK, k_BGTK, v_BGTK, mask).transpose(1, 2)
    if cache is not None and q_BHTK.shape[2] == 1:
        return _attend_one(q_BHTK, k_BGTK, v_BGTK).transpose(1, 2)
    context_BHTK = F.scaled_dot_product_attention(
        q_BHTK,
        k_BGTK,
        v_BGTK,
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1],
    )
    return context_BHTK.transpose(1, 2)


def _attend_one(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """The context `(batch, heads, 1, head_dim)` of one new token, which sees everything cached.

    Heads that share keys become the rows of one product, except in float32 on the CPU, where
    PyTorch's kernel is faster row by row (benchmarks/generation.py).
    """
    if q_BHTK.is_cpu and q_BHTK.dtype == torch.float32:
        grouped = q_BHTK.shape[1] != k_BGTK.shape[1]
        return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, enable_gqa=grouped)
    q_BGRK = q_BHTK.view(*k_BGTK.shape[:2], -1, k_BGTK.shape[3])
    return F.scaled_dot_product_attention(q_BGRK, k_BGTK, v_BGTK).reshape(q_BHTK.shape)


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
        *gate_BTF, up_BTF = self.project(x_BTD)
        hidden_BTF = F.silu(gate_BTF[0]) * up_BTF if gate_BTF else F.gelu(up_BTF)
        return self.down_proj(self.mid_norm(hidden_BTF))  # type: ignore[no-any-return]

    def project(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """Gate, if there is one, and up."""
        up_BTF = self.up_proj(x_BTD)
        return (up_BTF,) if self.gate_proj is None else (self.gate_proj(x_BTD), up_BTF)
