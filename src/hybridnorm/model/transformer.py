"""The decoder-only transformer."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybridnorm.model.block import Block
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.initialization import initialize, scheme
from hybridnorm.model.kernels import Mask, linear_cross_entropy
from hybridnorm.model.layers import KVCache, KVCaches, Rope, rope
from hybridnorm.model.linear import Linear
from hybridnorm.model.masks import continuation_mask, document_mask
from hybridnorm.model.moe import Routing
from hybridnorm.model.norms import NormBuilder
from hybridnorm.placements import Placement, registry


class Losses(NamedTuple):
    """What an objective weighs; the first three are means over the targets."""

    total: Tensor
    """`cross_entropy` + z_weight * `z`, the only one of the three with a gradient."""
    cross_entropy: Tensor
    """In nats."""
    z: Tensor
    """Squared log-partition function of the logits, log(sum(exp(logits)))^2 (PaLM, section 5)."""
    routing: Routing | None
    """Of all layers with experts, stacked; None in a dense model."""


class Tree(NamedTuple):
    """Rows that hold several texts each, where what they begin with in common stands once."""

    positions: Tensor
    """Of each token in its own text, `(batch, seq)`."""
    mask: Tensor
    """True where a token sees another: an earlier one of its own text, `(batch, 1, seq, seq)`."""


class Transformer(nn.Module):
    """Token embedding, blocks, final norm, head.

    Args:
        config: the shape; `config.placement` names the placement.
        placement: an explicit placement, instead of the one `config` names.
        seed: of the initial weights (`initialization.initialize`), drawn unless the model is
            built under `torch.device("meta")`.

    Raises:
        HybridNormError: an unknown placement, or no vocabulary size.
    """

    def __init__(
        self, config: ModelConfig, placement: Placement | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.placement = placement or registry.placement(config.placement)
        self.dtype = torch.float32
        """Dtype of the activations; the weights stay float32 and are cast where they are used."""
        self.compiled_loss = False
        """Whether the loss goes through torch.compile, as `parallelize` makes blocks do."""
        n_layers = config.n_layers
        builders = [NormBuilder(layer, config) for layer in range(n_layers)]
        self.embedding = nn.Embedding(
            config.padded_vocab_size,
            config.d_model,
            _weight=torch.empty(config.padded_vocab_size, config.d_model),
        )
        self.embed_scale = builders[0].scale(self.placement.embed_scale)
        self.embed_norm = builders[0].norm(self.placement.embed_norm)
        self.blocks = nn.ModuleList(
            Block(config, self.placement.block(build.layer, n_layers), build) for build in builders
        )
        self.final_norm = builders[-1].norm(self.placement.final(n_layers))
        self.head = (
            None if config.tie_embeddings else Linear(config.d_model, config.padded_vocab_size)
        )
        if not self.embedding.weight.is_meta:
            self.initialize(seed)

    def initialize(self, seed: int) -> None:
        """Draw all weights anew, by name (`initialization.initialize`)."""
        initialize(self, self.config, scheme(self.config, self.placement), seed)

    def forward(
        self,
        input_ids: Tensor,
        caches: KVCaches | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Token ids `(batch, seq)` to logits `(batch, seq, vocab_size)`.

        Args:
            caches: `kv_caches`; the ids continue the cached text.
            documents: which document each token belongs to, `(batch, seq)`; tokens then attend
                to their own document only.
        """
        hidden_BTD, _ = self.hidden(input_ids, caches, documents)
        return self.logits(hidden_BTD)

    def logits_at(self, input_ids: Tensor, places: Tensor, tree: Tree | None = None) -> Tensor:
        """`forward`'s logits at some places of the batch only, `(places, vocab_size)`.

        Args:
            places: indices `(places,)` into the ids, row after row.
            tree: where rows hold texts that share their beginnings.
        """
        hidden_BTD, _ = self.hidden(input_ids, tree=tree)
        return self.logits(hidden_BTD.flatten(0, 1)[places])

    def next_logits(self, input_ids: Tensor, caches: KVCaches) -> Tensor:
        """`forward`'s logits after the last token only, `(batch, vocab_size)`."""
        hidden_BTD, _ = self.hidden(input_ids, caches)
        return self.logits(hidden_BTD[:, -1])

    def hidden(
        self,
        input_ids: Tensor,
        caches: KVCaches | None = None,
        documents: Tensor | None = None,
        tree: Tree | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Token ids `(batch, seq)` to what the head reads, `(batch, seq, d_model)`.

        Beside it, what the router of every layer with experts did.
        """
        length = input_ids.shape[1]
        start = caches.length if caches else 0
        rope_ = caches.rope.at(start, start + length) if caches else self._rope(length)
        mask: Mask | None
        if tree is not None:
            rope_, mask = self._rope_at(tree.positions), tree.mask
        elif documents is not None:
            mask = document_mask(documents)
        else:
            mask = continuation_mask(start, length, input_ids.device)
        x_BTD = self.embedding(input_ids).to(self.dtype)
        x_BTD = self.embed_norm(self.embed_scale(x_BTD))
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            x_BTD, new = block(x_BTD, rope_, caches.layers[layer] if caches else None, mask)
            routings += new
        return self.final_norm(x_BTD), routings

    def loss(self, input_ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of `targets` `(batch, seq)`, -100 where there is none."""
        hidden_BTD, _ = self.hidden(input_ids, documents=documents)
        return self._minimized(hidden_BTD, targets, compiled=self.compiled_loss)[0]

    def row_losses(
        self, input_ids: Tensor, targets: Tensor, documents: Tensor | None = None
    ) -> Tensor:
        """`loss` of each row alone, `(batch,)`."""
        hidden_BTD, _ = self.hidden(input_ids, documents=documents)
        rows = zip(hidden_BTD, targets, strict=True)
        return torch.stack([self._minimized(hidden_TD, at_T)[0] for hidden_TD, at_T in rows])

    def losses(
        self,
        input_ids: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        *,
        z_weight: float = 0.0,
    ) -> Losses:
        """`loss`, and beside it a z-loss and what the losses of routers weigh."""
        hidden_BTD, routings = self.hidden(input_ids, documents=documents)
        total, cross_entropy, z = self._minimized(
            hidden_BTD, targets, z_weight, compiled=self.compiled_loss
        )
        routing = Routing(*map(torch.stack, zip(*routings, strict=True))) if routings else None
        return Losses(total, cross_entropy, z, routing)

    def _minimized(
        self,
        hidden: Tensor,
        targets: Tensor,
        z_weight: float = 0.0,
        *,
        compiled: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return linear_cross_entropy(
            hidden.flatten(0, -2),
            self._padded_head(),
            targets.flatten(),
            vocab_size=self.config.vocab_size,
            z_weight=z_weight,
            compiled=compiled,
        )

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """What the head makes of `hidden`, `(..., d_model)` to `(..., vocab_size)`."""
        return F.linear(hidden_BTD, self.head_weight().to(hidden_BTD.dtype))

    def head_weight(self) -> Tensor:
        """The output matrix `(vocab_size, d_model)`, without the rows that pad the vocabulary."""
        return self._padded_head()[: self.config.vocab_size]

    def _padded_head(self) -> Tensor:
        weight = self.embedding.weight if self.head is None else self.head.weight
        # The same on every tensor-parallel rank.
        return weight.to_local() if isinstance(weight, DTensor) else weight

    def kv_caches(self, max_len: int) -> KVCaches:
        """Empty caches for texts of up to `max_len` tokens."""
        return KVCaches([KVCache(max_len) for _ in self.blocks], self._rope(max_len))

    def _rope(self, length: int) -> Rope:
        return self._rope_at(torch.arange(length, device=self.embedding.weight.device))

    def _rope_at(self, positions: Tensor) -> Rope:
        return rope(positions, self.config.head_dim, self.config.rope_theta)

    def num_parameters(self) -> int:
        """Parameters, tied ones counted once, padding rows included."""
        return sum(parameter.numel() for parameter in self.parameters())
