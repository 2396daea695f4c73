"""Where a run's numbers go: metrics.jsonl first, then the screen and the mirrors."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from rich.console import Console

from hybridnorm.recipe import Recipe
from hybridnorm.strict_toml import to_table
from hybridnorm.train.report.metrics import MetricsWriter, Row
from hybridnorm.train.report.progress import TrainingProgress
from hybridnorm.train.report.trackers import open_trackers


class Report:
    """Reports a run; without a directory (ranks other than 0) it keeps silent."""

    def __init__(self, recipe: Recipe, run_dir: Path | None, console: Console) -> None:
        self._progress = TrainingProgress(recipe, console)
        self._metrics = MetricsWriter(run_dir) if run_dir else None
        names = recipe.train.trackers if run_dir else ()
        self._trackers = open_trackers(names, run_dir or Path(), to_table(recipe), self.note)
        self._closing = ExitStack()

    def __enter__(self) -> "Report":
        for part in self._trackers:
            self._closing.callback(part.finish)
        if self._metrics:
            self._closing.callback(self._metrics.close)
        self._progress.start()
        self._closing.callback(self._progress.stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.close()

    def event(self, event: str, **fields: object) -> None:
        """started, resumed, finished, interrupted, diverged."""
        if self._metrics:
            self._metrics.write(event=event, **fields)

    def train(self, row: Row) -> None:
        """A logged training step."""
        self._write(row)
        self._progress.train(row)

    def evaluation(self, row: Row) -> None:
        """Numbers on held-out text."""
        self._write(row)
        self._progress.evaluation(row)

    def note(self, text: str) -> None:
        """A line for the screen."""
        self._progress.note(text)

    def _write(self, row: Row) -> None:
        if self._metrics:
            self._metrics.write(**row)
        shown = {name: value for name, value in row.items() if name != "step" and value is not None}
        for tracker in self._trackers:
            tracker.log(row["step"], shown)
