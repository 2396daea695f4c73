"""The shape of a model, and the paper's sizes as presets. No torch."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.placement.spec import Init as PublishedInit
from hybridnorm.placement.spec import check_choice

Activation = Literal["swiglu", "gelu"]
Init = Literal["published", PublishedInit]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer."""

    placement: str = "hybridnorm-star"
    """Placement of the norms: a name (`hybridnorm show` lists them), a grammar name such as
    qkv-post, or a .toml file."""
    d_model: int = 128
    """Width of the residual stream."""
    n_layers: int = 4
    """Number of blocks."""
    n_heads: int = 4
    """Number of query heads; must divide d_model."""
    n_kv_heads: int | None = None
    """Number of key/value heads (grouped-query attention); must divide n_heads. None: n_heads."""
    d_ff: int = 352
    """Width of the feed-forward network's hidden layer."""
    vocab_size: int | None = None
    """Number of tokens. None: the tokenizer's, when training."""
    vocab_multiple_of: int = 128
    """The embedding has rows up to the next multiple of this (tensor cores like round sizes)."""
    tie_embeddings: bool = True
    """Use the embedding matrix as output head, too."""
    activation: Activation = "swiglu"
    """Feed-forward activation."""
    rope_theta: float = 500_000.0
    """Base of the rotary position embedding."""
    norm_eps: float = 1e-5
    """Epsilon of every norm that does not set its own."""
    init: Init = "published"
    """Initialization; `published` takes the one the placement was published with."""
    init_std: float | None = None
    """Standard deviation of the initialization. None: 1/sqrt(2.5 d_model)."""

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "d_ff", "vocab_multiple_of"):
            if getattr(self, name) < 1:
                raise HybridNormError(
                    f"model.{name}: must be at least 1, got {getattr(self, name)}"
                )
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
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise HybridNormError(
                f"model.n_kv_heads: {self.kv_heads} key/value heads do not divide "
                f"n_heads {self.n_heads}"
            )
        if self.vocab_size is not None and self.vocab_size < 1:
            raise HybridNormError(f"model.vocab_size: must be at least 1, got {self.vocab_size}")

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
PRESETS: dict[str, ModelConfig] = {
    "demo": ModelConfig(d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=352),
    "demo-deep": ModelConfig(d_model=96, n_layers=16, n_heads=4, n_kv_heads=2, d_ff=256),
    "151M": _PAPER,
    "285M": replace(_PAPER, d_model=1024, d_ff=4096),
    "550M": replace(_PAPER, d_model=1536, n_layers=16, d_ff=4096),
    "543M-deep": replace(_PAPER, d_model=1024, n_layers=29, d_ff=4096),
    # Table 9 says 9192; the released configuration has 8192.
    "1.2B": replace(_PAPER, d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, d_ff=9192),
    "1.2B-released": replace(
        _PAPER, d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, d_ff=8192
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


def preset(name: str) -> ModelConfig:
    """The preset called `name`.

    Raises:
        HybridNormError: no such preset; the nearest name is offered.
    """
    if name not in PRESETS:
        raise HybridNormError(f"preset: unknown name {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]
