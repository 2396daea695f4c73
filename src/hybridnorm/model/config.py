"""The shape of a model, and the paper's sizes as presets. No torch."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from hybridnorm.errors import HybridNormError, check_unused, nearest
from hybridnorm.placements import Init as PublishedInit
from hybridnorm.placements import check_choice
from hybridnorm.ranges import (
    Count,
    Layers,
    Natural,
    NotNegative,
    Positive,
    Range,
    Ranged,
    Width,
)

Activation = Literal["swiglu", "gelu"]
Init = Literal["published", PublishedInit]
Experts = Annotated[int, Range(at_least=0, at_most=1 << 20)]
_OF_EXPERTS = ("top_k", "d_expert", "norm_topk_prob", "n_shared_experts", "moe_every")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Ranged):
    """A decoder-only transformer."""

    placement: str = "hybridnorm-star"
    """Placement of the norms: a name (`hybridnorm show` lists them), a grammar name such as
    qkv-post, or a .toml file."""
    d_model: Width = 128
    """Width of the residual stream."""
    n_layers: Layers = 4
    """Number of blocks."""
    n_heads: Width = 4
    """Number of query heads; must divide d_model."""
    n_kv_heads: Width | None = None
    """Number of key/value heads (grouped-query attention); must divide n_heads. None: n_heads."""
    d_ff: Width = 352
    """Width of the feed-forward network's hidden layer."""
    vocab_size: Width | None = None
    """Number of tokens. None: the tokenizer's, when training."""
    vocab_multiple_of: Width = 128
    """The embedding has rows up to the next multiple of this (tensor cores like round sizes)."""
    tie_embeddings: bool = True
    """Use the embedding matrix as output head, too."""
    activation: Activation = "swiglu"
    """Feed-forward activation."""
    n_experts: Experts = 0
    """Feed-forward networks (experts) per block, of which every token takes `top_k`. 0: dense."""
    top_k: Width = 2
    """Experts per token."""
    d_expert: Width | None = None
    """Width of an expert's hidden layer. None: d_ff."""
    norm_topk_prob: bool = False
    """Let the weights of a token's experts sum to 1, as Mixtral does; OLMoE does not."""
    n_shared_experts: Experts = 0
    """Experts that take every token, besides."""
    moe_every: Width = 1
    """Every n-th block has experts (the last of each n), the others are dense."""
    rope_theta: Annotated[float, Range(at_least=1)] = 500_000.0
    """Base of the rotary position embedding."""
    norm_eps: Positive = 1e-5
    """Epsilon of every norm that does not set its own."""
    init: Init = "published"
    """Initialization; `published` takes the one the placement was published with."""
    init_std: Positive | None = None
    """Standard deviation of the initialization. None: 1/sqrt(2.5 d_model)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("model.activation", self.activation, get_args(Activation))
        check_choice("model.init", self.init, get_args(Init))
        if self.d_model % self.n_heads:
            raise HybridNormError(
                f"model.n_heads: {self.n_heads} heads do not divide d_model {self.d_model}"
            )
        if self.head_dim % 2:
            raise HybridNormError(
                f"model.n_heads: rotary embedding needs an even head width, got {self.head_dim}"
            )
        if self.n_heads % self.kv_heads:
            raise HybridNormError(
                f"model.n_kv_heads: {self.kv_heads} key/value heads do not divide "
                f"n_heads {self.n_heads}"
            )
        self._check_experts()

    def _check_experts(self) -> None:
        if not self.n_experts:
            check_unused(self, "without n_experts", *_OF_EXPERTS)
            return
        if self.top_k > self.n_experts:
            raise HybridNormError(
                f"model.top_k: must lie between 1 and n_experts {self.n_experts}, got {self.top_k}"
            )
        if self.moe_every > self.n_layers:
            raise HybridNormError(
                f"model.moe_every: must lie between 1 and n_layers {self.n_layers}, "
                f"got {self.moe_every}"
            )
        for name, width in (("d_model", self.d_model), ("d_expert", self.expert_width)):
            if width % 8:
                raise HybridNormError(
                    f"model.{name}: experts need a multiple of 8 (grouped matrix products take "
                    f"rows of whole 16 bytes), got {width}"
                )
        if self.activation != "swiglu":
            raise HybridNormError(f"model.activation: experts are swiglu, got {self.activation}")

    def has_experts(self, layer: int) -> bool:
        """Whether block `layer` (from 0) is a mixture of experts."""
        return self.n_experts > 0 and (layer + 1) % self.moe_every == 0

    @property
    def expert_width(self) -> int:
        return self.d_ff if self.d_expert is None else self.d_expert

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to a multiple of `vocab_multiple_of`."""
        if self.vocab_size is None:
            raise HybridNormError("model.vocab_size: not set; a model needs the tokenizer's")
        return -(-self.vocab_size // self.vocab_multiple_of) * self.vocab_multiple_of

    @property
    def sigma(self) -> float:
        """Standard deviation of the initialization (small init, Nguyen & Salazar 2019)."""
        return 1 / math.sqrt(2.5 * self.d_model) if self.init_std is None else self.init_std


# Table 9 of the paper (paper sizes share vocabulary 100278, tied embeddings, RoPE theta 5e5).
_PAPER = ModelConfig(
    d_model=768, n_layers=12, n_heads=16, n_kv_heads=4, d_ff=2048, vocab_size=100_278
)
_SMALL = ModelConfig(d_model=64, n_layers=8, n_heads=4, n_kv_heads=1, d_ff=168)
PRESETS: dict[str, ModelConfig] = {
    "demo": ModelConfig(d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=352),
    "demo-deep": ModelConfig(d_model=96, n_layers=16, n_heads=4, n_kv_heads=2, d_ff=256),
    # A token uses a quarter of the parameters, as many as those of demo.
    "demo-moe": ModelConfig(
        d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=176, n_experts=16
    ),
    # The paper's sizes for a CPU: half the blocks, a twenty-fourth of the widths, but heads of at
    # least 8. "small" is 550M, "small-deep" is 543M-deep.
    "small-151M": replace(_SMALL, d_model=32, n_layers=6, d_ff=88),
    "small-285M": replace(_SMALL, d_model=48, n_layers=6),
    "small": _SMALL,
    "small-deep": replace(_SMALL, d_model=48, n_layers=14),
    "small-1.2B": replace(_SMALL, d_model=96, n_heads=8, n_kv_heads=2, d_ff=384),
    "151M": _PAPER,
    "285M": replace(_PAPER, d_model=1024, d_ff=4096),
    "550M": replace(_PAPER, d_model=1536, n_layers=16, d_ff=4096),
    "543M-deep": replace(_PAPER, d_model=1024, n_layers=29, d_ff=4096),
    # Table 9 says 9192; the released configuration has 8192.
    "1.2B": replace(_PAPER, d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, d_ff=9192),
    "1.2B-released": replace(
        _PAPER, d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, d_ff=8192
    ),
    # 6.92B parameters, of which a token uses 1.28B.
    "MoE-1B-7B": ModelConfig(
        d_model=2048,
        n_layers=16,
        n_heads=16,
        n_kv_heads=16,
        d_ff=1024,
        n_experts=64,
        top_k=8,
        vocab_size=50_280,
        tie_embeddings=False,
        rope_theta=10_000.0,
    ),
    # OLMo 2 7B with the extra attention-output norm of section 5.3.
    "7B": replace(
        _PAPER,
        placement="hybridnorm-star-7b",
        d_model=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        d_ff=11008,
        tie_embeddings=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Ranged):
    """How `generate` continues a text."""

    max_new_tokens: Annotated[int, Range(at_least=1, at_most=1 << 20)] = 100
    """Tokens to generate at most."""
    temperature: NotNegative = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: Count | None = None
    """Sample from the k likeliest tokens only."""
    top_p: Annotated[float, Range(above=0, at_most=1)] | None = None
    """Sample from the smallest set of tokens with at least this probability only."""
    seed: Natural = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature == 0:
            check_unused(self, "where temperature 0 takes the likeliest token", "top_k", "top_p")


def preset(name: str) -> ModelConfig:
    """The preset called `name`.

    Raises:
        HybridNormError: no such preset; the nearest name is offered.
    """
    if name not in PRESETS:
        raise HybridNormError(f"preset: unknown name {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]
