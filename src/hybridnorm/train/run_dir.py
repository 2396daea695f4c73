"""A run directory: recipe.toml, placement.toml, environment.json, metrics.jsonl, checkpoints/."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from rich.console import Console

from hybridnorm.data import copy_tokenizer
from hybridnorm.errors import HybridNormError, naming
from hybridnorm.files import write_whole
from hybridnorm.model import ModelConfig, Transformer
from hybridnorm.placements import Placement, placement_from_dict, placement_to_dict
from hybridnorm.recipe import Recipe, dump_recipe
from hybridnorm.strict_toml import build, to_table
from hybridnorm.train.checkpoint import (
    check_tensors,
    choose_checkpoint,
    load_checkpoint,
    read_meta,
    training_state,
)
from hybridnorm.train.environment import environment
from hybridnorm.train.report import METRICS

RECIPE, PLACEMENT, ENVIRONMENT = "recipe.toml", "placement.toml", "environment.json"
# What a start that was cut short may leave; the recipe is written last.
_START = {METRICS, RECIPE, PLACEMENT, ENVIRONMENT, "tokenizer.json", "tokenizer.byte"}


def check_run_dir(run_dir: Path, *, resume: bool) -> None:
    """Refuse what a new or resumed run would spoil; writes nothing.

    Raises:
        HybridNormError: there is a run and `resume` is not set, there is none and it is, or the
            directory holds something else.
    """
    is_run = (run_dir / RECIPE).exists()
    if is_run and not resume:
        raise HybridNormError(
            f"{run_dir} holds a run already; continue it with --resume or name another --run-dir"
        )
    if resume and not is_run:
        raise HybridNormError(f"{run_dir}: no run to resume here; start it without --resume")
    if not is_run and run_dir.exists() and not _is_free(run_dir):
        raise HybridNormError(f"{run_dir} exists and is not a run; name another --run-dir")


def _is_free(run_dir: Path) -> bool:
    """Whether the directory is empty, or holds a start that was cut short."""
    if not run_dir.is_dir():
        return False
    names = {path.name.removeprefix(".").removesuffix(".partial") for path in run_dir.iterdir()}
    metrics = run_dir / METRICS
    return not names or (names <= _START and metrics.is_file() and not metrics.stat().st_size)


@contextmanager
def owned(run_dir: Path, *, resume: bool) -> Iterator[None]:
    """Keep other processes out of the run for as long as this lasts, however it ends.

    Raises:
        HybridNormError: another process trains here, the directory cannot be written, or
            `check_run_dir` refuses it.
    """
    with ExitStack() as stack:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            check_run_dir(run_dir, resume=resume)
            file = stack.enter_context((run_dir / METRICS).open("ab"))
        except OSError as error:
            raise HybridNormError(
                f"{run_dir}: cannot write a run here: {error.strerror}; name another --run-dir"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HybridNormError(
                f"{run_dir}: another process trains here; stop it first, or name another --run-dir"
            ) from None
        except OSError:
            pass  # a file system without locks
        check_run_dir(run_dir, resume=resume)  # one that has just ended may have made it a run
        yield


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with full paths, so that the run can be resumed from anywhere."""

    def full(path: str) -> str:
        return str(Path(path).absolute()) if path not in ("demo", "bpe", "byte") else path

    data = recipe.data
    data = replace(
        data,
        tokenizer=full(data.tokenizer),
        source=full(data.source),
        cache=full(data.cache),
        prepared=tuple(map(full, data.prepared)),
    )
    return replace(recipe, data=data)


def describe_run(
    run_dir: Path, recipe: Recipe, placement: Placement, data: Path, device: torch.device
) -> None:
    """Write what reproduces the run, its tokenizer and its placement included.

    Raises:
        HybridNormError: the directory cannot be written.
    """
    record = {**environment(device), "seed": recipe.seed}
    copy_tokenizer(data, run_dir)
    write_whole(run_dir / PLACEMENT, tomli_w.dumps(placement_to_dict(placement)))
    write_whole(run_dir / ENVIRONMENT, json.dumps(record, indent=1))
    if recipe.model.placement.endswith(".toml"):  # the run has its own copy
        recipe = replace(recipe, model=replace(recipe.model, placement=PLACEMENT))
    write_whole(run_dir / RECIPE, dump_recipe(recipe))  # last: a directory with a recipe is a run


def changes(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """The values of `before` and `now` by dotted field, where they differ.

    Which placement it is, and not its name, must be the same: `check_identity`.
    """
    old, new = (_flat(to_table(recipe)) for recipe in (before, now))
    names = sorted((old.keys() | new.keys()) - {"model.placement"})
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat |= {prefix + name: value} if inner is None else inner
    return flat


def identity(recipe: Recipe, model: Transformer, data_fingerprint: str) -> dict[str, Any]:
    """What a resumed run must share with its checkpoint."""
    shape = to_table(model.config)
    del shape["placement"]  # its content counts, not what it is called
    return {
        "model": shape,
        "placement": placement_to_dict(model.placement),
        "data": data_fingerprint,
        "order": {
            "seed": recipe.seed,
            "batch_size": recipe.train.batch_size,
            "seq_len": recipe.train.seq_len,
        },
        "optimizer": {"name": recipe.optimizer.name},
    }


def check_identity(saved: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> None:
    """Raise `HybridNormError` naming what differs between a checkpoint and this run."""
    for part, name in (
        ("model", "another model"),
        ("placement", "another placement"),
        ("data", "other data"),
        ("order", "another data order"),
        ("optimizer", "another optimizer"),
    ):
        before, after = saved.get(part), now[part]
        if part == "placement":
            before, after = _function(saved[part]), _function(now[part])
        if before != after:
            detail = _difference(before, after) if isinstance(before, dict) else ""
            raise HybridNormError(
                f"{checkpoint}: the checkpoint is of {name}{detail}; "
                "resume with the recipe it was made with, or name another --run-dir"
            )


def read_record(checkpoint: Path) -> dict[str, Any]:
    """What an intact checkpoint says of its run.

    Raises:
        HybridNormError: it is damaged, or lacks something that a run's checkpoint has.
    """
    meta = read_meta(checkpoint)
    tables = dict.fromkeys(("model", "placement", "order", "optimizer"), dict)
    for name, kind in {**tables, "data": str, "seconds": float, "skipped_steps": list}.items():
        if not isinstance(meta.get(name), kind):
            raise HybridNormError(f"checkpoint: {checkpoint} is not of a run: no usable {name!r}")
    return meta


def load_run(run_dir: Path, which: str = "last") -> tuple[Transformer, list[str]]:
    """The trained model of a run, float32 on the CPU, and a line per damaged checkpoint.

    Args:
        which: "last", "best" or a step.

    Raises:
        HybridNormError: not a run, or no such (or a damaged) checkpoint.
    """
    if not (run_dir / RECIPE).exists():
        raise HybridNormError(f"{run_dir}: not a run directory (it has no recipe.toml)")
    checkpoint, meta, problems = choose_checkpoint(run_dir, which, read_record)
    with naming(checkpoint), torch.device("meta"):
        placement = placement_from_dict(meta["placement"])
        model = Transformer(build(ModelConfig, meta["model"], "model"), placement)
    check_tensors(checkpoint, training_state(model, None))
    model.to_empty(device="cpu")
    load_checkpoint(checkpoint, training_state(model, None))
    return model, problems


def show_problems(problems: list[str], console: Console) -> None:
    """A line for each damaged checkpoint."""
    for problem in problems:
        console.print(f"passed over: {problem}", style="yellow", soft_wrap=True)


def _function(placement: dict[str, Any]) -> dict[str, Any]:
    """A placement's table without what merely describes it."""
    described = ("name", "title", "source", "note", "aliases")
    return {name: value for name, value in placement.items() if name not in described}


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = sorted(before.keys() | after.keys())
    changed = [n for n in names if before.get(n) != after.get(n)]
    return f" ({', '.join(f'{n} {before.get(n)}, now {after.get(n)}' for n in changed)})"
