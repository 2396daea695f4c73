"""What the runs of a study say, run by run and arm by arm. No torch."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from hybridnorm.errors import HybridNormError
from hybridnorm.evaluate import read_questions
from hybridnorm.study.plan import Run, Study
from hybridnorm.study.statistics import Comparison, compare
from hybridnorm.train.report import HALVES, METRICS, Metrics, read_metrics

DONE = "finished", "diverged"  # nothing is left to train
_SEED = "seed"


@dataclass(frozen=True)
class Result:
    """One run: its place in the grid, its metrics, and how it ended."""

    run: Run
    metrics: Metrics
    status: str
    reason: str = ""
    questions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The score of each question by task, where the run was asked some."""

    @property
    def val_loss(self) -> float | None:
        """The last held-out loss of a finished run."""
        return self.held_out("val_loss")

    def held_out(self, loss: str) -> float | None:
        """The last `loss` of a finished run: val_loss, or that of one of the `HALVES`."""
        if self.status != "finished" or not self.metrics.evaluations:
            return None
        last = self.metrics.evaluations[-1]
        return last.get(loss, last["val_loss"])

    def bits_per_byte(self, loss: str) -> float | None:
        """What `loss` comes to in bits per byte of text."""
        found = self.held_out(loss)
        last = self.metrics.evaluations[-1] if self.metrics.evaluations else {}
        whole, bits = last.get("val_loss"), last.get("val_bits_per_byte")
        return found / whole * bits if found is not None and whole and bits is not None else None

    @property
    def seed(self) -> int:
        return self.run.recipe.seed

    @property
    def parameters(self) -> int | None:
        counts = [event["parameters"] for event in self.metrics.events if "parameters" in event]
        return counts[-1] if counts else None

    @property
    def skipped_steps(self) -> int:
        """Steps that were not finite and touched no weight."""
        rows = self.metrics.train
        return (rows[-1].get("skipped_steps") or 0) if rows else 0

    def row(self) -> dict[str, Any]:
        """The run's line of results.csv."""
        last = self.metrics.train[-1] if self.metrics.train else {}
        held_out = self.metrics.evaluations[-1] if self.metrics.evaluations else {}
        end = self.metrics.events[-1] if self.metrics.events else {}
        return {
            "run": self.run.name,
            **self.run.values,
            "status": self.status,
            "steps": last.get("step"),
            "skipped_steps": self.skipped_steps,
            "tokens": last.get("tokens"),
            "train_loss": last.get("loss"),
            "val_loss": held_out.get("val_loss"),
            "val_perplexity": held_out.get("val_perplexity"),
            "val_bits_per_byte": held_out.get("val_bits_per_byte"),
            **{half: held_out.get(half) for half in HALVES},
            "tokens_per_second": end.get("tokens_per_second"),
            "seconds": last.get("seconds"),
            "parameters": self.parameters,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Arm:
    """All runs with one compared value, judged where its other settings suit it best."""

    value: Any
    results: list[Result]
    best: list[Result]
    settings: Mapping[str, Any]
    measure: str = "val_loss"
    """The held-out loss that arms are compared by."""
    comparison: Comparison | None = None

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)

    @property
    def val_loss(self) -> float | None:
        return _mean(result.held_out(self.measure) for result in self.best)

    @property
    def bits_per_byte(self) -> float | None:
        return _mean(result.bits_per_byte(self.measure) for result in self.best)

    def mean(self, column: str) -> float | None:
        """Mean of a results.csv column over the finished runs that know it."""
        return _mean(r.row()[column] for r in self.best if r.val_loss is not None)


def read_results(
    study: Study, folder: Path, crashes: Mapping[str, str] | None = None
) -> list[Result]:
    """The results of all runs, whatever became of them."""
    why = crashes or {}
    return [
        read_result(run, folder / "runs" / run.name, why.get(run.name, "")) for run in study.runs
    ]


def read_result(run: Run, run_dir: Path, crash: str = "") -> Result:
    """What became of one run: finished, diverged, interrupted, crashed, incomplete or missing.

    Args:
        crash: why its process ended, if it did; a run that is not done has crashed then.
    """
    try:
        metrics = read_metrics(run_dir) if (run_dir / METRICS).exists() else Metrics()
        questions = read_questions(run_dir)
    except HybridNormError as error:  # of this run: the others are as good as before
        return Result(run, Metrics(), "crashed", str(error))
    reason = str(metrics.events[-1].get("reason", "")) if metrics.events else ""
    status = "missing" if metrics.status == "empty" else metrics.status
    if status == "finished" and _last_loss(metrics) is None:
        return Result(run, metrics, "diverged", "it has no finite held-out loss")
    if status not in (*DONE, "interrupted", "missing"):
        status = "incomplete"
    if crash and status not in DONE:
        reason = crash
        status = status if status == "interrupted" else "crashed"
    return Result(run, metrics, status, reason, questions)


def arms(study: Study, results: list[Result]) -> list[Arm]:
    """One arm per compared value, each at its own best setting of the other grid fields.

    Settings where a run diverged or is missing are best only if there is no complete one. The
    seed is never a setting: pairs are matched on it. Where there are settings to choose, they are
    chosen on one half of the held-out text, and the arms compared on the other.
    """
    choosing, measure = HALVES if _settings(study) else ("val_loss", "val_loss")
    chosen = {}
    for value in study.arms:
        mine = [r for r in results if r.run.values[study.compare] == value]
        chosen[value] = _best(study, mine, choosing)
    baseline = _by_seed(chosen[study.baseline][1], measure)
    found = []
    for value in study.arms:
        settings, best = chosen[value]
        mine = [r for r in results if r.run.values[study.compare] == value]
        pairs = _by_seed(best, measure)
        differences = [pairs[seed] - baseline[seed] for seed in pairs if seed in baseline]
        against = compare(differences) if differences and value != study.baseline else None
        found.append(Arm(value, mine, best, settings, measure, against))
    return found


def results_table(study: Study, results: list[Result]) -> Table:
    """The final table, for the terminal."""
    table = Table(title=study.title, box=None, title_justify="left")
    columns = arm_columns(study, arms(study, results))
    # What 80 columns cannot hold is in results.csv and the report.
    for heading in ("perplexity", "parameters"):
        del columns[heading]
    for heading in columns:
        left = heading == study.compare
        table.add_column(
            heading.rpartition(".")[2],
            justify="left" if left else "right",
            no_wrap=left,
            overflow="fold",
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def arm_columns(study: Study, found: list[Arm]) -> dict[str, list[str]]:
    """Heading to cells, one cell per arm."""
    columns: dict[str, list[str]] = {study.compare: [str(arm.value) for arm in found]}
    for name in found[0].settings:
        columns[name] = [str(arm.settings[name]) for arm in found]
    columns["held-out loss"] = [number(arm.val_loss, ".4f") for arm in found]
    columns["perplexity"] = [number(perplexity(arm), ".2f") for arm in found]
    columns["bits/byte"] = [number(arm.bits_per_byte, ".4f") for arm in found]
    columns[f"difference to {study.baseline}"] = [difference(arm) for arm in found]
    columns["tokens/s"] = [number(arm.mean("tokens_per_second"), ",.0f") for arm in found]
    columns["parameters"] = [number(arm.mean("parameters"), ",.0f") for arm in found]
    columns["runs"] = [runs_text(arm) for arm in found]
    return columns


def perplexity(arm: Arm) -> float | None:
    """Of the mean held-out loss, so that arms rank as their losses do."""
    return None if arm.val_loss is None else math.exp(min(arm.val_loss, 700.0))


def difference(arm: Arm) -> str:
    """ "−0.0123 [−0.0200, −0.0046]*" with the t interval; * where it excludes zero."""
    return interval(arm.comparison)


def interval(found: Comparison | None) -> str:
    """A mean difference with its t interval."""
    if found is None:
        return "–"
    text = _signed(found.mean)
    if found.t_interval:
        low, high = map(_signed, found.t_interval)
        text += f" [{low}, {high}]" + ("*" if found.significant else "")
    return text


def runs_text(arm: Arm) -> str:
    """ "3 finished, 1 diverged, 9 steps skipped": nothing is dropped."""
    statuses = sorted({result.status for result in arm.results}, key=lambda s: s != "finished")
    skipped = sum(result.skipped_steps for result in arm.results)
    counts = [f"{arm.count(status)} {status}" for status in statuses]
    return ", ".join([*counts, f"{skipped} steps skipped"] if skipped else counts)


def _settings(study: Study) -> list[str]:
    """What an arm may choose for itself."""
    return [f for f in study.grid if f not in (study.compare, _SEED)]


def _best(
    study: Study, results: list[Result], choosing: str
) -> tuple[dict[str, Any], list[Result]]:
    fields = _settings(study)
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.run.values[f] for f in fields), []).append(result)

    def rank(key: tuple[Any, ...]) -> tuple[int, float]:
        losses = [r.held_out(choosing) for r in groups[key]]
        known = [loss for loss in losses if loss is not None]
        return len(losses) - len(known), fmean(known) if known else float("inf")

    best = min(groups, key=rank)
    return dict(zip(fields, best, strict=True)), groups[best]


def _last_loss(metrics: Metrics) -> float | None:
    return metrics.evaluations[-1]["val_loss"] if metrics.evaluations else None


def _by_seed(results: list[Result], measure: str) -> dict[int, float]:
    losses = {r.seed: r.held_out(measure) for r in results}
    return {seed: loss for seed, loss in losses.items() if loss is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def number(value: float | None, spec: str) -> str:
    """A number in its format, or a dash where it is not known."""
    return "–" if value is None else format(value, spec)


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")
