"""Tasks of lm-eval, with their prompts and metrics, answered by a candidate."""

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.evaluate.offline import offline_task
from hybridnorm.evaluate.results import Estimate, TaskScore
from hybridnorm.evaluate.scoring import Candidate

# The paper's tasks with the metric that its framework takes; acc_norm divides a log-likelihood by
# the characters of the choice.
PAPER = {
    "basic_arithmetic": "acc",
    "hellaswag": "acc_norm",
    "sciq": "acc",
    "arc_challenge": "acc_norm",
    "arc_easy": "acc",
    "piqa": "acc_norm",
    "openbookqa": "acc_norm",
    "copa": "acc",
    "winogrande": "acc",
    "boolq": "acc",
}
_SEED = 1234  # of what a task draws by chance, as lm-eval has it
_HERE = "basic_arithmetic"  # the one task that is not lm-eval's


class Tasks:
    """Tasks that are loaded, to be asked any number of times.

    Args:
        names: of lm-eval's tasks, groups and tags; `paper` stands for the paper's ten.
        shots: examples before each question. None: as many as the task has by itself.
        offline: read the data that is installed (`offline_task`); nothing is fetched.

    Raises:
        HybridNormError: lm-eval or the data is missing, or there is no such task.
    """

    def __init__(
        self, names: Sequence[str], *, shots: int | None = None, offline: bool = False
    ) -> None:
        check_installed()
        self.shots = shots
        expanded = [task for name in names for task in (PAPER if name == "paper" else [name])]
        with _quiet(), _fixed_seeds():
            self._tasks: list[Any] = []
            for name in dict.fromkeys(expanded):
                self._tasks.append(_load(name, offline or name == _HERE))

    def ask(self, lm: Any, *, limit: int | None = None) -> list[TaskScore]:
        """The scores of `lm`, a `CandidateLM` or another model of lm-eval.

        Args:
            limit: the first so many questions of each task. None: all.

        Raises:
            HybridNormError: a task cannot be carried out.
        """
        from lm_eval import simple_evaluate

        with _quiet(), _fixed_seeds():
            try:
                results: Any = simple_evaluate(
                    lm,
                    tasks=self._tasks,
                    num_fewshot=self.shots,
                    limit=limit,
                    bootstrap_iters=1000,
                    fewshot_random_seed=_SEED,
                    random_seed=None,
                    numpy_random_seed=None,
                    torch_random_seed=None,
                )
            except (ValueError, KeyError, TypeError, ImportError) as error:
                if isinstance(error, HybridNormError):
                    raise
                raise HybridNormError(f"tasks: lm-eval fails: {_line(error)}") from error
        return [_score(name, found) for name, found in _leaves(results)]


def ask(
    candidate: Candidate,
    tasks: Tasks,
    *,
    limit: int | None = None,
    batch_tokens: int = 8192,
    bar: Any = None,
) -> tuple[list[TaskScore], int]:
    """The scores of a candidate, and how many requests lost tokens at the left to fit."""
    from hybridnorm.evaluate.harness import CandidateLM, no_bar

    lm = CandidateLM(candidate, batch_tokens=batch_tokens, bar=bar or no_bar)
    return tasks.ask(lm, limit=limit), lm.truncated


def check_installed() -> None:
    """Raise `HybridNormError` where lm-eval is missing."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise HybridNormError("tasks: need lm-eval; run: pip install 'hybridnorm[eval]'") from None


def _load(name: str, offline: bool) -> Any:
    manager = _manager()
    if not offline and name not in manager.task_index:
        hint = nearest(name, [*manager.task_index, "paper", _HERE])
        raise HybridNormError(f"tasks: unknown task {name!r}; {hint}")
    spec = offline_task(name) if offline else name
    try:
        [task] = found if isinstance(found := manager._load_spec(spec), list) else [found]
    except Exception as error:  # of datasets, the hub, a task's own code
        raise HybridNormError(
            f"tasks: {name} cannot be loaded: {_line(error)}; without a network, use --offline"
        ) from None
    return task


@cache
def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _leaves(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, samples in results["samples"].items():
        yield name, {"metrics": results["results"][name], "samples": samples}


def _score(name: str, found: Mapping[str, Any]) -> TaskScore:
    metrics: dict[str, Estimate] = {}
    for key, value in found["metrics"].items():
        metric, _, filtered = key.partition(",")
        if filtered and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = found["metrics"].get(f"{metric}_stderr,{filtered}")
            label = metric if filtered == "none" else f"{metric},{filtered}"
            metrics[label] = Estimate(value, error if isinstance(error, float) else None)
    main = PAPER.get(name, next(iter(metrics)))
    metric, _, filtered = main.partition(",")
    samples = [s for s in found["samples"] if s["filter"] == (filtered or "none")]
    scores = {str(s["doc_id"]): s.get(metric) for s in samples}
    plain = {number: float(v) for number, v in scores.items() if isinstance(v, int | float)}
    return TaskScore(name, len(samples), metrics, main, plain)


@contextmanager
def _fixed_seeds() -> Iterator[None]:
    """What a task draws by chance is the same each time, and nobody else's numbers change."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(_SEED)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Of lm-eval's remarks, errors only."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
