"""metrics.jsonl: one JSON object per line, append-only, the truth about a run. No torch."""

import errno
import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError

METRICS = "metrics.jsonl"
_NUMBERS = (
    *("step", "tokens", "loss", "grad_norm", "lr", "tokens_per_second", "seconds", "parameters"),
    *("skipped_steps", "val_loss", "val_perplexity", "val_bits_per_byte"),
)
Row = dict[str, Any]


class MetricsWriter:
    """Appends rows; every row is on disk when `write` returns."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS
        _drop_partial_line(self._path)
        self._file = self._path.open("ab", buffering=0)  # what failed is not tried again at the end

    def write(self, **row: object) -> None:
        """One row; what is not finite becomes null, as JSON has no word for it.

        Raises:
            HybridNormError: the disk is full or not writable.
        """
        plain = {name: None if _is_nonfinite(value) else value for name, value in row.items()}
        line = (json.dumps(plain, allow_nan=False) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise HybridNormError(
                f"{self._path}: cannot write: {error.strerror}; "
                "checkpoints are intact: make room and continue with --resume"
            ) from None

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Metrics:
    """The rows of a run: training and held-out rows by ascending step, events as written.

    Where a resumed run wrote a step again, its last row counts.
    """

    train: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)

    @property
    def status(self) -> str:
        """The last event: started, resumed, finished, interrupted or diverged; or "empty"."""
        return str(self.events[-1]["event"]) if self.events else "empty"


def read_metrics(run_dir: Path) -> Metrics:
    """Read a run's metrics; a half-written last line (a killed run) is left out.

    Raises:
        HybridNormError: the file is missing, or a line before the last is no row of a run.
    """
    path = run_dir / METRICS
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise HybridNormError(f"{path}: cannot read: {error.strerror}") from None
    train: dict[int, Row] = {}
    evaluations: dict[int, Row] = {}
    events: list[Row] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = _row(line)
        except (ValueError, RecursionError) as error:
            why = error if isinstance(error, HybridNormError) else "is not JSON"
            raise HybridNormError(
                f"{path}: line {number} {why}; the file is damaged or was edited"
            ) from None
        if "event" in row:
            events.append(row)
        elif "val_loss" in row:
            evaluations[row["step"]] = row
        else:
            train[row["step"]] = row
    ordered = [[rows[step] for step in sorted(rows)] for rows in (train, evaluations)]
    return Metrics(train=ordered[0], evaluations=ordered[1], events=events)


def _row(line: bytes) -> Row:
    """A line as the writer made it: an object with a step, and numbers where numbers belong."""
    row = json.loads(line.decode())
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise HybridNormError("is not a row with a step")
    if not row.keys() & {"event", "loss", "val_loss"}:
        raise HybridNormError("has neither a loss nor an event")
    for name in _NUMBERS:
        value = row.get(name)
        is_number = isinstance(value, int | float) and abs(value) <= sys.float_info.max
        if value is not None and not is_number:
            raise HybridNormError(f"has a {name} that is not a number")
    return row


def _is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _drop_partial_line(path: Path) -> None:
    """A killed run may have left half a line; appending to it would spoil the next one."""
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0]) + len(whole[1]))
