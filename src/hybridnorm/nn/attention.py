"""Multi-head attention with torch.nn's signature and a placement's q-, k-, v- and context norms.

Shape suffixes: B batch, T queries, S keys, D width, H query heads, G key/value heads, K head width.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridnorm.errors import HybridNormError
from hybridnorm.model import NormBuilder, transformed
from hybridnorm.nn.masks import merged
from hybridnorm.nn.placing import Plan, resolve
from hybridnorm.placements import AttentionSpec, Placement


class MultiheadAttention(nn.Module):
    """`torch.nn.MultiheadAttention` with norms on heads, and fewer key/value heads where asked.

    The arguments before `placement`, `forward` and the names of parameters are torch.nn's;
    `is_causal` needs no mask beside it. A learned key (`add_bias_kv`) is normed like others.

    Args:
        placement: a name, a `Placement` or a TOML file: its attention's inner norms, and its
            output gate, which reads the query. None: none.
        norm: "rms" or "layer" in place of the kind the placement says.
        n_kv_heads: key/value heads, each for `num_heads / n_kv_heads` query heads. None: as many.
        layer_norm_eps: of norms whose placement names none.
        layer, n_layers: which block of how many this is, for placements that depend on it.

    Raises:
        HybridNormError: heads that do not divide the width (or each other), an unknown placement.
    """

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        placement: str | Path | Placement | None = None,
        norm: str | None = None,
        n_kv_heads: int | None = None,
        layer_norm_eps: float = 1e-5,
        layer: int = 0,
        n_layers: int = 1,
    ) -> None:
        super().__init__()
        n_kv_heads = num_heads if n_kv_heads is None else n_kv_heads
        _check_heads(embed_dim, num_heads, n_kv_heads)
        self.embed_dim, self.num_heads, self.n_kv_heads = embed_dim, num_heads, n_kv_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.head_dim = embed_dim // num_heads
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        kv_width = n_kv_heads * self.head_dim
        self.widths = (embed_dim, kv_width, kv_width)
        self._add_projections(add_bias_kv, bias, {"device": device, "dtype": dtype})
        found, kind = resolve(placement, norm, norm_first=False)
        plan = Plan(
            placement=found,
            kind=kind,
            d_model=embed_dim,
            head_dim=self.head_dim,
            eps=layer_norm_eps,
            bias=bias,
        )
        block, build = plan.at(layer, n_layers)
        self.place(block.attention, build)
        plan.start(self, self.out_proj.weight)

    def _add_projections(self, add_bias_kv: bool, bias: bool, factory: dict[str, Any]) -> None:
        """The parameters, under torch.nn's names and drawn as it draws them."""

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, columns, **factory)))

        in_widths = (self.embed_dim, self.kdim, self.vdim)
        packed = len(set(in_widths)) == 1
        separate = dict(zip("qkv", zip(self.widths, in_widths, strict=True), strict=True))
        self.register_parameter(
            "in_proj_weight", matrix(sum(self.widths), self.embed_dim) if packed else None
        )
        for letter, shape in separate.items():
            self.register_parameter(f"{letter}_proj_weight", None if packed else matrix(*shape))
        zeros = nn.Parameter(torch.zeros(sum(self.widths), **factory)) if bias else None
        self.register_parameter("in_proj_bias", zeros)
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim, bias=bias, **factory)
        if bias:
            nn.init.zeros_(self.out_proj.bias)
        for name in ("bias_k", "bias_v"):
            learned = torch.empty(1, 1, self.widths[1], **factory) if add_bias_kv else None
            drawn = None if learned is None else nn.Parameter(nn.init.xavier_normal_(learned))
            self.register_parameter(name, drawn)

    def place(self, spec: AttentionSpec, build: NormBuilder) -> None:
        """Put the spec's inner norms in place of those that are there."""
        self.q_norm = build.head_norm(spec.q_norm, self.num_heads)
        self.k_norm = build.head_norm(spec.k_norm, self.n_kv_heads)
        self.v_norm = build.head_norm(spec.v_norm, self.n_kv_heads)
        self.context_norm = build.head_norm(spec.context_norm, self.num_heads)
        width, like = spec.gate_width(self.num_heads, self.embed_dim), self.out_proj.weight
        factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.gate = nn.Linear(self.embed_dim, width, bias=False, **factory) if width else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """torch.nn's: the output, and the attention's weights where `need_weights`."""
        batched = query.dim() == 3
        explicit = need_weights or transformed()
        q_BTHK, k_BSGK, v_BSGK = self._heads(query, key, value, batched)
        mask, is_causal = merged(
            attn_mask,
            key_padding_mask,
            is_causal,
            extra=k_BSGK.shape[1] - key.shape[_seq_dim(batched, self.batch_first)],
            shape=(q_BTHK.shape[0], self.num_heads, q_BTHK.shape[1], k_BSGK.shape[1]),
            like=q_BTHK,
            explicit=explicit,
        )
        heads = [x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK)]
        weights = self._weights(heads[0], heads[1], mask) if explicit else None
        if weights is None:
            context_BHTK = self._fused(*heads, mask=mask, is_causal=is_causal)
        else:
            context_BHTK = weights @ self._for_each_query_head(heads[2])
        context_BTHK = self.context_norm(context_BHTK.transpose(1, 2))
        if self.gate is not None:
            gate = self._batch_first([self.gate(query)], batched)[0]
            context_BTHK = context_BTHK * torch.unflatten(gate, -1, (self.num_heads, -1)).sigmoid()
        out = self.out_proj(context_BTHK.flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        weights = weights if need_weights else None
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _heads(
        self, query: Tensor, key: Tensor, value: Tensor, batched: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normed heads, batch first, with the learned and the zero key at the end."""
        projected = self._projected(query, key, value)
        q_BTD, k_BSD, v_BSD = self._batch_first(projected, batched)
        if self.bias_k is not None and self.bias_v is not None:
            k_BSD, v_BSD = (
                torch.cat((x, learned.expand(x.shape[0], -1, -1)), 1)
                for x, learned in ((k_BSD, self.bias_k), (v_BSD, self.bias_v))
            )
        split = (-1, self.head_dim)
        q, k, v = (torch.unflatten(x, -1, split) for x in (q_BTD, k_BSD, v_BSD))
        q, k, v = self.q_norm(q), self.k_norm(k), self.v_norm(v)
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (k, v))
        return q, k, v

    def _batch_first(self, tensors: Sequence[Tensor], batched: bool) -> Sequence[Tensor]:
        if not batched:
            return [x.unsqueeze(0) for x in tensors]
        return tensors if self.batch_first else [x.transpose(0, 1) for x in tensors]

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> Sequence[Tensor]:
        packed, bias, widths = self.in_proj_weight, self.in_proj_bias, self.widths
        if packed is not None and query is key is value:
            return F.linear(query, packed, bias).split_with_sizes(widths, -1)
        weights: Sequence[Tensor] = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if packed is None
            else packed.split_with_sizes(widths)
        )
        biases = (None, None, None) if bias is None else bias.split_with_sizes(widths)
        return [*map(F.linear, (query, key, value), weights, biases)]

    def _fused(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            mask,
            self.dropout if self.training else 0.0,
            is_causal,
            enable_gqa=self.n_kv_heads != self.num_heads,
        )

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Attention's weights `(batch, heads, queries, keys)`, as torch.nn after their dropout."""
        scores = q * math.sqrt(1 / self.head_dim) @ self._for_each_query_head(k).mT
        weights = (scores if mask is None else scores + mask).softmax(-1)
        return F.dropout(weights, self.dropout, self.training)

    def _for_each_query_head(self, x_BGSK: Tensor) -> Tensor:
        return x_BGSK.repeat_interleave(self.num_heads // self.n_kv_heads, 1)


def _seq_dim(batched: bool, batch_first: bool) -> int:
    return 1 if batched and batch_first else 0


def _check_heads(embed_dim: int, num_heads: int, n_kv_heads: int) -> None:
    if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
        raise HybridNormError(f"num_heads: {num_heads} heads do not divide the width {embed_dim}")
    if n_kv_heads < 1 or num_heads % n_kv_heads:
        raise HybridNormError(
            f"n_kv_heads: {n_kv_heads} key/value heads do not divide {num_heads} heads"
        )
