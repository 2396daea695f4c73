"""What the runs of a study say, run by run and arm by arm. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.evaluate import read_questions
from hybridnorm.study.folder import run_dir
from hybridnorm.study.plan import FLOOR, SEED, Run, Study
from hybridnorm.study.statistics import LEVEL, Comparison, batch_means, compare, holm
from hybridnorm.train.report import (
    HALVES,
    METRICS,
    WINDOWS_OF,
    Metrics,
    read_metrics,
    read_windows,
)

DONE = "finished", "diverged"  # nothing is left to train


@dataclass(frozen=True)
class Result:
    """One run: its place in the grid, its metrics, and how it ended."""

    run: Run
    metrics: Metrics
    status: str
    reason: str = ""
    questions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The score of each question by task, where the run was asked some."""
    windows: Sequence[float] = ()
    """The final loss of every held-out window, where the run kept them."""

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
        found: int | None = self._told("parameters")
        return found

    @property
    def unigram_loss(self) -> float | None:
        """Of the held-out text; None where the run did not write it down."""
        found: float | None = self._told("unigram_loss")
        return found

    @property
    def at_plateau(self) -> bool:
        """Whether it ended knowing no more than how frequent each token is."""
        loss, unigram = self.val_loss, self.unigram_loss
        return loss is not None and unigram is not None and loss >= unigram

    @property
    def speed(self) -> float | None:
        """Tokens per second: the median of what was logged, so that a stall counts little."""
        speeds = [s for row in self.metrics.train if (s := row.get("tokens_per_second"))]
        return median(speeds) if speeds else None

    @property
    def flops_per_token(self) -> int | None:
        """As model/flops.py counts them, which the run has recorded as a speed."""
        for row in self.metrics.train:
            if row.get("flops_per_second") and row.get("tokens_per_second"):
                found: int = round(row["flops_per_second"] / row["tokens_per_second"])
                return found
        return None

    def _told(self, name: str) -> Any:
        """What the run said when it started."""
        return next((e[name] for e in reversed(self.metrics.events) if name in e), None)

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
            "part": self.run.part,
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
            "unigram_loss": self.unigram_loss,
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
    """With the baseline, seed by seed."""
    over_windows: Comparison | None = None
    """With the baseline, by stretches of the held-out text, each the mean over the seeds."""
    p: float | None = None
    """Of the paired difference, corrected as the study declares."""

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < 1 - LEVEL

    @property
    def losses(self) -> dict[int, float]:
        """By seed, of the finished runs that the arm is judged by."""
        found = {result.seed: result.held_out(self.measure) for result in self.best}
        return {seed: loss for seed, loss in found.items() if loss is not None}

    @property
    def windows(self) -> dict[int, Sequence[float]]:
        """The losses of the windows that these are the means of; empty where they are not kept."""
        return {result.seed: result.windows[WINDOWS_OF[self.measure]] for result in self.best}

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)

    @property
    def val_loss(self) -> float | None:
        return _mean(result.held_out(self.measure) for result in self.best)

    @property
    def bits_per_byte(self) -> float | None:
        return _mean(result.bits_per_byte(self.measure) for result in self.best)

    @property
    def speed(self) -> float | None:
        """Tokens per second of its median run."""
        speeds = [result.speed for result in self.best if result.speed is not None]
        return median(speeds) if speeds else None


def read_results(
    study: Study, folder: Path, crashes: Mapping[str, str] | None = None
) -> list[Result]:
    """The results of all runs, whatever became of them."""
    why = crashes or {}
    return [read_result(run, run_dir(folder, run), why.get(run.name, "")) for run in study.runs]


def read_result(run: Run, run_dir: Path, crash: str = "") -> Result:
    """What became of one run: finished, diverged, interrupted, crashed, incomplete or missing.

    Args:
        crash: why its process ended, if it did; a run that is not done has crashed then.
    """
    try:
        metrics = read_metrics(run_dir) if (run_dir / METRICS).exists() else Metrics()
        questions, windows = read_questions(run_dir), read_windows(run_dir)
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
    return Result(run, metrics, status, reason, questions, windows)


def arms(study: Study, results: Sequence[Result]) -> list[Arm]:
    """One arm per compared value, each at its own best setting of the other grid fields.

    Settings where a run diverged or is missing are best only if there is no complete one. The
    seed is never a setting: pairs are matched on it. Where there are settings to choose, they are
    chosen on one half of the held-out text, and the arms compared on the other.
    """
    choosing, measure = HALVES if _settings(study) else ("val_loss", "val_loss")
    found = []
    for value in study.arms:
        mine = [r for r in results if r.run.part != FLOOR and r.run.values[study.compare] == value]
        settings, best = _best(study, mine, choosing)
        found.append(Arm(value, mine, best, settings, measure))
    baseline = found[study.arms.index(study.baseline)]
    found = [arm if arm is baseline else beside(arm, baseline) for arm in found]
    tested = [arm.p for arm in found if arm.p is not None]
    corrected = iter(holm(tested) if study.correct == "holm" else tested)
    return [arm if arm.p is None else replace(arm, p=next(corrected)) for arm in found]


def beside(arm: Arm, baseline: Arm) -> Arm:
    """The arm with what runs of the same seed say of it and the baseline, if there are any."""
    seeds = [seed for seed in arm.losses if seed in baseline.losses]
    if not seeds:
        return arm
    both = arm, baseline
    comparison = compare(*([side.losses[seed] for seed in seeds] for side in both))
    windows = [[side.windows[seed] for seed in seeds] for side in both]
    over_windows = None
    if len({len(losses) for side in windows for losses in side}) == 1 and windows[0][0]:
        means = (list(map(fmean, zip(*side, strict=True))) for side in windows)
        over_windows = compare(*map(batch_means, means))
    p = comparison.paired.p if comparison.paired else None
    return replace(arm, comparison=comparison, over_windows=over_windows, p=p)


def _settings(study: Study) -> list[str]:
    """What an arm may choose for itself."""
    return [f for f in study.grid if f not in (study.compare, SEED)]


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


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
