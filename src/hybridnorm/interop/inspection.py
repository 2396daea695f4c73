"""`hybridnorm inspect`: what a run, or a folder of `transformers`, holds, on one screen."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from hybridnorm.data import load_tokenizer
from hybridnorm.errors import HybridNormError
from hybridnorm.foreign import CONFIG, Pretraining, load_config, read_config
from hybridnorm.model import ModelConfig, parameter_counts
from hybridnorm.placements import Placement, placement
from hybridnorm.recipe import load_recipe
from hybridnorm.terminal import Screen
from hybridnorm.text import number, size
from hybridnorm.train.checkpoint import list_checkpoints, read_meta
from hybridnorm.train.preflight import (
    parameters_in_words,
    placement_in_words,
    shape_in_words,
)
from hybridnorm.train.report import read_metrics


def inspect(path: Path) -> None:
    """Print what is in `path`.

    Raises:
        HybridNormError: it is neither a run nor a folder of `transformers`.
    """
    if (path / "recipe.toml").is_file():
        rows = dict(_run(path))
    elif (path / "config.json").is_file():
        rows = dict(_folder(path))
    else:
        raise HybridNormError(
            f"{path}: neither a run (it has no recipe.toml) nor a model folder (no config.json)"
        )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in rows.items():
        table.add_row(label, text)
    Screen().print(table)


def _run(run_dir: Path) -> Iterator[tuple[str, str]]:
    recipe = load_recipe(run_dir / "recipe.toml").in_steps()
    has_metrics = (run_dir / "metrics.jsonl").is_file()
    metrics = read_metrics(run_dir) if has_metrics else None
    step = int(metrics.train[-1]["step"]) if metrics and metrics.train else 0
    status = metrics.status if metrics else "not started"
    yield "run", f"{run_dir}, {status}, step {step:,} of {recipe.train.steps:,}"
    yield from _model(recipe.model, placement(run_dir / "placement.toml"))
    seen, planned = step * recipe.train.tokens_per_step, recipe.train.planned_tokens
    yield "tokens", f"{seen:,} seen, {planned:,} planned"
    if metrics and metrics.train:
        yield "training loss", f"{number(metrics.train[-1]['loss'], '.4f')} at step {step:,}"
    if metrics and metrics.evaluations:
        best = min(metrics.evaluations, key=_held_out_loss)
        last = metrics.evaluations[-1]
        yield (
            "held-out loss",
            (
                f"{number(last['val_loss'], '.4f')} at step {last['step']:,}; "
                f"best {number(best['val_loss'], '.4f')} at step {best['step']:,}"
            ),
        )
    yield "tokenizer", _tokenizer(run_dir)
    yield "checkpoints", "\n".join(map(_checkpoint, list_checkpoints(run_dir))) or "none"


def _held_out_loss(row: Mapping[str, Any]) -> float:
    return math.inf if row["val_loss"] is None else row["val_loss"]


def _folder(folder: Path) -> Iterator[tuple[str, str]]:
    table = read_config(folder)
    yield "folder", f"{folder}, {table.get('model_type')} for transformers"
    yield from _described(folder, table)
    if trained := table.get("pretraining"):
        found = Pretraining(**trained)
        held_out = "not evaluated" if found.val_loss is None else f"{found.val_loss:.4f}"
        yield "tokens", f"{found.tokens:,} seen in {found.steps:,} steps"
        yield "held-out loss", held_out
    yield "tokenizer", _tokenizer(folder)
    files = sorted(folder.glob("*.safetensors"))
    yield "weights", "\n".join(_weights(path) for path in files) or "none"


def _described(folder: Path, table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The shape and placement of a folder, as far as it is one of ours."""
    from hybridnorm.interop.huggingface import KNOWN, HybridNormConfig, architecture

    kind = table.get("model_type")
    if isinstance(kind, str) and kind not in KNOWN and "auto_map" in table:
        yield "model", "brings code of its own, which was not run"
        return
    config = load_config(folder, trust_remote_code=None)
    try:
        known = architecture(config)
    except HybridNormError as error:
        if isinstance(config, HybridNormConfig):
            raise HybridNormError(f"{folder / CONFIG}: {error}") from None
        yield "model", str(error)  # of others, which are sound though they have no place here
    else:
        yield from _model(known.shape, known.placement)


def _model(config: ModelConfig, placement: Placement) -> Iterator[tuple[str, str]]:
    yield "placement", placement_in_words(placement, config.n_layers)
    yield "model", shape_in_words(config)
    yield "parameters", parameters_in_words(parameter_counts(config, placement))


def _tokenizer(folder: Path) -> str:
    try:
        tokenizer = load_tokenizer(folder)
    except HybridNormError as error:
        return str(error)
    return f"{tokenizer.vocab_size:,} tokens, {tokenizer.end_of_document} ends a document"


def _checkpoint(path: Path) -> str:
    bytes_ = sum(file.stat().st_size for file in path.iterdir())
    try:
        loss = read_meta(path)["val_loss"]
    except HybridNormError as error:
        return f"{path.name}: {size(bytes_)}, {error}"
    held_out = "" if loss is None else f", held-out loss {loss:.4f}"
    return f"{path.name}: {size(bytes_)}, valid{held_out}"


def _weights(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            count = len(file.keys())
    except (OSError, SafetensorError) as error:
        return f"{path.name}: {size(path.stat().st_size)}, damaged: {error}"
    return f"{path.name}: {size(path.stat().st_size)}, {count} tensors"
