"""The shapes, the peers, and the settings in which a peer can run."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.flops import flops_per_token


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and a batch: untied embeddings, no biases, no dropout, RoPE, SwiGLU, RMSNorm."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    vocab_size: int
    batch: int
    seq: int

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    @property
    def flops(self) -> int:
        """Of the matrix products of one training step."""
        config = ModelConfig(
            d_model=self.d_model,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_ff=self.d_ff,
            vocab_size=self.vocab_size,
        )
        return self.tokens * flops_per_token(config, self.seq)

    @property
    def model(self) -> str:
        return (
            f"d_model {self.d_model} x {self.n_layers} layers, {self.n_heads} heads, "
            f"{self.n_kv_heads} key/value heads, SwiGLU {self.d_ff}, "
            f"vocabulary {self.vocab_size:,}"
        )

    def __str__(self) -> str:
        return f"{self.model}, {self.batch} x {self.seq} tokens"


def _shape(*sizes: int) -> Shape:
    return Shape(**dict(zip(Shape.__annotations__, sizes, strict=True)))


SHAPES = {
    "demo": _shape(128, 4, 4, 2, 352, 4096, 16, 128),
    "256": _shape(256, 8, 8, 4, 704, 8192, 16, 256),
    "512": _shape(512, 8, 8, 4, 1408, 50304, 4, 512),
    "151M": _shape(768, 12, 16, 4, 2048, 100278, 8, 2048),
}


@dataclass(frozen=True)
class Peer:
    """A library, and the model of it that is trained."""

    name: str
    module: str
    """File in peers/ that builds it."""
    environment: str | None = None
    """Its virtual environment; None: this project's own."""
    variant: str = ""
    attentions: tuple[str, ...] = ("sdpa",)
    """What it can attend with."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer("hybridnorm-star", "hybridnorm", variant="hybridnorm-star"),
        Peer("pre-norm", "hybridnorm", variant="pre-norm"),
        Peer("yardstick", "yardstick", attentions=("sdpa", "math")),
        Peer("transformers Llama", "transformers", "transformers", "Llama", ("sdpa", "math")),
        Peer("transformers Olmo2", "transformers", "transformers", "Olmo2", ("sdpa", "math")),
        Peer("litgpt", "litgpt", "litgpt"),
        Peer("x-transformers", "x_transformers", "x-transformers", "", ("sdpa", "math")),
        Peer("OLMo-core", "olmo_core", "olmo-core"),
    )
}


@dataclass(frozen=True)
class Arm:
    """A peer in one setting."""

    peer: str
    dtype: str
    """fp32, bf16, or default: what hybridnorm picks by itself."""
    compiled: bool = False
    attention: str = "sdpa"
    kept: bool = False
    """Whether the C library keeps freed memory, instead of returning it in every step."""

    @property
    def setting(self) -> str:
        if self.dtype == "default":
            return "default"
        words = [self.dtype, "compiled" if self.compiled else "eager"]
        words += ["math attention"] * (self.attention == "math")
        return ", ".join(words + ["memory kept"] * self.kept)

    def __str__(self) -> str:
        return f"{self.peer}, {self.setting}"

    def setup(self, shape: Shape, device: str, **task: object) -> str:
        """What `peers/worker.py` takes."""
        peer = PEERS[self.peer]
        setup = {"peer": peer.module, "variant": peer.variant, "device": device}
        return json.dumps(
            setup | asdict(self) | {"peer": peer.module, "shape": asdict(shape)} | task
        )


DEFAULT = Arm("hybridnorm-star", "default")


def settings(peer: Peer, dtypes: Sequence[str] = ("fp32", "bf16")) -> Iterator[Arm]:
    """All that are tried. Attention by matrix products is worth trying compiled only."""
    for dtype, compiled in product(dtypes, (False, True)):
        for attention in peer.attentions if compiled else peer.attentions[:1]:
            yield Arm(peer.name, dtype, compiled, attention)
