"""Parameters and FLOPs of a model from its configuration alone. No torch."""

from dataclasses import dataclass

from hybridnorm.model.config import ModelConfig
from hybridnorm.placements import (
    HEAD_NORMS,
    BlockSpec,
    Norm,
    Placement,
    Scale,
    Sublayer,
    norms_of,
    registry,
)


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters a model has, by what becomes of them."""

    embedding: int
    """Of the embedding matrix, padding rows included."""
    head: int
    """Of the output matrix; 0 where it is tied to the embedding."""
    matrices: int
    """Of the matrices of all blocks, experts left out."""
    experts: int
    """Of the experts that a router chooses from."""
    active_experts: int
    """Of those that it chooses for one token."""
    vectors: int
    """Norm gains and biases, and learned scales."""

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.non_embedding

    @property
    def active(self) -> int:
        """Those that one token uses."""
        return self.total - self.experts + self.active_experts

    @property
    def non_embedding(self) -> int:
        """Without embedding and head, as scaling laws count."""
        return self.matrices + self.experts + self.vectors


def parameter_counts(config: ModelConfig, placement: Placement) -> ParameterCounts:
    """The parameters of `Transformer(config, placement)`.

    Raises:
        HybridNormError: no vocabulary size.
    """
    n_layers, d_model = config.n_layers, config.d_model
    vectors = 0
    for layer in range(n_layers):
        block = placement.block(layer, n_layers)
        vectors += _norm_size(block.shared_norm, d_model) + block.leak
        vectors += sum(
            _sublayer_vectors(sublayer, config, layer)
            for sublayer in (block.attention, block.feed_forward)
        )
    vectors += _scale_size(placement.embed_scale, d_model)
    ends = (placement.embed_norm, placement.final(n_layers))
    vectors += sum(_norm_size(norm, d_model) for norm in ends)
    embedding = config.padded_vocab_size * d_model
    return ParameterCounts(
        embedding=embedding,
        head=0 if config.tie_embeddings else embedding,
        matrices=sum(block_matrices(config, placement, layer) for layer in range(n_layers)),
        experts=sum(expert_matrices(config, layer) for layer in range(n_layers)),
        active_experts=_active_experts(config),
        vectors=vectors,
    )


def block_matrices(config: ModelConfig, placement: Placement, layer: int) -> int:
    """Elements of the matrices of block `layer` that every token uses.

    Attention has q, k, v, o and perhaps a gate; a gated norm has two; a feed-forward network (or
    the shared experts, as one) two or, gated, three; experts have a router.
    """
    d_model, kv_width = config.d_model, config.kv_heads * config.head_dim
    attention = d_model * (2 * d_model + 2 * kv_width)
    block = placement.block(layer, config.n_layers)
    attention += d_model * block.attention.gate_width(config.n_heads, d_model)
    attention += 2 * d_model * sum(norm.gate for norm in gated_norms(block))
    if config.has_experts(layer):
        shared = 3 * config.n_shared_experts * config.expert_width
        return attention + d_model * (config.n_experts + shared)
    n_matrices = 3 if config.activation == "swiglu" else 2
    return attention + n_matrices * d_model * config.d_ff


def gated_norms(block: BlockSpec) -> list[Norm]:
    """The norms of a block that have a gate."""
    specs = (block, block.attention, block.feed_forward)
    return [norm for spec in specs for norm in norms_of(spec).values() if norm.gate]


def expert_matrices(config: ModelConfig, layer: int) -> int:
    """Elements of the experts that the router of block `layer` chooses from."""
    return config.has_experts(layer) * config.n_experts * 3 * config.d_model * config.expert_width


def _active_experts(config: ModelConfig) -> int:
    everything = sum(expert_matrices(config, layer) for layer in range(config.n_layers))
    return everything * config.top_k // max(1, config.n_experts)


def flops_per_token(config: ModelConfig, seq_len: int, placement: Placement | None = None) -> int:
    """FLOPs of training on one token of a sequence of `seq_len`: forward and backward pass.

    The convention of model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B): matrix products
    only, two FLOPs per multiply-add, the backward pass twice the forward pass, nothing for what
    is recomputed, nor for experts that a token does not use; every token attends to the whole
    sequence (a causal kernel does half of that); the head counts, the embedding lookup and the
    rows that pad the vocabulary do not.

    Args:
        placement: an explicit placement, instead of the one `config` names.

    Raises:
        HybridNormError: no vocabulary size.
    """
    placement = placement or registry.placement(config.placement)
    vocab_size = config.vocab_size or config.padded_vocab_size  # which raises: there is none
    products = sum(block_matrices(config, placement, layer) for layer in range(config.n_layers))
    products += _active_experts(config) + config.d_model * vocab_size
    attention = config.n_layers * 2 * seq_len * config.d_model
    return 3 * 2 * (products + attention)


def norm_width(name: str, config: ModelConfig, layer: int) -> int:
    """Features of one token that the norm in field `name` of a sublayer acts on."""
    kv_width = config.kv_heads * config.head_dim
    hidden = config.d_ff
    if config.has_experts(layer):
        hidden = (config.top_k + config.n_shared_experts) * config.expert_width
    widths = {"k_norm": kv_width, "v_norm": kv_width, "mid_norm": hidden}
    return widths.get(name, config.d_model)


def _sublayer_vectors(spec: Sublayer, config: ModelConfig, layer: int) -> int:
    norms = sum(
        _norm_size(norm, width)
        for name, norm in norms_of(spec).items()
        for width in _gain_widths(name, norm, config, layer)
    )
    scales = spec.scales.values()
    return norms + sum(_scale_size(scale, config.d_model) for scale in scales)


def _gain_widths(name: str, norm: Norm, config: ModelConfig, layer: int) -> list[int]:
    """Heads share one gain, and so do the experts; the shared ones have another."""
    if name in HEAD_NORMS and norm.axis == "head":
        return [config.head_dim]
    if name == "mid_norm" and config.has_experts(layer):
        shared = config.n_shared_experts * config.expert_width
        return [config.expert_width, shared] if shared else [config.expert_width]
    return [norm_width(name, config, layer)]


def _norm_size(norm: Norm | None, width: int) -> int:
    if norm is None:
        return 0
    gain = {"none": 0, "scalar": 1, "vector": width}[norm.affine]
    return gain * (1 + norm.has_bias) + {"dyt": 1, "derf": 2}.get(norm.kind, 0)


def _scale_size(scale: Scale, width: int) -> int:
    return {"none": 0, "scalar": 1, "channel": width}[scale.learned]
