"""Mirrors of metrics.jsonl: TensorBoard, Weights & Biases, trackio; imported when opened."""

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from hybridnorm.errors import HybridNormError, in_a_line
from hybridnorm.files import read_text, write_whole

_PROJECT = "hybridnorm"
_ID_FILE = "tracking-id"


class Tracker(Protocol):
    """Where metrics are shown besides metrics.jsonl."""

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Show the values of `row` at `step`."""

    def finish(self) -> None:
        """Write out what is still held, and close."""


def check_installed(names: Iterable[str]) -> None:
    """Raise `HybridNormError` for a tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise HybridNormError(
                f"train.trackers: {name} is not installed; pip install 'hybridnorm[{name}]'"
            )


def open_trackers(
    names: Iterable[str],
    run_dir: Path,
    config_table: Mapping[str, Any],
    warn: Callable[[str], None],
) -> list[Tracker]:
    """The trackers called `names`, for a new run or for one that is resumed in `run_dir`.

    A tracker that fails, now or later, is dropped with one line to `warn`: a mirror never ends a
    run.

    Args:
        config_table: the recipe as `to_table` gives it; Weights & Biases and trackio show it.
    """
    trackers: list[Tracker] = []
    for name in names:
        try:
            trackers.append(_Guarded(name, _KINDS[name](run_dir, config_table), warn))
        except Exception as error:
            warn(_dropped(name, error))
    return trackers


class _Guarded:
    """A tracker until it fails, then nothing."""

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._name, self._warn = name, warn
        self._tracker: Tracker | None = tracker

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._attempt(lambda tracker: tracker.log(step, row))

    def finish(self) -> None:
        self._attempt(lambda tracker: tracker.finish())

    def _attempt(self, call: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:  # whatever its library raises: networks, disks, services
            self._tracker = None
            self._warn(_dropped(self._name, error))


class _TensorBoard:
    """Event files in `run_dir`/tensorboard."""

    def __init__(self, run_dir: Path, config_table: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._new_writer = SummaryWriter
        self._folder = run_dir / "tensorboard"
        self._writer: SummaryWriter | None = None

    def log(self, step: int, row: Mapping[str, float]) -> None:
        if self._writer is None:
            # Steps that a killed run had logged beyond its checkpoint are shown once.
            self._writer = self._new_writer(str(self._folder), purge_step=step)
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    """A run of Weights & Biases, the same one when resumed; WANDB_MODE=offline stays on disk."""

    def __init__(self, run_dir: Path, config_table: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run_dir.name,
            dir=run_dir,
            id=_tracking_id(run_dir),
            resume="allow",
            config=dict(config_table),
        )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def finish(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio, the same one when resumed."""

    def __init__(self, run_dir: Path, config_table: Mapping[str, Any]) -> None:
        import trackio

        self._run: Any = trackio.init(
            project=_PROJECT,
            name=f"{run_dir.name}-{_tracking_id(run_dir)}",
            resume="allow",
            config=dict(config_table),
        )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=step)

    def finish(self) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}


def _tracking_id(run_dir: Path) -> str:
    """The name under which services know this run, kept in its directory."""
    path = run_dir / _ID_FILE
    if not path.exists():
        write_whole(path, secrets.token_hex(4))
    return read_text(path)


def _dropped(name: str, error: Exception) -> str:
    return f"{name}: {in_a_line(error)}; the run goes on without it, metrics.jsonl has everything"
