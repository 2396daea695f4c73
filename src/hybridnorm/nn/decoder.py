"""Decoder layers, which attend to a memory as well, and their stack."""

from typing import Any

from torch import Tensor, nn

from hybridnorm.nn.attention import MultiheadAttention
from hybridnorm.nn.layer import Layer
from hybridnorm.nn.stack import Stack


class TransformerDecoderLayer(Layer):
    """`torch.nn.TransformerDecoderLayer` with a placement; see `Layer` for the arguments."""

    attentions = ("self_attention", "cross_attention")
    cross_attention: Any

    @property
    def multihead_attn(self) -> MultiheadAttention:
        """The attention to the memory, under torch.nn's name."""
        return self.cross_attention.branch.attention  # type: ignore[no-any-return]

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """torch.nn's: `(batch, seq, d_model)`, `(seq, batch, d_model)` or `(seq, d_model)`.

        Raises:
            HybridNormError: a mask of another shape.
        """
        read = self.shared_norm(tgt)
        x = self.self_attention(
            tgt,
            tgt,
            read,
            attn_mask=tgt_mask,
            key_padding_mask=tgt_key_padding_mask,
            is_causal=tgt_is_causal,
        )
        x = self.leak(x)
        x = self.cross_attention(
            x,
            tgt,
            read if self.is_parallel else x,
            memory=memory,
            attn_mask=memory_mask,
            key_padding_mask=memory_key_padding_mask,
            is_causal=memory_is_causal,
        )
        x = self.leak(x)
        return self.leak(self.feed_forward(x, tgt, read if self.is_parallel else x))  # type: ignore[no-any-return]


class TransformerDecoder(Stack):
    """`torch.nn.TransformerDecoder`: `num_layers` copies of a layer, each placed at its depth.

    Args:
        decoder_layer: what is copied, one of ours or any other.
        norm: after the last layer. None: the placement's final norm where the layer was given a
            placement, else none, as in torch.nn.
    """

    def __init__(
        self, decoder_layer: nn.Module, num_layers: int, norm: nn.Module | None = None
    ) -> None:
        super().__init__(decoder_layer, num_layers, norm)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """torch.nn's.

        Args:
            tgt_is_causal: None: what the mask says.
        """
        return self._run(
            tgt,
            memory=memory,
            tgt_mask=tgt_mask,
            memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask,
            tgt_is_causal=bool(tgt_is_causal),
            memory_is_causal=memory_is_causal,
        )
