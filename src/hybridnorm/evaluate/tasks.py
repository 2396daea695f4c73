"""Tasks of lm-eval, with their prompts and metrics, answered by a candidate."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

from hybridnorm.errors import HybridNormError, in_a_line, nearest
from hybridnorm.evaluate.offline import offline_task
from hybridnorm.evaluate.quiet import quiet
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
        expanded = [task for name in names for task in (PAPER if name == "paper" else [name])]
        self._loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
        with quiet(), _fixed_seeds():
            for name in dict.fromkeys(expanded):
                for part, found in _load(name, offline or name == _HERE).items():
                    self._loaded[part] |= found
            for task in self._loaded["tasks"].values():
                own = task.get_config("num_fewshot")
                if own != 0:  # a task that says 0 means it
                    task.set_config("num_fewshot", shots if shots is not None else own or 0)

    def ask(self, lm: Any, *, limit: int | None = None) -> list[TaskScore]:
        """The scores of `lm`, a `CandidateLM` or another model of lm-eval.

        Args:
            limit: the first so many questions of each task. None: all.

        Raises:
            HybridNormError: a task cannot be carried out.
        """
        from lm_eval import evaluate

        with quiet(), _fixed_seeds():
            for task in self._loaded["tasks"].values():
                task.set_fewshot_seed(_SEED)  # the same examples each time
            try:
                results: Any = evaluate(lm, self._loaded, limit=limit, bootstrap_iters=1000)
            except HybridNormError:
                raise
            except (ValueError, KeyError, TypeError, ImportError) as error:
                raise HybridNormError(f"tasks: lm-eval fails: {in_a_line(error)}") from error
        return [_score(name, results) for name in results["results"]]


def ask(
    candidate: Candidate,
    tasks: Tasks,
    *,
    limit: int | None = None,
    batch_tokens: int | None = None,
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


def _load(name: str, offline: bool) -> dict[str, Any]:
    """A task, a group or the tasks of a tag, as lm-eval's `evaluate` takes them."""
    from lm_eval.tasks._yaml_loader import load_yaml

    manager = _manager()
    known = manager.task_index
    if not offline and name not in known:
        hint = nearest(name, [*known, "paper", _HERE])
        raise HybridNormError(f"tasks: unknown task {name!r}; {hint}")
    try:
        spec: Any = name
        if offline:
            own = load_yaml(known[name].yaml_path, resolve_func=True) if name in known else {}
            spec = offline_task(name, own)
        return dict(manager.load([spec]))
    except HybridNormError:
        raise
    except Exception as error:  # of datasets, the hub, a task's own code
        raise HybridNormError(
            f"tasks: {name} cannot be loaded: {in_a_line(error)}; without a network, use --offline"
        ) from None


@cache
def _manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _score(name: str, results: Mapping[str, Any]) -> TaskScore:
    """Of a task, or of a group, which has no questions of its own."""
    numbers, samples = results["results"][name], results["samples"].get(name, [])
    metrics: dict[str, Estimate] = {}
    for key, value in numbers.items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = numbers.get(f"{metric}_stderr,{kind}")
            label = metric if kind == "none" else key
            metrics[label] = Estimate(value, error if isinstance(error, float) else None)
    main = PAPER.get(name, next(iter(metrics)))
    metric, _, kind = main.partition(",")
    mine = [sample for sample in samples if sample["filter"] == (kind or "none")]
    scores = {
        str(sample["doc_id"]): float(sample[metric])
        for sample in mine
        if isinstance(sample.get(metric), int | float)
    }
    return TaskScore(name, len(mine), metrics, main, scores)


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
