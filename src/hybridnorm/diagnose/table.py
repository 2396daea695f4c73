"""What probes measure, as tidy tables: one number a row. No torch."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_text, write_whole


class Row(NamedTuple):
    """One number."""

    step: int
    """The step it is of, from 1: the weights before it, and the gradient of its batch."""
    layer: int
    """The block, from 1. Of the stream, that which leaves the block; 0 is the embedding."""
    sublayer: str
    """attention, feed_forward, or empty for the whole block."""
    name: str
    value: float


Table = list[Row]
Arms = Mapping[str, list[Table]]
"""What is compared, by name: the tables of its runs, one a seed."""


def select(table: Table, name: str, *, sublayer: str | None = None) -> Table:
    """The rows called `name`, of one sublayer if it is given."""
    return [row for row in table if row.name == name and sublayer in (None, row.sublayer)]


def steps_of(table: Table) -> list[int]:
    """Ascending."""
    return sorted({row.step for row in table})


def by_layer(table: Table, name: str, step: int, sublayer: str | None = None) -> dict[int, float]:
    """Layer to value, ascending."""
    rows = select(table, name, sublayer=sublayer)
    return {row.layer: row.value for row in sorted(rows) if row.step == step}


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """The rows as CSV with a header; the same rows give the same bytes.

    Raises:
        HybridNormError: the file cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Row._fields, *rows])
    write_whole(path, text.getvalue())


def read_table(path: Path) -> Table:
    """The rows of a file that `write_table` or `TableWriter` wrote; half a last line is left out.

    Raises:
        HybridNormError: it cannot be read, or is not such a table.
    """
    head, *lines = read_text(path).rpartition("\n")[0].split("\n")
    try:
        if tuple(head.split(",")) != Row._fields:
            raise ValueError
        return [
            Row(int(step), int(layer), sublayer, name, float(value))
            for step, layer, sublayer, name, value in csv.reader(lines)
        ]
    except ValueError:
        fields = ",".join(Row._fields)
        raise HybridNormError(
            f"{path}: is not a table of {fields}; it is damaged or was edited: delete it"
        ) from None


class TableWriter:
    """A table that grows along a run; every row is on disk when `add` returns."""

    def __init__(self, path: Path, done: int) -> None:
        """Go on after step `done`: rows of later steps, which the run does again, go."""
        self.path = path
        known = read_table(path) if path.exists() else []
        write_table(path, [row for row in known if row.step <= done])

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows.

        Raises:
            HybridNormError: the disk is full.
        """
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
        except OSError as error:
            raise HybridNormError(
                f"{self.path}: cannot write: {error.strerror}; make room and continue with --resume"
            ) from None
