"""Checkpoints: torch.distributed.checkpoint in safetensors files, complete or absent.

    checkpoints/step-00000100/*.safetensors    weights and optimizer state; no pickle anywhere
    checkpoints/step-00000100/checkpoint.json  step, what the run was, a checksum per file

A checkpoint is written under a temporary name, flushed to the disk, and renamed; a kill at any
moment leaves the previous one untouched.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hybridnorm.errors import HybridNormError
from hybridnorm.train.combined import Optimizers
from hybridnorm.train.optimizer_state import optimizer_state

FOLDER = "checkpoints"
META = "checkpoint.json"


def training_state(model: nn.Module, optimizer: Optimizers | None) -> dict[str, Tensor]:
    """The tensors to save or to load into: weights, and optimizer state by parameter name."""
    weights = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    return {**weights, **(optimizer_state(model, optimizer) if optimizer else {})}


def save_checkpoint(
    run_dir: Path, step: int, state: dict[str, Tensor], meta: dict[str, Any]
) -> Path:
    """Write `state` and `meta` as the checkpoint of `step`; complete or absent.

    Raises:
        HybridNormError: the disk is full or not writable; earlier checkpoints are intact.
    """
    target = run_dir / FOLDER / f"step-{step:08d}"
    partial = target.with_name(f".partial-{target.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with _quiet_single_process():
            writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
            save(state, storage_writer=writer, no_dist=True)
        checksums = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
        record = {**meta, "step": step, "files": checksums}
        (partial / META).write_text(json.dumps(record, indent=1), encoding="utf-8")
        for path in partial.iterdir():
            _flush(path)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _flush(target.parent)
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise HybridNormError(
            f"checkpoint: cannot write {target}: {_root_cause(error)}; "
            "earlier checkpoints are intact: make room and continue with --resume"
        ) from None
    return target


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((run_dir / FOLDER).glob("step-*"))


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """What `checkpoint.json` says, after every file's checksum was verified.

    Raises:
        HybridNormError: a file is missing or damaged; it is named.
    """
    path = checkpoint / META
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name, checksum in meta["files"].items():
            path = checkpoint / name
            if _checksum(path) != checksum:
                raise HybridNormError(f"checkpoint: {path} is damaged (wrong checksum)")
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, HybridNormError):
            raise
        raise HybridNormError(f"checkpoint: {path} is missing or damaged") from None
    return meta


def load_checkpoint(checkpoint: Path, state: dict[str, Tensor]) -> None:
    """Fill the tensors of `state` in place, resharding where the layout differs."""
    with _quiet_single_process():
        load(state, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)


def latest_valid(run_dir: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The newest undamaged checkpoint, its meta, and a line for each damaged one passed over.

    Raises:
        HybridNormError: there is none.
    """
    problems: list[str] = []
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            return checkpoint, read_meta(checkpoint), problems
        except HybridNormError as error:
            problems.append(str(error))
    why = "; ".join(problems) or "it has none"
    raise HybridNormError(f"{run_dir}: no checkpoint to load: {why}")


def choose_checkpoint(run_dir: Path, which: str) -> tuple[Path, dict[str, Any]]:
    """The checkpoint called `which`: "last", "best" (lowest held-out loss) or a step number.

    Raises:
        HybridNormError: there is no such checkpoint, or it is damaged.
    """
    if which == "last":
        return latest_valid(run_dir)[:2]
    if which == "best":
        path = best_checkpoint(run_dir)
    else:
        path = next((p for p in list_checkpoints(run_dir) if _step(p) == which), None)
    if path is None:
        have = ", ".join(_step(p) for p in list_checkpoints(run_dir)) or "none"
        raise HybridNormError(f"checkpoint: {run_dir} has no checkpoint {which!r}; it has: {have}")
    return path, read_meta(path)


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the lowest held-out loss at its step."""
    losses = {path: _val_loss(path) for path in list_checkpoints(run_dir)}
    known = {path: loss for path, loss in losses.items() if loss is not None}
    return min(known, key=lambda path: known[path], default=None)


def prune(run_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    kept = {best_checkpoint(run_dir), *list_checkpoints(run_dir)[-keep:]}
    for path in list_checkpoints(run_dir):
        if path not in kept:
            # Renamed first: a kill in the middle of deleting leaves no half checkpoint.
            doomed = path.with_name(f".partial-{path.name}")
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def _step(checkpoint: Path) -> str:
    return str(int(checkpoint.name.removeprefix("step-")))


def _val_loss(checkpoint: Path) -> float | None:
    try:
        loss = json.loads((checkpoint / META).read_text(encoding="utf-8")).get("val_loss")
    except (OSError, ValueError):
        return None
    return float(loss) if loss is not None else None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _root_cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0]


@contextmanager
def _quiet_single_process() -> Iterator[None]:
    """torch warns that a single process saves alone, which is what we asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
