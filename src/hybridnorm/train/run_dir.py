"""A run directory: recipe.toml, placement.toml, environment.json, metrics.jsonl, checkpoints/."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
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
from hybridnorm.processes import alone_in
from hybridnorm.recipe import Recipe, dump_recipe
from hybridnorm.strict_toml import build, dotted, to_table
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
_TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "tokenizer.byte"}
_START = {METRICS, RECIPE, PLACEMENT, ENVIRONMENT, *_TOKENIZER}


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
        HybridNormError: another process holds it, it cannot be written, or `check_run_dir` refuses.
    """
    with alone_in(run_dir):
        check_run_dir(run_dir, resume=resume)
        try:
            (run_dir / METRICS).touch()
        except OSError as error:
            raise HybridNormError(
                f"{run_dir}: cannot write here: {error.strerror}; name another --run-dir"
            ) from None
        yield


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with full paths, so that the run can be resumed from anywhere."""

    def full(path: str) -> str:
        return str(Path(path).absolute()) if path not in ("demo", "bpe", "byte") else path

    data, start = recipe.data, recipe.train.start
    data = replace(
        data,
        tokenizer=full(data.tokenizer),
        source=full(data.source),
        validation=full(data.validation) if data.validation is not None else None,
        cache=full(data.cache),
        prepared=tuple(map(full, data.prepared)),
    )
    train = replace(recipe.train, start=None if start is None else full(start))
    return replace(recipe, data=data, train=train)


def describe_run(
    run_dir: Path,
    recipe: Recipe,
    placement: Placement,
    tokenizer: Path | None,
    device: torch.device,
) -> None:
    """Write what reproduces the run.

    Args:
        tokenizer: what is copied: a tokenizer.json or its folder.

    Raises:
        HybridNormError: the directory cannot be written.
    """
    record = {**environment(device), "seed": recipe.seed}
    if tokenizer is not None:
        copy_tokenizer(tokenizer, run_dir)
    write_whole(run_dir / PLACEMENT, tomli_w.dumps(placement_to_dict(placement)))
    write_whole(run_dir / ENVIRONMENT, json.dumps(record, indent=1))
    if recipe.model.placement.endswith(".toml"):  # the run has its own copy
        recipe = replace(recipe, model=replace(recipe.model, placement=PLACEMENT))
    write_whole(run_dir / RECIPE, dump_recipe(recipe))  # last: a directory with a recipe is a run


def changes(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """The values of `before` and `now` by dotted field, where they differ.

    Which placement it is, and not its name, must be the same: `check_identity`.
    """
    old, new = (dotted(recipe) for recipe in (before, now))
    names = sorted((old.keys() | new.keys()) - {"model.placement"})
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def identity(recipe: Recipe, model: Transformer, data_fingerprint: str) -> dict[str, Any]:
    """What a resumed run must share with its checkpoint."""
    return {
        **model_identity(model.config, model.placement),
        "data": data_fingerprint,
        "order": {
            "seed": recipe.seed,
            "batch_size": recipe.train.batch_size,
            "seq_len": recipe.train.seq_len,
        },
        "optimizer": {"name": recipe.optimizer.name},
    }


def model_identity(config: ModelConfig, placement: Placement) -> dict[str, Any]:
    """The part of `identity` that the weights alone have."""
    shape = to_table(config)
    del shape["placement"]  # its content counts, not what it is called
    return {"model": shape, "placement": placement_to_dict(placement)}


def check_identity(saved: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> None:
    """Raise `HybridNormError` naming what differs between a checkpoint and this run."""
    for part, name in (
        ("model", "another model"),
        ("placement", "another placement"),
        ("data", "other data"),
        ("order", "another data order"),
        ("optimizer", "another optimizer"),
    ):
        if part not in saved:  # weights alone
            continue
        before, after = saved[part], now[part]
        if part == "placement":
            before, after = _function(before), _function(after)
        if before != after:
            detail = _difference(before, after) if isinstance(before, dict) else ""
            raise HybridNormError(
                f"{checkpoint}: the checkpoint is of {name}{detail}; "
                "continue with the recipe it was made with, or name another run"
            )


def check_start(saved: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> None:
    """Raise `HybridNormError` unless the weights of a checkpoint are of this run's model.

    How weights were drawn, or how a default is spelled, makes no other model.
    """

    def plain(known: dict[str, Any]) -> dict[str, Any]:
        config = build(ModelConfig, known["model"], "model")
        shape = replace(config, n_kv_heads=config.kv_heads, init="published", init_std=None)
        if config.n_experts:
            shape = replace(shape, d_expert=config.expert_width)
        return model_identity(shape, placement_from_dict(known["placement"]))

    check_identity(plain(saved), plain(now), checkpoint)


def read_record(checkpoint: Path) -> dict[str, Any]:
    """What an intact checkpoint says of its run.

    Raises:
        HybridNormError: it is damaged, or lacks something that a run's checkpoint has.
    """
    meta = read_meta(checkpoint)
    of_weights = {"model": dict, "placement": dict, "seconds": float, "skipped_steps": list}
    of_training = {"data": str, "order": dict, "optimizer": dict}
    for name, kind in (of_weights | ({} if meta.get("imported") else of_training)).items():
        if not isinstance(meta.get(name), kind):
            raise HybridNormError(f"checkpoint: {checkpoint} is not of a run: no usable {name!r}")
    return meta


def load_model(checkpoint: Path, meta: dict[str, Any]) -> Transformer:
    """The model of a checkpoint, float32 on the CPU."""
    with naming(checkpoint), torch.device("meta"):
        placement = placement_from_dict(meta["placement"])
        model = Transformer(build(ModelConfig, meta["model"], "model"), placement)
    check_tensors(checkpoint, training_state(model, None))
    model.to_empty(device="cpu")
    load_checkpoint(checkpoint, training_state(model, None))
    return model


def find_checkpoint(run_dir: Path, which: str = "last") -> tuple[Path, dict[str, Any], list[str]]:
    """A checkpoint of a run, its meta, and a line for each damaged one passed over.

    Raises:
        HybridNormError: not a run, or no such (or a damaged) checkpoint.
    """
    if not (run_dir / RECIPE).exists():
        raise HybridNormError(
            f"{run_dir}: not a run directory (it has no recipe.toml); "
            "`hybridnorm import` makes one of a model folder"
        )
    return choose_checkpoint(run_dir, which, read_record)


def show_problems(problems: list[str], console: Console) -> None:
    """A line for each damaged checkpoint."""
    for problem in problems:
        console.print(f"passed over: {problem}", style="yellow")


def _function(placement: dict[str, Any]) -> dict[str, Any]:
    """A placement's table without what merely describes it."""
    described = ("name", "title", "source", "note", "aliases")
    return {name: value for name, value in placement.items() if name not in described}


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = sorted(before.keys() | after.keys())
    changed = [n for n in names if before.get(n) != after.get(n)]
    return f" ({', '.join(f'{n} {before.get(n)}, now {after.get(n)}' for n in changed)})"
