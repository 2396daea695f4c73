"""Arms compared on tasks, question by question. No torch."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from hybridnorm.study.plan import Study
from hybridnorm.study.results import Arm
from hybridnorm.study.statistics import Comparison, compare
from hybridnorm.study.tables import interval

Scores = Mapping[str, float]


class TaskComparison(NamedTuple):
    """An arm on a task: each question's score is its mean over the arm's runs."""

    task: str
    arm: str
    mean: float
    to_baseline: Comparison | None
    """Of the questions that both were asked; above zero is better. None for the baseline."""


def compare_tasks(study: Study, found: Sequence[Arm]) -> list[TaskComparison]:
    """Every arm on every task that its runs were asked, task by task."""
    scores = {str(arm.value): _scores(arm) for arm in found}
    baseline = scores[str(study.baseline)]
    tasks = dict.fromkeys(task for of_arm in scores.values() for task in of_arm)
    return [
        TaskComparison(task, arm, fmean(of_arm[task].values()), _paired(task, of_arm, baseline))
        for task in tasks
        for arm, of_arm in scores.items()
        if of_arm.get(task)
    ]


def task_columns(study: Study, found: Sequence[Arm]) -> dict[str, list[str]]:
    """Heading to cells, one cell per arm and task."""
    rows = compare_tasks(study, found)
    return {
        "task": [row.task for row in rows],
        study.compare: [row.arm for row in rows],
        "mean": [f"{row.mean:.4f}" for row in rows],
        f"difference to {study.baseline}": [interval(row.to_baseline) for row in rows],
        "questions": ["–" if r.to_baseline is None else f"{r.to_baseline.n:,}" for r in rows],
    }


def _scores(arm: Arm) -> dict[str, dict[str, float]]:
    runs = [result.questions for result in arm.best if result.status == "finished"]
    tasks = dict.fromkeys(task for run in runs for task in run)
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        asked = [run[task] for run in runs if task in run]
        shared = set.intersection(*(set(run) for run in asked))
        found[task] = {question: fmean(run[question] for run in asked) for question in shared}
    return found


def _paired(
    task: str, of_arm: Mapping[str, Scores], baseline: Mapping[str, Scores]
) -> Comparison | None:
    before = baseline.get(task, {})
    both = sorted(of_arm[task].keys() & before.keys())
    if not both or of_arm is baseline:
        return None
    return compare([of_arm[task][q] for q in both], [before[q] for q in both])
