"""Encoder layers and their stack."""

from typing import Any

from torch import Tensor, nn

from hybridnorm.nn.layer import Layer
from hybridnorm.nn.nested import through_padding
from hybridnorm.nn.stack import Stack


class TransformerEncoderLayer(Layer):
    """`torch.nn.TransformerEncoderLayer` with a placement; see `Layer` for the arguments."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """torch.nn's: `(batch, seq, d_model)`, `(seq, batch, d_model)`, `(seq, d_model)`, nested.

        Raises:
            HybridNormError: a mask of another shape, or one beside a nested input.
        """
        if src.is_nested:
            return through_padding(self, src, src_mask, src_key_padding_mask, is_causal)
        read = self.shared_norm(src)
        x = self.self_attention(
            src,
            src,
            read,
            attn_mask=src_mask,
            key_padding_mask=src_key_padding_mask,
            is_causal=is_causal,
        )
        x = self.leak(x)
        return self.leak(self.feed_forward(x, src, read if self.is_parallel else x))  # type: ignore[no-any-return]


class TransformerEncoder(Stack):
    """`torch.nn.TransformerEncoder`: `num_layers` copies of a layer, each placed at its depth.

    Args:
        encoder_layer: what is copied, one of ours or any other.
        norm: after the last layer. None: the placement's final norm where the layer was given a
            placement, else none, as in torch.nn.
        enable_nested_tensor, mask_check: torch.nn's, of its fast path for padded batches; they
            change nothing here.
    """

    def __init__(
        self,
        encoder_layer: nn.Module,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__(encoder_layer, num_layers, norm)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """torch.nn's, nested inputs included.

        Args:
            is_causal: None: what the mask says.
        """
        if src.is_nested:
            return through_padding(self, src, mask, src_key_padding_mask, is_causal)
        masks: dict[str, Any] = {"src_mask": mask, "src_key_padding_mask": src_key_padding_mask}
        return self._run(src, is_causal=bool(is_causal), **masks)
