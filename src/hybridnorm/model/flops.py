"""Parameters and FLOPs of a model from its configuration alone. No torch."""

from dataclasses import dataclass

from hybridnorm.model.config import ModelConfig
from hybridnorm.placement.spec import Norm, Placement, Scale, Sublayer, norms_of


@dataclass(frozen=True)
class ParameterCounts:
    """How many parameters a model has, by what becomes of them."""

    embedding: int
    """Of the embedding matrix, padding rows included."""
    head: int
    """Of the output matrix; 0 where it is tied to the embedding."""
    matrices: int
    """Of the matrices of all blocks."""
    vectors: int
    """Norm gains and biases, and learned scales."""

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.non_embedding

    @property
    def non_embedding(self) -> int:
        """Without embedding and head, as scaling laws count."""
        return self.matrices + self.vectors


def parameter_counts(config: ModelConfig, placement: Placement) -> ParameterCounts:
    """The parameters of `Transformer(config, placement)`.

    Raises:
        HybridNormError: no vocabulary size.
    """
    n_layers, d_model = config.n_layers, config.d_model
    blocks = [placement.block(layer, n_layers) for layer in range(n_layers)]
    vectors = sum(
        _sublayer_vectors(sublayer, config)
        for block in blocks
        for sublayer in (block.attention, block.feed_forward)
    )
    vectors += _scale_size(placement.embed_scale, d_model)
    ends = (placement.embed_norm, placement.final(n_layers))
    vectors += sum(_norm_size(norm, d_model) for norm in ends)
    embedding = config.padded_vocab_size * d_model
    return ParameterCounts(
        embedding=embedding,
        head=0 if config.tie_embeddings else embedding,
        matrices=n_layers * block_matrices(config),
        vectors=vectors,
    )


def block_matrices(config: ModelConfig) -> int:
    """Elements of the matrices of one block: q, k, v, o, and two or (gated) three of width d_ff."""
    kv_width = config.kv_heads * config.head_dim
    n_feed_forward = 3 if config.activation == "swiglu" else 2
    return config.d_model * (2 * config.d_model + 2 * kv_width + n_feed_forward * config.d_ff)


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """FLOPs of training on one token of a sequence of `seq_len`: forward and backward pass.

    The convention of model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B): matrix products
    only, two FLOPs per multiply-add, the backward pass twice the forward pass, nothing for what
    is recomputed; every token attends to the whole sequence (a causal kernel does half of that);
    the head counts, the embedding lookup and the rows that pad the vocabulary do not.

    Raises:
        HybridNormError: no vocabulary size.
    """
    vocab_size = config.vocab_size or config.padded_vocab_size  # which raises: there is none
    products = config.n_layers * block_matrices(config) + config.d_model * vocab_size
    attention = config.n_layers * 2 * seq_len * config.d_model
    return 3 * 2 * (products + attention)


def norm_width(name: str, config: ModelConfig) -> int:
    """Features of one token that the norm in field `name` of a sublayer acts on."""
    kv_width = config.kv_heads * config.head_dim
    widths = {"k_norm": kv_width, "v_norm": kv_width, "mid_norm": config.d_ff}
    return widths.get(name, config.d_model)


def _sublayer_vectors(spec: Sublayer, config: ModelConfig) -> int:
    norms = sum(
        # The heads share one gain.
        _norm_size(norm, config.head_dim if _is_per_head(name, norm) else norm_width(name, config))
        for name, norm in norms_of(spec).items()
    )
    scales = (spec.input_scale, spec.skip_scale, spec.branch_scale)
    return norms + sum(_scale_size(scale, config.d_model) for scale in scales)


def _is_per_head(name: str, norm: Norm) -> bool:
    return name in ("q_norm", "k_norm", "v_norm", "context_norm") and norm.axis == "head"


def _norm_size(norm: Norm | None, width: int) -> int:
    if norm is None or not norm.affine:
        return 0
    has_bias = norm.kind in ("layer", "dyt", "derf")
    return width * (1 + has_bias) + {"dyt": 1, "derf": 2}.get(norm.kind, 0)


def _scale_size(scale: Scale, width: int) -> int:
    return {"none": 0, "scalar": 1, "channel": width}[scale.learned]
