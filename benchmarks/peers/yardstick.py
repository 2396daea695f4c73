"""The yardstick: a Pre-Norm Llama as fast as one short file of plain PyTorch can make it.

One compiled graph from tokens to loss, fused q-k-v and gate-up products, activations in the
setting's dtype, and attention as SDPA or as batched matrix products, which in bfloat16 on CPUs are
faster at short sequences.
"""

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OWN_PRECISION = True


def norm(x: Tensor, gain: Tensor) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    return normed.to(x.dtype) * gain.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads `(batch, seq, heads, width)`."""
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    context = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return context.transpose(1, 2).flatten(2)


def math_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The queries `(batch, seq, heads, width)` that share a key become rows of one product."""
    batch, seq, heads, width = q.shape
    groups = k.shape[2]
    q = q.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(batch * groups, -1, width)
    k, v = (x.transpose(1, 2).reshape(batch * groups, seq, width) for x in (k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).unflatten(1, (-1, seq)).float()
    future = torch.ones(seq, seq, dtype=torch.bool, device=q.device).triu(1)
    weights = (scores / math.sqrt(width)).masked_fill(future, -torch.inf).softmax(-1)
    context = torch.bmm(weights.to(q.dtype).flatten(1, 2), v)
    return context.view(batch, heads, seq, width).transpose(1, 2).flatten(2)


def matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * 0.02)


class Block(nn.Module):
    def __init__(self, setup: SimpleNamespace) -> None:
        super().__init__()
        shape = setup.shape
        self.attention = {"sdpa": sdpa, "math": math_attention}[setup.attention]
        self.heads = [shape.n_heads, shape.n_kv_heads, shape.n_kv_heads]
        self.head_dim = shape.d_model // shape.n_heads
        self.norm_1 = nn.Parameter(torch.ones(shape.d_model))
        self.norm_2 = nn.Parameter(torch.ones(shape.d_model))
        self.qkv = matrix(sum(self.heads) * self.head_dim, shape.d_model)
        self.out = matrix(shape.d_model, shape.d_model)
        self.gate_up = matrix(2 * shape.d_ff, shape.d_model)
        self.down = matrix(shape.d_model, shape.d_ff)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = F.linear(norm(x, self.norm_1), self.qkv.to(x.dtype))
        q, k, v = heads.unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=2)
        context = self.attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + F.linear(context, self.out.to(x.dtype))
        gate, up = F.linear(norm(x, self.norm_2), self.gate_up.to(x.dtype)).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down.to(x.dtype))


class Model(nn.Module):
    def __init__(self, setup: SimpleNamespace) -> None:
        super().__init__()
        shape = setup.shape
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setup.dtype]
        self.embedding = matrix(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(setup) for _ in range(shape.n_layers))
        self.norm = nn.Parameter(torch.ones(shape.d_model))
        self.head = matrix(shape.vocab_size, shape.d_model)
        width = shape.d_model // shape.n_heads
        frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(shape.seq), frequencies)[:, None]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = F.embedding(ids, self.embedding).to(self.dtype)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(norm(x, self.norm), self.head.to(x.dtype))
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def build(setup: SimpleNamespace):
    model = Model(setup).to(setup.device)
    return model, torch.compile(model) if setup.compiled else model
