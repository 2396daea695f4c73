"""What watches a run: the loop calls hooks, and knows nothing of what they do with it.

The lines on the screen, metrics.jsonl, trackers, spike scores and speed are hooks; a user's own is
a class named by its import path in `[train] hooks`.
"""

import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from hybridnorm.errors import HybridNormError
from hybridnorm.model import Transformer
from hybridnorm.recipe import Recipe
from hybridnorm.train.batches import Batch
from hybridnorm.train.import_path import import_class
from hybridnorm.train.world import World

Row = dict[str, Any]


@dataclass(frozen=True)
class State:
    """A run at one moment."""

    recipe: Recipe
    model: Transformer
    world: World
    run_dir: Path
    step: int
    """Optimizer steps that are done."""
    held_out: Callable[[int], Iterator[tuple[Batch, int]]]
    """At most so many held-out sequences over all ranks, the same at every call: this rank's
    batches, and how many rows of each count. Every rank gets as many batches."""


class Hook:
    """Watches a run; a subclass overrides what it needs.

    Every rank calls every method, in the same order. A hook changes no weight, gradient or random
    state: with and without it, a run has the same losses.
    """

    def start(self, state: State) -> None:
        """Before the first step, of a new or a resumed run."""

    def before_forward(self, state: State) -> None:
        """A micro-batch is there."""

    def after_backward(self, state: State) -> None:
        """The gradients of the whole batch are there, before they are clipped."""

    def after_step(self, state: State) -> None:
        """The optimizer has stepped, and the gradients are gone."""

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        """The numbers of every step since the last call, and the row about them for metrics.jsonl.

        What a hook adds to `row`, plain numbers and texts, later hooks see; those of users come
        before metrics.jsonl.
        """

    def after_evaluation(self, state: State, row: Row) -> None:
        """Numbers on held-out text."""

    def event(self, state: State, row: Row) -> None:
        """`row["event"]` is started, resumed, finished, interrupted or diverged."""

    def end(self, state: State) -> None:
        """However the run ends, an error included."""

    def memory(self) -> Row:
        """What a checkpoint keeps of the hook, in JSON's types."""
        return {}

    def recall(self, memory: Row) -> None:
        """Before the start, where a checkpoint has kept something of this hook."""

    @property
    def name(self) -> str:
        """Under which a checkpoint keeps its memory."""
        return type(self).__name__


def imported_hooks(recipe: Recipe) -> list[Hook]:
    """One of each class that `[train] hooks` names; what goes wrong in it is one line.

    Raises:
        HybridNormError: no such module or class, or one that cannot be made without arguments.
    """
    hooks = []
    for path in recipe.train.hooks:
        cls = import_class(path, Hook, "train.hooks")
        hooks.append(cast(Hook, _Reported(path, _reported(cls, f"{path}()")())))
    return hooks


class _Reported:
    """A user's hook, whose errors name it."""

    def __init__(self, path: str, hook: Hook) -> None:
        self.name, self._hook = path, hook

    def __getattr__(self, method: str) -> Any:
        return _reported(getattr(self._hook, method), f"{self.name}.{method}")

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        found = dict(row)
        _reported(self._hook.log, f"{self.name}.log")(state, steps, found)
        for key, value in row.items():
            if found.get(key) is not value:
                self._refuse("log", f"changes {key!r}; a hook only adds to a row")
        for key, value in found.items():
            if not isinstance(value, int | float | str | None):
                what = f"a {type(value).__name__}; a row takes plain numbers, such as float(x)"
                self._refuse("log", f"adds {key!r}, {what}")
        row |= found

    def memory(self) -> Row:
        kept = _reported(self._hook.memory, f"{self.name}.memory")()
        if not isinstance(kept, dict):
            self._refuse("memory", f"returns {kept!r:.80}, not a dictionary")
        try:
            json.dumps(kept)
        except (TypeError, ValueError) as error:
            self._refuse("memory", f"returns what JSON cannot hold: {error}")
        return kept

    def _refuse(self, method: str, why: str) -> NoReturn:
        raise HybridNormError(f"train.hooks: {self.name}.{method} {why}")


def _reported(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except (Exception, SystemExit) as error:  # the user's code: anything can go wrong in it
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise HybridNormError(
                f"train.hooks: {name} fails in {place.filename}:{place.lineno}: {what}"
            ) from error

    return call
