"""What a probe is: one small class that says what it looks at, computes and shows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from hybridnorm.diagnose import figures
from hybridnorm.diagnose.table import Arms, Table
from hybridnorm.model import ModelConfig, Transformer
from hybridnorm.recipe import Recipe
from hybridnorm.train import Batch, Trainer, World

Start = Callable[[Callable[[Recipe], Recipe]], Trainer]
"""A fresh training of the recipe after a change."""


class Reading(NamedTuple):
    """A number that a probe found; `layer` and `sublayer` as in `table.Row`."""

    layer: int
    sublayer: str
    name: str
    value: Tensor
    """`(rows,)`, one for each sequence of the batch, or a scalar that is the same on all ranks."""
    reduce: Literal["mean", "max", "first"] = "mean"
    """What becomes of the sequences; first: of rank 0 alone."""


class SublayerView(NamedTuple):
    """What passed through a sublayer in one forward pass; tensors are `(rows, seq, d_model)`."""

    layer: int
    name: str
    module: Any
    """The `Residual`."""
    x: Tensor
    """The stream that enters."""
    normed: Tensor
    """After the input norm; `x` where there is none."""
    contribution: Tensor
    """What is added to the stream, norms and scales of the branch included."""
    summed: Tensor
    """The sum, before a post-norm."""
    out: Tensor
    """The stream that leaves."""


class AttentionView(NamedTuple):
    """Queries and keys as they meet, `(rows, seq, heads, head_dim)`: normed and rotated.

    Of tensor-parallel ranks, those of its own heads.
    """

    layer: int
    module: Any
    """The `Attention`."""
    queries: Tensor
    keys: Tensor
    documents: Tensor | None
    """Which document a token belongs to, where attention is masked by documents."""


class StreamView(NamedTuple):
    """The stream of one forward pass: the embedding, and what left every block."""

    model: Transformer
    batch: Batch
    states: Sequence[Tensor]
    """`n_layers + 1` of `(rows, seq, d_model)`."""
    is_first: bool
    """Whether it is the first batch of this measurement."""
    loss: Tensor
    """Of the batch, in nats per token."""
    repeat: Callable[[], Tensor]
    """The loss of the same batch once more, as a probe has changed the model meanwhile."""


class GradientView(NamedTuple):
    """The gradients of a step, of the whole batch, before they are clipped."""

    model: Transformer
    world: World
    stream: Sequence[float]
    """||dL/dh|| of the embedding and of what left every block."""


@dataclass(frozen=True)
class Size:
    """What a measurement holds at a time, for an estimate of memory."""

    config: ModelConfig
    rows: int
    seq_len: int

    @property
    def states(self) -> int:
        """Bytes of the stream after every block, float32."""
        return 4 * (self.config.n_layers + 1) * self.rows * self.seq_len * self.config.d_model


class Probe:
    """Looks at a model in one step and returns numbers; it changes nothing.

    Its docstring is the exact definition with its source. It overrides the methods for what it
    looks at; every rank calls all of them in the same order. The class is made anew for each run.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    """Of the figure."""
    reading: ClassVar[str]
    """How to read the figure, and what it does not say."""
    shown: ClassVar[tuple[tuple[str, str, str], ...]]
    """The panels of the figure: sublayer, name, label of the axis."""
    axis: ClassVar[Literal["layer", "step"]] = "layer"
    """What the figure has on its horizontal axis where several steps were measured."""
    log: ClassVar[bool] = False
    """Whether the vertical axis is logarithmic."""

    def gradients(self, view: GradientView) -> Iterable[Reading]:
        """Of the gradients of the step."""
        return ()

    def weights(self, model: Transformer) -> Iterable[Reading]:
        """Of the weights before the step."""
        return ()

    def sublayer(self, view: SublayerView) -> Iterable[Reading]:
        """Of each sublayer, in a forward pass over held-out text."""
        return ()

    def attention(self, view: AttentionView) -> Iterable[Reading]:
        """Of each attention, in a forward pass over held-out text."""
        return ()

    def stream(self, view: StreamView) -> Iterable[Reading]:
        """Of the stream, after a forward pass over held-out text."""
        return ()

    def trial(self, start: Start) -> Iterable[Reading]:
        """Of trainings of its own; only `hybridnorm diagnose` lets it."""
        return ()

    def memory(self, size: Size) -> int:
        """Bytes it needs beside the model and a forward pass without gradients."""
        return 0

    def draw(self, arms: Arms) -> Figure:
        """The figure; lines are arms, or steps where there is one arm."""
        return figures.panels(arms, self.shown, axis=self.axis, log=self.log)

    def summary(self, table: Table) -> list[str]:
        """The figure in numbers, a line each."""
        return []

    @classmethod
    def looks_at(cls, what: str) -> bool:
        """Whether it overrides the method called `what`."""
        return getattr(cls, what) is not getattr(Probe, what)
