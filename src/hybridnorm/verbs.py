"""The options of every verb: what `--help` shows. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from hybridnorm.data import PrepareConfig
from hybridnorm.evaluate import EvaluateOptions
from hybridnorm.model import SamplingConfig
from hybridnorm.ranges import Layers, Processes, Range, Ranged
from hybridnorm.recipe import RecipeFields


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one model."""

    recipe: Positional[str] = "demo"
    """A built-in recipe or a .toml file."""
    run_dir: Path | None = None
    """Directory of the run. None: runs/<recipe>-<placement>-seed<seed>."""
    resume: bool = False
    """Continue the run in `run_dir` from its newest checkpoint, with its own recipe where none is
    named."""
    force: bool = False
    """Start even where the estimated memory exceeds what is free."""
    config: Annotated[RecipeFields, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Show(Ranged):
    """Equations, facts and drawing of a placement; without a name, the list of all."""

    placement: Positional[str | None] = None
    """A placement's name, a grammar name such as qkv-post, or a .toml file."""
    out: Path = Path()
    """Folder of the drawings."""
    n_layers: Layers = 12
    """Number of blocks of the model shown."""


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Say where the norms of anybody's block or model sit, in the words of placements."""

    module: Positional[str]
    """A folder that transformers saved a model in; or the import path of a module, or of a
    function without arguments that returns one, or one and its example inputs."""
    out: Path | None = None
    """Folder of a drawing and of the placement's TOML. None: neither."""
    trust_remote_code: bool = False
    """Run the code that a Hugging Face folder brings."""


@dataclass(frozen=True, kw_only=True)
class StudyArgs(Ranged):
    """Run a grid of recipes under identical conditions and report on it.

    `hybridnorm study list` shows the built-in studies, `hybridnorm study report DIR` writes a
    report anew.

    Recipe fields go to every run: --train.steps 500. Several values in a row are an axis of the
    grid, in place of the study's own: --seed 0 1 2 3 4.
    """

    study: Positional[str] = "demo"
    """A built-in study or a .toml file."""
    dir: Path | None = None
    """Folder of the study. None: studies/<study>."""
    jobs: Processes = 1
    """Runs at a time; they share the cores, and each has one GPU where there are any."""
    launcher: str = ""
    """What starts a run elsewhere and waits for it: "srun --gpus 1 --time 120"."""
    config: Annotated[RecipeFields, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Advise(Ranged):
    """Find the placement and the learning rate for a recipe, as well as the time allows.

    Plans a study that takes about so long here, runs it, and recommends a recipe, with how sure
    that is and what would change it. The same command goes on where it was stopped.
    """

    recipe: Positional[str] = "demo"
    """A built-in recipe or a .toml file."""
    minutes: Annotated[float, Range(above=0)] = 30.0
    """For all runs together."""
    dir: Path | None = None
    """Folder of the study. None: studies/<recipe>-advice."""
    jobs: Processes = 1
    """Runs at a time; they share the cores, and each has one GPU where there are any."""
    config: Annotated[RecipeFields, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """Write results.csv, figures and report.html of a study anew, from its files alone."""

    dir: Positional[Path]
    """Folder of the study."""


@dataclass(frozen=True, kw_only=True)
class StudyList:
    """The built-in studies: runs, tokens, parameters, and the time they take on this machine."""


@dataclass(frozen=True, kw_only=True)
class Prepare(Ranged):
    """Turn text into token shards: in parallel, restartable, the same whatever the workers."""

    inputs: Positional[tuple[str, ...]]
    """Files (.txt, .md, .jsonl, .json.gz, .jsonl.gz, .jsonl.zst, .parquet), folders or globs of
    them, folders of saved Hugging Face datasets, or demo."""
    out: Path
    """Folder of the shards; one that was left unfinished is continued."""
    workers: Processes | None = None
    """Processes. None: one per core."""
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Generate(SamplingConfig):
    """Continue a prompt with a trained model."""

    run_dir: Positional[Path]
    """Directory of a run."""
    prompt: str = ""
    """Text to continue."""
    checkpoint: str = "last"
    """last, best (lowest held-out loss), or a step."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write the model of a run as a folder that Hugging Face transformers loads."""

    run_dir: Positional[Path]
    """Directory of a run."""
    to: Path
    """Folder to write; it must not exist."""
    checkpoint: str = "last"
    """last, best (lowest held-out loss), or a step."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Dtype of the weights."""
    architecture: Annotated[str, tyro.conf.arg(name="as")] = "hybridnorm"
    """hybridnorm (any placement; the folder brings its code), or the architecture that the
    placement is: llama, qwen3, olmo2, olmoe or mixtral."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a run of a model from elsewhere, to be trained on."""

    source: Positional[Path]
    """An export, a Llama, Qwen 3, Olmo 2, OLMoE or Mixtral folder, or a checkpoint of the authors
    of HybridNorm, a folder or a file."""
    to: Path
    """Directory of the run; it must not exist."""


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What a run or a model folder holds."""

    path: Positional[Path]
    """Directory of a run, or a folder of transformers."""


@dataclass(frozen=True, kw_only=True)
class Diagnose:
    """Look into a model with probes, and gather what they find in one page.

    A recipe is diagnosed at initialization; a run at a checkpoint, beside what its `[diagnose]`
    recorded; a study by what its runs recorded, arm beside arm; an export of a model on the text of
    `--data`.
    """

    target: Positional[str] = "demo"
    """A built-in recipe or a .toml file, the directory of a run, the folder of a study, or one that
    `transformers` loads."""
    probes: tuple[str, ...] = ()
    """Probes. None named: all of those that need no training of their own."""
    list: bool = False
    """Only list the probes."""
    checkpoint: str = "last"
    """Of a run: last, best (lowest held-out loss), or a step."""
    out: Path | None = None
    """Folder of the page. None: diagnose/ in the run or study, diagnose/<recipe>-<placement>-seed
    <seed> for a recipe, diagnose/<folder> for an export."""
    config: Annotated[RecipeFields, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judge a trained model on texts and on tasks, with standard errors."""

    model: Positional[Path]
    """Directory of a run, or a Hugging Face folder."""
    config: Annotated[EvaluateOptions, tyro.conf.arg(name="")]
