"""Which positions attend to which, where a sequence holds several documents."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from hybridnorm.model.kernels import Mask, compiled

_BLOCK = 128  # positions, FlexAttention's


def document_ids(input_ids: Tensor, end_of_document: int) -> Tensor:
    """The number of each token's document within its sequence, `(batch, seq)`.

    The end-of-document token belongs to the document that it ends.
    """
    ends = (input_ids == end_of_document).long()
    return ends.cumsum(-1) - ends


def document_mask(documents_BT: Tensor) -> Mask:
    """Causal attention within documents only.

    A block mask for FlexAttention on CUDA, which skips what is masked out; elsewhere, where
    FlexAttention has no backward pass, and for parts of a block, for which it has no kernel, a
    boolean mask `(batch, 1, seq, seq)` for SDPA.
    """
    whole_blocks = documents_BT.shape[1] % _BLOCK == 0
    flexible = documents_BT.is_cuda and whole_blocks
    return flex_mask(documents_BT) if flexible else boolean_mask(documents_BT)


def continuation_mask(known: int, new: int, device: torch.device) -> Tensor | None:
    """Causal attention of `new` tokens after `known` cached ones, `(new, known + new)`.

    None where SDPA needs none: for one token, and for a prompt. Its own causal mask pairs the
    first query with the first key.
    """
    if not known or new == 1:
        return None
    return torch.ones(new, known + new, dtype=torch.bool, device=device).tril(known)


def boolean_mask(documents_BT: Tensor) -> Tensor:
    """True where a query (third dimension) may see a key (fourth)."""
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    return same.tril()[:, None]


def flex_mask(documents_BT: Tensor) -> BlockMask:
    """The same as a FlexAttention block mask."""

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = documents_BT[batch, query] == documents_BT[batch, key]
        return same & (key <= query)

    # Compiled, it never holds the mask of all pairs.
    create: Any = compiled(create_block_mask) if documents_BT.is_cuda else create_block_mask
    batch, length = documents_BT.shape
    mask: BlockMask = create(visible, batch, None, length, length, device=documents_BT.device)
    return mask
