"""The hooks of every run: what it says of itself, on the disk, on the screen and elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from hybridnorm.model import ModelConfig
from hybridnorm.recipe import Recipe
from hybridnorm.strict_toml import to_table
from hybridnorm.train.hooks import Hook, Row, State
from hybridnorm.train.report.metrics import MetricsWriter
from hybridnorm.train.report.progress import TrainingProgress
from hybridnorm.train.report.speed import SpeedMeter
from hybridnorm.train.report.spikes import SpikeMonitor
from hybridnorm.train.report.trackers import Tracker, open_trackers
from hybridnorm.train.world import World


def reporting_hooks(
    recipe: Recipe, run_dir: Path, world: World, console: Console, custom: Sequence[Hook]
) -> list[Hook]:
    """What adds numbers first, `custom` among it, then what shows them, on rank 0 alone."""
    adding = [SpikeScores(), Speed(recipe.model, recipe.train.seq_len, world), *custom]
    if not world.is_main:
        return adding
    progress = Progress(recipe, console)
    trackers = open_trackers(recipe.train.trackers, run_dir, to_table(recipe), progress.note)
    return [*adding, MetricsFile(run_dir), *map(Mirror, trackers), progress]


class SpikeScores(Hook):
    """Adds the spike scores of loss and gradient norm."""

    def __init__(self) -> None:
        self.monitors = {name: SpikeMonitor() for name in ("loss", "grad_norm")}

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        for name, monitor in self.monitors.items():
            monitor.update(numbers[name] for numbers in steps)
        row |= self._scores()

    def event(self, state: State, row: Row) -> None:
        if row["event"] == "finished":
            row |= self._scores()

    def memory(self) -> Row:
        return {name: monitor.state() for name, monitor in self.monitors.items()}

    def recall(self, memory: Row) -> None:
        self.monitors = {name: SpikeMonitor(state) for name, state in memory.items()}

    def _scores(self) -> Row:
        return {f"{name}_spike_score": monitor.score for name, monitor in self.monitors.items()}


class Speed(Hook):
    """Adds achieved FLOP/s, utilization and peak memory."""

    def __init__(self, config: ModelConfig, seq_len: int, world: World) -> None:
        self.meter = SpeedMeter(config, seq_len, world.device, world.size)

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        row |= self.meter.row(row["tokens_per_second"])


class MetricsFile(Hook):
    """Appends all rows to metrics.jsonl."""

    def __init__(self, run_dir: Path) -> None:
        self.writer = MetricsWriter(run_dir)

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        self.writer.write(**row)

    def after_evaluation(self, state: State, row: Row) -> None:
        self.writer.write(**row)

    def event(self, state: State, row: Row) -> None:
        self.writer.write(**row)

    def end(self, state: State) -> None:
        self.writer.close()


class Mirror(Hook):
    """Shows the numbers in a tracker; texts of custom hooks are in metrics.jsonl alone."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        self.after_evaluation(state, row)

    def after_evaluation(self, state: State, row: Row) -> None:
        numbers = {n: v for n, v in row.items() if isinstance(v, int | float) and n != "step"}
        self.tracker.log(row["step"], numbers)

    def end(self, state: State) -> None:
        self.tracker.finish()


class Progress(Hook):
    """Shows the numbers on the screen."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self.progress = TrainingProgress(recipe, console)
        self.note = self.progress.note

    def start(self, state: State) -> None:
        self.progress.start()

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        self.progress.train(row)

    def after_evaluation(self, state: State, row: Row) -> None:
        self.progress.evaluation(row)

    def end(self, state: State) -> None:
        self.progress.stop()
