"""Nested tensors: sequences of different lengths, without padding."""

from typing import Any

import torch
from torch import Tensor, nn

from hybridnorm.errors import HybridNormError


def through_padding(
    module: nn.Module, src: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: Any
) -> Tensor:
    """`module` on a nested `(batch, *, d_model)`, padded meanwhile; nested again, in its layout.

    Raises:
        HybridNormError: a mask beside it, or a module that takes its batch second.
    """
    if mask is not None or padding is not None:
        raise HybridNormError("src: a nested tensor knows its lengths; leave the masks out")
    if not all(part.batch_first for part in module.modules() if hasattr(part, "batch_first")):
        raise HybridNormError("src: a nested tensor needs batch_first=True")
    lengths = [len(sequence) for sequence in src.unbind()]
    padded = src.to_padded_tensor(0.0)
    positions = torch.arange(padded.shape[1], device=padded.device)
    beyond = positions >= torch.tensor(lengths, device=padded.device)[:, None]
    out = module(padded, src_key_padding_mask=beyond, is_causal=is_causal)
    rows = [row[:length] for row, length in zip(out, lengths, strict=True)]
    return torch.nested.as_nested_tensor(rows, layout=src.layout)
