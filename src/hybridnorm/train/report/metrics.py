"""metrics.jsonl: one JSON object per line, append-only, the truth about a run. No torch."""

import contextlib
import errno
import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_text
from hybridnorm.train.report.held_out import HALVES

METRICS = "metrics.jsonl"
_NUMBERS = (
    *("step", "tokens", "loss", "grad_norm", "lr", "tokens_per_second", "seconds", "parameters"),
    *("skipped_steps", "unigram_loss", "val_loss", "val_perplexity", "val_bits_per_byte", *HALVES),
)
_TAIL = 1 << 16  # bytes, in which there is a training row
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
        HybridNormError: the file is missing, or a line before the last is damaged.
    """
    path = run_dir / METRICS
    train: dict[int, Row] = {}
    evaluations: dict[int, Row] = {}
    events: list[Row] = []
    for number, line in enumerate(read_text(path).split("\n")[:-1], start=1):
        row = _row(line)
        if row is None:
            raise HybridNormError(f"{path}: line {number} is no row of metrics; it is damaged")
        if "event" in row:
            events.append(row)
        elif "val_loss" in row:
            evaluations[row["step"]] = row
        else:
            train[row["step"]] = row
    ordered = [[rows[step] for step in sorted(rows)] for rows in (train, evaluations)]
    return Metrics(train=ordered[0], evaluations=ordered[1], events=events)


def newest_row(run_dir: Path) -> Row | None:
    """The last training row, from the end of the file: as cheap late in a run as early."""
    with contextlib.suppress(OSError), (run_dir / METRICS).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
        return next((row for line in lines[::-1] if "loss" in (row := _row(line) or {})), None)
    return None


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if is_row and all(_is_number(row.get(name, 0)) for name in _NUMBERS) else None


def _is_number(value: object) -> bool:
    """Whether it can be compared, drawn and printed as one; null stands for what is not finite."""
    return value is None or (isinstance(value, int | float) and abs(value) <= sys.float_info.max)


def _is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _drop_partial_line(path: Path) -> None:
    """A killed run may have left half a line; appending to it would spoil the next one."""
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0]) + len(whole[1]))
