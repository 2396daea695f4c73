"""How far a preparation is."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from hybridnorm.data.prepare.inputs import Unit, size_of

T = TypeVar("T")


class PrepareProgress:
    """A bar over the bytes of the units; nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> "PrepareProgress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def follow(self, what: str, units: Sequence[Unit], results: Iterable[T]) -> Iterator[T]:
        """The results, one for each unit, as they come."""
        task = self._bar.add_task(what, total=sum(map(size_of, units)))
        for unit, result in zip(units, results, strict=True):
            yield result
            self._bar.advance(task, size_of(unit))
        self._bar.remove_task(task)
