"""A model as functions that lose little time per call, for one new token at a time.

A new token costs a pass over all weights and the start of every operator, so: the weights lie in
the activations' dtype, cast once; matrices that read one input are joined; on the CPU all lie in
oneDNN's own order; and no call goes through `nn.Module.__call__`, so that hooks do not run.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybridnorm.model.kernels import GroupedLinear, grouped_linear
from hybridnorm.model.layers import Attention, FeedForward, HeadNorm, Linear, Rope, apply_rope
from hybridnorm.model.norms import Norm
from hybridnorm.model.transformer import Transformer


def decoder(model: Transformer) -> Transformer:
    """`model` for `kv_caches` and `next_logits` alone, its values as they are now.

    Its matrices take the memory of one more set of them, in the activations' dtype. A model that
    is laid out over ranks is returned as it is.
    """
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    fast: Any = copy(model)
    for name in ("embed_scale", "embed_norm", "final_norm"):
        vars(fast)[name] = _function(getattr(model, name), model.dtype)
    vars(fast)["blocks"] = [_function(block, model.dtype) for block in model.blocks]
    fast.logits = _product(model.head_weight().to(model.dtype))
    return fast  # type: ignore[no-any-return]


def _function(module: Any, dtype: torch.dtype) -> Callable[..., Any]:
    """`module.forward`, of a copy whose children are functions, too."""
    match module:
        case Linear():
            return _product(module.weight.to(dtype))
        case GroupedLinear():
            weight = module.weight.to(dtype)
            return lambda x, ends: grouped_linear(x, weight, ends)
        case Norm(kind="rms", weight=None):
            return lambda x: torch.rms_norm(x, x.shape[-1:], eps=module.eps)
        case Norm(kind="rms"):
            return _rms_norm(_gain(module, dtype), module.eps)
    twin: Any = copy(module)
    vars(twin).pop("forward", None)  # compiled, or with recomputation, for training
    children = dict(module.named_children())
    match module:
        case Attention():
            linears, norms = (
                [children.pop(f"{x}_{kind}") for x in "qkv"] for kind in ("proj", "norm")
            )
            twin.heads = _heads(linears, norms, module.head_dim, dtype)
        case FeedForward():
            names = ("gate_proj", "up_proj")
            product, sizes = _joined([children.pop(n) for n in names if n in children], dtype)
            twin.project = lambda x: product(x).split_with_sizes(sizes, -1)
    for name, child in children.items():
        vars(twin)[name] = _function(child, dtype)
    return twin.forward  # type: ignore[no-any-return]


def _heads(
    linears: Sequence[Linear], norms: Sequence[HeadNorm], head_dim: int, dtype: torch.dtype
) -> Callable[[Tensor, Rope], tuple[Tensor, ...]]:
    """`Attention.heads`: queries, keys and values are one tensor as far as they can be."""
    product, sizes = _joined(linears, dtype)
    counts = [size // head_dim for size in sizes]
    normed = _head_norms(norms, counts, dtype)

    def forward(x: Tensor, rope: Rope) -> tuple[Tensor, ...]:
        qkv = normed(torch.unflatten(product(x), -1, (-1, head_dim)))
        qk, v = qkv.split_with_sizes((counts[0] + counts[1], counts[2]), 2)
        q, k = apply_rope(qk, rope).split_with_sizes(counts[:2], 2)
        return q, k, v

    return forward


def _head_norms(
    norms: Sequence[HeadNorm], counts: Sequence[int], dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """The norms of `counts` heads each, `(batch, seq, heads, head_dim)`."""
    inner: list[Any] = [norm.norm for norm in norms]
    if all(isinstance(norm, nn.Identity) for norm in inner):
        return lambda x: x
    if all(map(_has_gain_per_head, norms)) and len({norm.eps for norm in inner}) == 1:
        pairs = zip(inner, counts, strict=True)
        gains = [_gain(norm, dtype).expand(count, -1) for norm, count in pairs]
        return _rms_norm(torch.cat(gains), inner[0].eps)
    apart = [_function(norm, dtype) for norm in norms]

    def forward(x: Tensor) -> Tensor:
        parts = zip(apart, x.split_with_sizes(counts, 2), strict=True)
        return torch.cat([norm(part) for norm, part in parts], 2)

    return forward


def _has_gain_per_head(norm: HeadNorm) -> bool:
    inner = norm.norm
    is_rms = isinstance(inner, Norm) and inner.kind == "rms" and inner.weight is not None
    return is_rms and not norm.full


def _joined(
    linears: Sequence[Linear], dtype: torch.dtype
) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    """All of them as one product, `(..., d_in)` to `(..., sum of d_out)`, and each d_out."""
    weight = torch.cat([linear.weight.to(dtype) for linear in linears])
    return _product(weight), [linear.out_features for linear in linears]


def _product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x `(..., d_in)` to x @ weight.T `(..., d_out)`."""
    if not _onednn_takes(weight):
        return partial(F.linear, weight=weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: multiply(x, packed, None, "none", [], "")


def _onednn_takes(weight: Tensor) -> bool:
    if not (weight.is_cpu and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-any-return]
    return weight.dtype == torch.float32


def _gain(norm: Any, dtype: torch.dtype) -> Tensor:
    return (1 + norm.weight if norm.zero_centered else norm.weight).to(dtype)  # type: ignore[no-any-return]


def _rms_norm(gain: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """RMSNorm over the last dimension, without gradients, in as few operators as there are.

    Args:
        gain: in the dtype of the activations.
    """
    if not gain.is_cpu:  # a single kernel
        return lambda x: torch.rms_norm(x, x.shape[-1:], eps=eps).mul_(gain)
    eps_ = torch.tensor(eps, dtype=torch.promote_types(gain.dtype, torch.float32))

    def forward(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=eps_.dtype)
        inverse = torch.addcmul(eps_, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * inverse).to(x.dtype).mul_(gain)

    return forward
