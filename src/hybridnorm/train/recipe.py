"""A recipe: everything that determines a training run, as TOML or frozen dataclasses. No torch."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import tomli_w

from hybridnorm.data.config import DataConfig
from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.model.config import ModelConfig, preset
from hybridnorm.tables import build, check_field, to_table


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length, batch, precision and rhythm of a run."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 16
    """Sequences per optimizer step, over all ranks and micro-batches."""
    micro_batch_size: int | None = None
    """Sequences per forward and backward pass on one rank. None: the whole batch at once."""
    seq_len: int = 256
    """Tokens per sequence."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes CUDA where there is one."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Dtype of the activations; weights and optimizer state are always float32."""
    compile: bool = False
    """Compile each block with torch.compile."""
    log_every: int = 10
    """Steps between two rows of metrics.jsonl."""
    eval_every: int = 100
    """Steps between two evaluations on held-out text; also evaluated after the last step."""
    eval_sequences: int = 128
    """Held-out sequences per evaluation, at most."""
    checkpoint_every: int = 100
    """Steps between two checkpoints; also saved after the last step."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; the one with the lowest held-out loss is kept, too."""

    def __post_init__(self) -> None:
        optional = () if self.micro_batch_size is None else ("micro_batch_size",)
        for name in (
            "steps",
            "batch_size",
            "seq_len",
            "log_every",
            "eval_every",
            "eval_sequences",
            "checkpoint_every",
            "keep_checkpoints",
            *optional,
        ):
            if getattr(self, name) < 1:
                raise HybridNormError(
                    f"train.{name}: must be at least 1, got {getattr(self, name)}"
                )
        if self.batch_size % (self.micro_batch_size or self.batch_size):
            raise HybridNormError(
                f"train.micro_batch_size: {self.micro_batch_size} does not divide "
                f"batch_size {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and what it decays."""

    name: Literal["adamw"] = "adamw"
    """Optimizer."""
    lr: float = 3e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the running moments."""
    eps: float = 1e-8
    """Added to the denominator."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the decayed groups."""
    decay_norms: bool = True
    """Decay norm gains, biases and learned scales, as the authors do."""
    decay_embeddings: bool = False
    """Decay the embedding matrix; the authors do for MoE only."""
    grad_clip: float = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "grad_clip"):
            if getattr(self, name) <= 0:
                raise HybridNormError(
                    f"optimizer.{name}: must be positive, got {getattr(self, name)}"
                )
        if self.weight_decay < 0:
            raise HybridNormError(
                f"optimizer.weight_decay: must not be negative, got {self.weight_decay}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise HybridNormError(f"optimizer.betas: must lie in [0, 1), got {self.betas}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run: linear warm-up, then a cosine."""

    name: Literal["cosine"] = "cosine"
    """Shape after the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    final_lr_fraction: float = 0.1
    """Learning rate at the last step, as a fraction of the peak."""

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise HybridNormError(
                f"schedule.warmup_steps: must not be negative, got {self.warmup_steps}"
            )
        if not 0 <= self.final_lr_fraction <= 1:
            raise HybridNormError(
                f"schedule.final_lr_fraction: must lie in [0, 1], got {self.final_lr_fraction}"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a run."""

    seed: int = 0
    """Seed of the initial weights and of the data order."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise HybridNormError(f"seed: must not be negative, got {self.seed}")
        if self.schedule.warmup_steps > self.train.steps:
            raise HybridNormError(
                f"schedule.warmup_steps: {self.schedule.warmup_steps} exceeds "
                f"train.steps {self.train.steps}"
            )


def builtin(folder: str = "") -> dict[str, Traversable]:
    """The built-in recipes (or, with `folder` "studies", studies) by name."""
    room = files("hybridnorm") / "recipes" / folder
    found = [entry for entry in room.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry for entry in found}


def read_toml(name_or_path: str | Path, folder: str = "") -> dict[str, Any]:
    """The table of a `.toml` file, or of a built-in recipe or study.

    Raises:
        HybridNormError: no such file or name, or not TOML.
    """
    text = str(name_or_path)
    kind = "study" if folder else "recipe"
    if text.endswith(".toml"):
        source: Traversable = Path(text)
    else:
        known = builtin(folder)
        if text not in known:
            hint = nearest(text, known)
            raise HybridNormError(f"{kind}: unknown name {text!r}; {hint}; or name a .toml file")
        source = known[text]
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise HybridNormError(f"{kind}: cannot read {text}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HybridNormError(f"{kind}: {text} is not TOML: {error}") from None


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """A recipe by built-in name or path, with dotted overrides such as `{"model.d_model": 64}`.

    `[model] preset = "151M"` starts from one of the presets. A relative placement file is looked
    for beside the recipe.

    Raises:
        HybridNormError: an unknown name, or a field that is unknown, ill-typed or invalid.
    """
    table = read_toml(name_or_path)
    for dotted, value in (overrides or {}).items():
        _assign(table, dotted, value)
    model = table.get("model", {})
    if isinstance(model, Mapping) and "preset" in model:
        model = dict(model)
        table["model"] = {**to_table(preset(str(model.pop("preset")))), **model}
    recipe = build(Recipe, table)
    beside = Path(name_or_path).parent / recipe.model.placement
    if recipe.model.placement.endswith(".toml") and beside.is_file():
        _assign(table, "model.placement", str(beside))
        recipe = build(Recipe, table)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The full recipe as TOML; reading it again gives an equal recipe."""
    return tomli_w.dumps(to_table(recipe))


def _assign(table: dict[str, Any], dotted: str, value: object) -> None:
    *path, name = dotted.split(".")
    cls: Any = Recipe
    for part in path:
        check_field(part, cls.__dataclass_fields__, dotted)
        cls = cls.__dataclass_fields__[part].type
        table = table.setdefault(part, {})
    check_field(name, cls.__dataclass_fields__, dotted)
    table[name] = value
