"""torch.nn's masks as one that is added to attention's scores."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridnorm.errors import HybridNormError


def merged(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    *,
    shape: tuple[int, int, int, int],
    extra: int,
    like: Tensor,
    explicit: bool,
) -> tuple[Tensor | None, bool]:
    """The sum of the masks, `(batch or 1, heads or 1, queries, keys)`, or whether it is causal.

    Args:
        attn_mask: `(queries, keys)` or `(batch * heads, queries, keys)`: True where a query must
            not see a key, or numbers to add.
        key_padding_mask: `(batch, keys)`, or `(keys,)` where there is no batch, likewise.
        is_causal: beside a mask it says that this is the causal one, as in torch.nn.
        shape: batch, heads, queries, keys.
        extra: how many of the keys, at the end, no mask knows; all queries see them.
        like: of the dtype and device that are wanted.
        explicit: whether even the causal mask alone has to be a tensor.

    Raises:
        HybridNormError: a mask of another shape.
    """
    if is_causal and key_padding_mask is None and not (extra or explicit):
        return None, True
    batch, heads, queries, keys = shape
    keys -= extra
    if is_causal and attn_mask is None:
        attn_mask = torch.ones(queries, keys, dtype=torch.bool, device=like.device).triu(1)
    total = None
    if attn_mask is not None:
        lead = (1, 1) if attn_mask.dim() == 2 else (batch, heads)
        total = _additive("attn_mask", attn_mask, (*lead, queries, keys), like.dtype)
    if key_padding_mask is not None:
        padding = _additive("key_padding_mask", key_padding_mask, (batch, 1, 1, keys), like.dtype)
        total = padding if total is None else total + padding
    return total if total is None or not extra else F.pad(total, (0, extra)), False


def _additive(name: str, mask: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if mask.shape[-1] != shape[-1] or mask.numel() != math.prod(shape):
        sizes = " x ".join(map(str, shape))
        raise HybridNormError(f"{name}: its shape {tuple(mask.shape)} does not fit {sizes}")
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    return mask.to(dtype).view(shape)
