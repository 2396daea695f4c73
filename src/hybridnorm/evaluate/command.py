"""`hybridnorm evaluate`: a run or a Hugging Face folder, on texts and on tasks."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hybridnorm.data import read_texts
from hybridnorm.errors import HybridNormError
from hybridnorm.evaluate.huggingface_model import load_huggingface_model
from hybridnorm.evaluate.options import EvaluateOptions
from hybridnorm.evaluate.results import TaskScore, TextScore, tasks_table, texts_table, to_json
from hybridnorm.evaluate.run_model import load_run_model
from hybridnorm.evaluate.scoring import Candidate
from hybridnorm.evaluate.tasks import Tasks, ask
from hybridnorm.evaluate.text import score_texts
from hybridnorm.files import write_whole
from hybridnorm.terminal import Screen
from hybridnorm.train import pick_device, show_problems


def evaluate(model: Path, options: EvaluateOptions) -> None:
    """Judge a model and print tables.

    Raises:
        HybridNormError: a model, text or task that is missing or does not fit.
    """
    names = options.task_names
    tasks = Tasks(names, shots=options.shots, offline=options.offline) if names else None
    console = Screen()
    candidate = open_candidate(model, options)
    texts = [_score_text(candidate, name, options, console) for name in options.text]
    if texts:
        console.print(texts_table(texts))
    scores = _ask(candidate, tasks, options, console) if tasks else []
    if options.out is not None:
        found = to_json(str(model), texts, scores)
        write_whole(options.out, json.dumps(found, indent=1) + "\n")


def _score_text(
    candidate: Candidate, name: str, options: EvaluateOptions, console: Screen
) -> TextScore:
    with _bar(console, name, None) as advance:
        return score_texts(
            candidate,
            name,
            read_texts(name),
            stride=options.stride,
            batch_tokens=options.batch_tokens,
            advance=advance,
        )


def _ask(
    candidate: Candidate, tasks: Tasks, options: EvaluateOptions, console: Screen
) -> list[TaskScore]:
    scores, truncated = ask(
        candidate,
        tasks,
        limit=options.limit,
        batch_tokens=options.batch_tokens,
        bar=lambda title, total: _bar(console, title, total),
    )
    console.print(tasks_table(scores))
    if truncated:
        console.print(
            f"{truncated:,} requests are longer than the window of {candidate.window} tokens; "
            "they were cut at the left",
            style="yellow",
        )
    return scores


def open_candidate(model: Path, options: EvaluateOptions) -> Candidate:
    """The model of a run or a Hugging Face folder.

    Raises:
        HybridNormError: it is neither, or cannot be loaded.
    """
    device = pick_device(options.device)
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    if (model / "recipe.toml").exists():
        found, problems = load_run_model(model, options.checkpoint, device, dtype, options.window)
        show_problems(problems, Screen(stderr=True))
        return found
    if (model / "config.json").exists():
        return load_huggingface_model(
            model, device, dtype, options.window, trust_remote_code=options.trust_remote_code
        )
    raise HybridNormError(
        f"{model}: neither a run (it has no recipe.toml) nor a Hugging Face folder (no config.json)"
    )


@contextmanager
def _bar(console: Screen, title: str, total: int | None) -> Iterator[Callable[[int], object]]:
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)
