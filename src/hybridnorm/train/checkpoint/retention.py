"""Which checkpoints a run has, which one to load, which ones to keep. No torch."""

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_json

FOLDER = "checkpoints"
META = "checkpoint.json"
_PARTIAL, _DAMAGED = ".partial-", "damaged-"
_NAME = re.compile(r"step-\d{8,}")
Read = Callable[[Path], dict[str, Any]]


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first; whatever has another name is not one."""
    found = (run_dir / FOLDER).glob("step-*")
    return sorted((p for p in found if _NAME.fullmatch(p.name) and p.is_dir()), key=_step)


def partial_path(checkpoint: Path) -> Path:
    """Where a checkpoint lies while it is written or deleted."""
    return checkpoint.with_name(f"{_PARTIAL}{checkpoint.name}")


def clear_partial(run_dir: Path) -> None:
    """Delete what a kill in the middle of writing or deleting has left."""
    for path in (run_dir / FOLDER).glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside_damaged(run_dir: Path, good: Path) -> None:
    """Rename those newer than `good`, the newest intact one: to keep them is not to keep it."""
    for path in list_checkpoints(run_dir):
        if _step(path) > _step(good):
            aside = path.with_name(f"{_DAMAGED}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def latest_valid(run_dir: Path, read: Read) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest checkpoint that `read` finds intact, its meta, and a line per damaged one.

    Raises:
        HybridNormError: there is none.
    """
    problems: list[str] = []
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            return checkpoint, read(checkpoint), problems
        except HybridNormError as error:
            problems.append(str(error))
    why = "; ".join(problems) or "it has none"
    raise HybridNormError(f"{run_dir}: no checkpoint to load: {why}")


def choose_checkpoint(
    run_dir: Path, which: str, read: Read
) -> tuple[Path, dict[str, Any], list[str]]:
    """The checkpoint called `which`: "last", "best" (lowest held-out loss) or a step number.

    Returns it, its meta, and a line for each damaged one passed over in search of the last.

    Raises:
        HybridNormError: there is no such checkpoint, or it is damaged.
    """
    if which == "last":
        return latest_valid(run_dir, read)
    if which == "best":
        path = best_checkpoint(run_dir)
    else:
        path = next((p for p in list_checkpoints(run_dir) if str(_step(p)) == which), None)
    if path is None:
        have = ", ".join(str(_step(p)) for p in list_checkpoints(run_dir)) or "none"
        raise HybridNormError(f"checkpoint: {run_dir} has no checkpoint {which!r}; it has: {have}")
    return path, read(path), []


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the lowest held-out loss, of those whose step was evaluated."""
    losses = {path: _val_loss(path) for path in list_checkpoints(run_dir)}
    known = {path: loss for path, loss in losses.items() if loss is not None}
    return min(known, key=lambda path: known[path], default=None)


def prune(run_dir: Path, keep: int, keep_every: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints, the best one, and each `keep_every`-th step."""
    found = list_checkpoints(run_dir)
    kept = {best_checkpoint(run_dir), *found[-keep:]}
    kept |= {path for path in found if keep_every and _step(path) % keep_every == 0}
    for path in found:
        if path not in kept:
            # Renamed first: a kill in the middle of deleting leaves no half checkpoint.
            doomed = partial_path(path)
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _val_loss(checkpoint: Path) -> float | None:
    try:
        loss = read_json(checkpoint / META).get("val_loss")
    except HybridNormError:
        return None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None
