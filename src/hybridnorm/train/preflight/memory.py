"""An estimate of the memory a rank needs, from the recipe alone. No torch."""

from dataclasses import dataclass

from hybridnorm.model import (
    block_matrices,
    chunk_rows,
    expert_matrices,
    gated_norms,
    norm_width,
    parameter_counts,
)
from hybridnorm.placements import AttentionSpec, BlockSpec, Norm, Placement, Sublayer, norms_of
from hybridnorm.recipe import Recipe

_FLOAT32 = 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank at the peak of a step; what the allocator wastes is not in it."""

    weights: int
    """This rank's shard, float32."""
    gradients: int
    """This rank's shard, float32."""
    optimizer: int
    """State of this rank's shard: two values per weight, one for matrices of blocks under Muon."""
    activations: int
    """What the forward pass keeps for the backward pass, weights cast to bfloat16 included."""
    working: int
    """A chunk of logits with their gradients, or a block that is recomputed, whichever is larger;
    and with sharded weights, the matrices that are whole meanwhile: embedding, head, two blocks."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


def memory_estimate(
    recipe: Recipe,
    placement: Placement,
    *,
    shard: int = 1,
    micro_batch_size: int,
    device: str = "cpu",
) -> MemoryEstimate:
    """The estimate for eager execution; compiled blocks keep less.

    Args:
        shard: ranks that share one copy of the model (those of `parallel.tensor` not among them).
        micro_batch_size: sequences per forward and backward pass on this rank.
        device: its type.

    Raises:
        HybridNormError: no vocabulary size.
    """
    counts = parameter_counts(recipe.model, placement)
    matrices = counts.matrices // recipe.parallel.tensor
    ends = counts.embedding + counts.head
    rest = ends + counts.experts + counts.vectors
    per_matrix = 1 if recipe.optimizer.name == "muon" else 2
    passes = _Passes(recipe, placement, micro_batch_size * recipe.train.seq_len, device)
    in_blocks = 2 * (matrices + counts.experts) // recipe.model.n_layers
    gathered = _FLOAT32 * (ends + in_blocks) if shard > 1 else 0
    weights = _FLOAT32 * (matrices + rest) // shard
    return MemoryEstimate(
        weights=weights,
        gradients=weights,
        optimizer=_FLOAT32 * (per_matrix * matrices + 2 * rest) // shard,
        activations=passes.kept() + passes.head(),
        working=max(passes.logits(), passes.recomputed()) + gathered,
    )


class _Passes:
    """What a forward and a backward pass over `tokens` tokens hold, in bytes."""

    def __init__(self, recipe: Recipe, placement: Placement, tokens: int, device: str) -> None:
        self.device = device
        self.config, self.tokens, self.tensor = recipe.model, tokens, recipe.parallel.tensor
        self.mode = recipe.parallel.activation_checkpointing
        self.width = 2 if recipe.train.dtype == "bf16" else _FLOAT32
        n_layers, self.placement = self.config.n_layers, placement
        self.specs = [placement.block(layer, n_layers) for layer in range(n_layers)]
        self.blocks = [self._block(spec, layer) for layer, spec in enumerate(self.specs)]

    def kept(self) -> int:
        """Of the blocks, until their backward pass."""
        return sum(self.blocks) if self.mode == "none" else sum(map(self._kept, self._layers()))

    def recomputed(self) -> int:
        """What recomputing the largest block adds to what is kept of it."""
        if self.mode == "none":
            return 0
        # Among them, rows of experts meet their gradients.
        return max(
            self.blocks[layer] - self._kept(layer) + self.tokens * self._rows(layer)
            for layer in self._layers()
        )

    def head(self) -> int:
        """Of the final norm, and the gradients of the output matrix: the forward pass has them."""
        d_model = self.config.d_model
        streams = self.tokens * d_model * 2 * self.width  # the norm's input, the head's gradient
        return streams + _FLOAT32 * d_model * self.config.padded_vocab_size

    def logits(self) -> int:
        """Of a chunk of tokens, with the log-probabilities; and the output matrix, cast."""
        vocab_size = self.config.padded_vocab_size
        rows = chunk_rows(self.tokens, vocab_size, self.device)
        wide = 1 if self.width == _FLOAT32 else 2
        logits = rows * vocab_size * (self.width + wide * _FLOAT32)
        return logits + self._cast(self.config.d_model * vocab_size)

    def _layers(self) -> range:
        return range(self.config.n_layers)

    def _kept(self, layer: int) -> int:
        """Of one checkpointed block: its input; if selective, the results of its products, too."""
        config = self.config
        features = config.d_model
        if self.mode == "selective":
            n_up = 2 if config.activation == "swiglu" else 1
            inner = 2 * config.d_model + 2 * config.kv_heads * config.head_dim
            inner += n_up * self._hidden(layer)
            inner += self.specs[layer].attention.gate_width(config.n_heads, config.d_model)
            features += inner // self.tensor + 2 * config.d_model
            features += sum(norm.gate + config.d_model for norm in gated_norms(self.specs[layer]))
            if config.has_experts(layer):
                features += config.n_experts + config.top_k * config.d_model
        return self.tokens * features * self.width

    def _hidden(self, layer: int) -> int:
        """Features of one token inside the feed-forward network, or in its experts together."""
        return norm_width("mid_norm", self.config, layer)

    def _block(self, spec: BlockSpec, layer: int) -> int:
        """Of one block that is not checkpointed."""
        sublayers = (spec.attention, spec.feed_forward)
        per_token = sum(self._sublayer(sublayer, layer) for sublayer in sublayers)
        per_token += 2 * self.width * self.config.d_model * spec.leak
        if spec.shared_norm:
            per_token += self._norm(spec.shared_norm, self.config.d_model)
        matrices = block_matrices(self.config, self.placement, layer) // self.tensor
        return self.tokens * per_token + self._cast(matrices + expert_matrices(self.config, layer))

    def _sublayer(self, spec: Sublayer, layer: int) -> int:
        """Bytes per token: the branch's input, each norm, and what the branch itself keeps."""
        config, width = self.config, self.width
        scales = spec.scales.values()
        stream = width * config.d_model * (1 + sum(scale.learned != "none" for scale in scales))
        norms = sum(
            self._norm(norm, norm_width(name, config, layer))
            for name, norm in norms_of(spec).items()
        )
        if isinstance(spec, AttentionSpec):
            features = 2 * config.d_model + 2 * config.kv_heads * config.head_dim
            branch = width * features + _FLOAT32 * config.n_heads
            if gate := spec.gate_width(config.n_heads, config.d_model):
                branch += width * (gate + config.d_model)  # and what it is multiplied with
        else:
            branch = width * self._hidden(layer) * (4 if config.activation == "swiglu" else 2)
            if config.has_experts(layer):
                branch += self._rows(layer) + 3 * _FLOAT32 * config.n_experts  # router, softmax
        return stream + norms + branch // self.tensor

    def _norm(self, norm: Norm, features: int) -> int:
        """Bytes per token: its input; if autograd differentiates it, in float32, and its result."""
        kept = features * (self.width if norm.kind == "rms" else _FLOAT32 + self.width)
        return kept + self.width * (2 * features + 2 * norm.gate) * bool(norm.gate)

    def _rows(self, layer: int) -> int:
        """Bytes per token of the rows that go to its experts and come back."""
        config = self.config
        return config.has_experts(layer) * 2 * self.width * config.top_k * config.d_model

    def _cast(self, weights: int) -> int:
        """Copies of weights in the activations' dtype."""
        return 0 if self.width == _FLOAT32 else self.width * weights
