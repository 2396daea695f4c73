"""`hybridnorm <verb>`: thin calls into the rooms. Torch is imported by the verbs that compute."""

import contextlib
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, cast

import tyro
from tyro.conf import Positional

import hybridnorm
from hybridnorm.data import PrepareConfig
from hybridnorm.errors import HybridNormError, check_at_least, nearest
from hybridnorm.evaluate import EvaluateOptions
from hybridnorm.recipe import (
    RecipeFields,
    builtin,
    field_types,
    load_fields,
    load_recipe,
    split_overrides,
)

T = TypeVar("T")


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
class Show:
    """Equations, facts and drawing of a placement; without a name, the list of all."""

    placement: Positional[str] = ""
    """A placement's name, a grammar name such as qkv-post, or a .toml file."""
    out: Path = Path()
    """Folder of the drawings."""
    n_layers: int = 12
    """Number of blocks of the model shown."""


@dataclass(frozen=True, kw_only=True)
class StudyArgs:
    """Run a grid of recipes under identical conditions and report on it.

    Recipe fields go to every run: --train.steps 500. Several values in a row are an axis of the
    grid, in place of the study's own: --seed 0 1 2 3 4.
    """

    study: Positional[str] = "demo"
    """A built-in study or a .toml file."""
    dir: Path | None = None
    """Folder of the study. None: studies/<study>."""
    jobs: int = 1
    """Runs at a time; they share the cores."""
    config: Annotated[RecipeFields, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn text into token shards: in parallel, restartable, the same whatever the workers."""

    inputs: Positional[tuple[str, ...]]
    """Files (.txt, .md, .jsonl, .json.gz, .jsonl.gz, .jsonl.zst, .parquet), folders or globs of
    them, folders of saved Hugging Face datasets, or demo."""
    out: Path
    """Folder of the shards; one that was left unfinished is continued."""
    workers: int | None = None
    """Processes. None: one per core."""
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt with a trained model."""

    run_dir: Positional[Path]
    """Directory of a run."""
    prompt: str = ""
    """Text to continue."""
    checkpoint: str = "last"
    """last, best (lowest held-out loss), or a step."""
    max_new_tokens: int = 100
    """Tokens to generate at most."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Sample from the k likeliest tokens only."""
    top_p: float | None = None
    """Sample from the smallest set of tokens with this probability only."""
    seed: int = 0
    """Seed of the sampling."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Judge a trained model on texts and on tasks, with standard errors."""

    model: Positional[Path]
    """Directory of a run, or a Hugging Face folder."""
    config: Annotated[EvaluateOptions, tyro.conf.arg(name="")]


def _train(argv: Sequence[str]) -> None:
    line = split_overrides(argv, Train, "recipe", _is_file_or(builtin()))
    name = line.positional or "demo"
    default = Train(recipe=name, config=load_fields(name))
    args = _parse(Train, "train", line.options, default)
    run_dir = args.run_dir or _default_run_dir(name, line.overrides)
    own = run_dir / "recipe.toml"
    if args.resume and line.positional is None and own.exists():
        name = str(own)
    recipe = load_recipe(name, line.overrides)
    from hybridnorm.train import set_up_process

    set_up_process(recipe.train)
    from hybridnorm.train import end_rank, train

    stopped_by = train(recipe, run_dir, resume=args.resume, force=args.force)
    end_rank(128 + stopped_by if stopped_by else 0)


def _default_run_dir(name: str, overrides: Mapping[str, object]) -> Path:
    recipe = load_recipe(name, overrides)
    stem = f"{Path(name).stem}-{Path(recipe.model.placement).stem}-seed{recipe.seed}"
    return Path("runs") / stem


def _show(argv: Sequence[str]) -> None:
    args = _parse(Show, "show", argv)
    from hybridnorm.placements.show import show

    show(args.placement or None, args.out, args.n_layers)


def _study(argv: Sequence[str]) -> None:
    line = split_overrides(argv, StudyArgs, "study", _is_file_or(builtin("studies")), grid=True)
    from hybridnorm.study import load_study

    study = load_study(line.positional or "demo", line.overrides)
    config = load_fields(study.recipe, {**study.common, **study.runs[0].values})
    default = StudyArgs(study=line.positional or "demo", config=config)
    args = _parse(StudyArgs, "study", line.options, default)
    check_at_least(1, "jobs", args.jobs)
    from hybridnorm.study import run_study

    folder = args.dir or Path("studies") / study.name
    run_study(study, folder, jobs=args.jobs, command=shlex.join(["hybridnorm", "study", *argv]))


def _prepare(argv: Sequence[str]) -> None:
    args = _parse(Prepare, "prepare", argv)
    check_at_least(1, "workers", args.workers)
    from rich.console import Console

    from hybridnorm.data import cores, find_sources, prepare_folder, report

    console, workers = Console(), args.workers or cores()
    sources = find_sources(args.inputs)
    manifest = prepare_folder(sources, args.out, args.config, workers=workers, console=console)
    console.print(report(args.out, manifest))


def _generate(argv: Sequence[str]) -> None:
    args = _parse(Generate, "generate", argv)
    from hybridnorm.train import generate_text

    text = generate_text(
        args.run_dir,
        args.prompt,
        checkpoint=args.checkpoint,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    print(text)


def _evaluate(argv: Sequence[str]) -> None:
    args = _parse(Evaluate, "evaluate", argv)
    from hybridnorm.evaluate import evaluate

    evaluate(args.model, args.config)


VERBS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "train": ("train one model", _train),
    "prepare": ("turn text into token shards, once and in parallel", _prepare),
    "generate": ("continue a prompt with a trained model", _generate),
    "evaluate": ("perplexity of texts, and downstream tasks through lm-eval", _evaluate),
    "study": ("compare placements, learning rates, seeds, ... with statistics", _study),
    "show": ("equations, facts and drawing of a placement", _show),
}


def main() -> None:
    """The command line. Bad input is one line on stderr and exit status 1."""
    verb, *argv = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        print(_usage())
    elif verb == "--version":
        print(hybridnorm.__version__)
    else:
        _guarded(verb, argv)


def _guarded(verb: str, argv: Sequence[str]) -> None:
    try:
        if verb not in VERBS:
            raise HybridNormError(f"unknown verb {verb!r}; {nearest(verb, VERBS)}")
        VERBS[verb][1](argv)
    except HybridNormError as error:
        # Under torchrun every rank sees the same bad input; one of a node's ranks says it.
        speaks = os.environ.get("LOCAL_RANK", "0") == "0"
        sys.exit(f"hybridnorm: {error}" if speaks else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; without this, Python complains while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage() -> str:
    lines = [f"  {name:<10} {summary}" for name, (summary, _) in VERBS.items()]
    return "\n".join(
        [
            "usage: hybridnorm <verb> [arguments]",
            "",
            "Pretrain transformers with HybridNorm, and compare normalization placements.",
            "",
            *lines,
            "",
            "`hybridnorm <verb> --help` shows every argument with its default and meaning.",
        ]
    )


def _is_file_or(known: Collection[str]) -> Callable[[str], bool]:
    return lambda word: word.endswith(".toml") or word in known


def _parse(cls: type[T], verb: str, argv: Sequence[str], default: T | None = None) -> T:
    """Parse `argv` into `cls`; an unknown option is one line that offers the nearest one.

    Raises:
        HybridNormError: an unknown option, or a value that its field refuses.
    """
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            parsed, unknown = tyro.cli(
                cls, prog=f"hybridnorm {verb}", args=argv, default=default, return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code:
            raise HybridNormError(_first_sentence(boxed.getvalue())) from None
        raise
    if unknown:
        option = unknown[0].split("=")[0]
        is_flag = option.startswith("--")
        hint = nearest(option.replace("_", "-"), _options(cls)) if is_flag else "see --help"
        raise HybridNormError(f"unknown argument {option!r}; {hint}")
    return cast(T, parsed)


def _first_sentence(box: str) -> str:
    """The message of tyro's error box, on one line and without the frame."""
    # On a terminal without UTF-8 the frame is spaces and hyphens.
    _title, *lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    below = itertools.dropwhile(_is_rule, lines)
    message = itertools.takewhile(lambda line: not _is_rule(line), below)
    return re.sub(r"^Error parsing config\S*: ", "", " ".join(message))


def _is_rule(line: str) -> bool:
    return bool(line) and set(line) <= {"─", "-"}


def _options(cls: type) -> list[str]:
    """Every option of a verb, dotted names for nested ones."""
    return [f"--{n.removeprefix('config.').replace('_', '-')}" for n in field_types(cls)]
