"""What an evaluation comes to: tables for people, JSON for programs. No torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from rich.table import Table

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_json

QUESTIONS = "questions.json"


@dataclass(frozen=True)
class Estimate:
    """A mean or ratio, and its standard error, where one can be told."""

    value: float
    error: float | None


@dataclass(frozen=True)
class TextScore:
    """What a source of texts comes to."""

    source: str
    documents: int
    tokens: int
    bytes: int
    """Of UTF-8 text."""
    nats_per_token: Estimate
    perplexity: Estimate
    """exp(nats per token)."""
    bits_per_byte: Estimate


@dataclass(frozen=True)
class TaskScore:
    """What a task comes to."""

    task: str
    questions: int
    metrics: Mapping[str, Estimate]
    main: str
    """The metric to look at."""
    scores: Mapping[str, float]
    """The main metric of each question, by its number."""


def texts_table(found: Sequence[TextScore]) -> Table:
    table = _table("text", "documents", "tokens", "nats/token", "perplexity", "bits/byte")
    for text in found:
        numbers = (text.nats_per_token, text.perplexity, text.bits_per_byte)
        counts = (f"{text.documents:,}", f"{text.tokens:,}")
        table.add_row(text.source, *counts, *map(_shown, numbers))
    return table


def tasks_table(found: Sequence[TaskScore]) -> Table:
    table = _table("task", "questions", "metric", "value")
    for task in found:
        for name, estimate in task.metrics.items():
            mark = "*" if name == task.main and len(task.metrics) > 1 else ""
            table.add_row(task.task, f"{task.questions:,}", name + mark, _shown(estimate))
    if any(len(task.metrics) > 1 for task in found):
        table.caption = "* the metric of the task"
    return table


def to_json(model: str, texts: Sequence[TextScore], tasks: Sequence[TaskScore]) -> dict[str, Any]:
    """An evaluation as a JSON object."""
    return {
        "model": model,
        "texts": [asdict(text) for text in texts],
        "tasks": [asdict(task) for task in tasks],
    }


def columns(found: Sequence[TaskScore]) -> dict[str, float | None]:
    """The metrics of tasks as columns of a row of metrics."""
    return {
        f"tasks/{task.task}/{name}{suffix}": number
        for task in found
        for name, estimate in task.metrics.items()
        for suffix, number in (("", estimate.value), ("_stderr", estimate.error))
    }


def read_questions(run_dir: Path) -> dict[str, dict[str, float]]:
    """The score of each question by task, of the last evaluation while a run trained.

    Empty where there was none.

    Raises:
        HybridNormError: the file is damaged.
    """
    path = run_dir / QUESTIONS
    if not path.exists():
        return {}
    found = read_json(path).get("tasks")
    tasks = list(found.values()) if isinstance(found, dict) else [None]
    if not all(
        isinstance(scores, dict) and all(map(_is_score, scores.values())) for scores in tasks
    ):
        raise HybridNormError(f"{path}: has no scores of questions by task; it is damaged")
    return cast(dict[str, dict[str, float]], found)


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _table(*headings: str) -> Table:
    table = Table(box=None, caption_justify="left")
    for heading in headings:
        words = heading in ("text", "task", "metric")
        table.add_column(heading, justify="left" if words else "right")
    return table


def _shown(estimate: Estimate) -> str:
    error = "" if estimate.error is None else f" ± {estimate.error:.4f}"
    return f"{estimate.value:.4f}{error}"
