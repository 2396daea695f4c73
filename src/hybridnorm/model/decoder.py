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
from torch import Tensor
from torch.distributed.tensor import DTensor

from hybridnorm.model.grouped import GroupedLinear, grouped_linear
from hybridnorm.model.layers import Attention, FeedForward, Linear
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
        case Norm(kind="rms"):
            return _rms_norm(module, dtype)
    twin: Any = copy(module)
    vars(twin).pop("forward", None)  # compiled, or with recomputation, for training
    children = dict(module.named_children())
    match module:
        case Attention():
            projections = [children.pop(name) for name in ("q_proj", "k_proj", "v_proj")]
            product, sizes = _joined(projections, dtype)
            heads = (-1, module.head_dim)
            counts = [size // module.head_dim for size in sizes]
            twin.project = lambda x: torch.unflatten(product(x), -1, heads).split_with_sizes(
                counts, 2
            )
        case FeedForward():
            names = ("gate_proj", "up_proj")
            product, sizes = _joined([children.pop(n) for n in names if n in children], dtype)
            twin.project = lambda x: product(x).split_with_sizes(sizes, -1)
    for name, child in children.items():
        vars(twin)[name] = _function(child, dtype)
    return twin.forward  # type: ignore[no-any-return]


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


def _rms_norm(norm: Norm, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """`norm` without gradients, in as few operators as there are for the device."""
    if norm.weight is None:
        return lambda x: torch.rms_norm(x, x.shape[-1:], eps=norm.eps)
    gain = (1 + norm.weight if norm.zero_centered else norm.weight).to(dtype)
    if not gain.is_cpu:  # a single kernel
        return lambda x: torch.rms_norm(x, gain.shape, eps=norm.eps).mul_(gain)
    eps = torch.tensor(norm.eps, dtype=torch.promote_types(dtype, torch.float32))
    share = 1 / len(gain)

    def forward(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, 2, -1, True, dtype=eps.dtype)
        inverse = torch.addcmul(eps, length, length, value=share).rsqrt_()
        return (x * inverse).to(x.dtype).mul_(gain)

    return forward
