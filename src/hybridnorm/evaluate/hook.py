"""Tasks while a model trains."""

import json

from torch.distributed.fsdp import FSDPModule

from hybridnorm.data import load_tokenizer
from hybridnorm.evaluate.results import QUESTIONS, columns
from hybridnorm.evaluate.run_model import RunModel
from hybridnorm.evaluate.tasks import Tasks, ask
from hybridnorm.files import write_whole
from hybridnorm.recipe import Recipe
from hybridnorm.train import Hook, Row, State


def asking_hooks(recipe: Recipe) -> list[Hook]:
    """The hook of a recipe's `[evaluate]`; none where it names no tasks.

    Raises:
        HybridNormError: lm-eval or a task's data is missing, or there is no such task.
    """
    config = recipe.evaluate
    return [TaskScores(Tasks(config.tasks, offline=config.offline))] if config.tasks else []


class TaskScores(Hook):
    """Adds the scores of `[evaluate] tasks` to rows about held-out text, every so many steps.

    The score of every question goes to questions.json, for paired comparisons. Every rank asks all
    questions: a model that is laid out over ranks needs them all.
    """

    def __init__(self, tasks: Tasks) -> None:
        self.tasks = tasks

    def after_evaluation(self, state: State, row: Row) -> None:
        config, train = state.recipe.evaluate, state.recipe.train
        if state.step % config.every and state.step != train.steps:
            return
        tokenizer = load_tokenizer(state.run_dir)
        candidate = RunModel(str(state.run_dir), state.model, tokenizer, train.seq_len)
        found, _ = ask(candidate, self.tasks, limit=config.limit)
        if isinstance(state.model, FSDPModule):
            state.model.reshard()  # a forward pass alone leaves embedding and head whole
        row |= columns(found)
        if state.world.is_main:
            table = {"step": state.step, "tasks": {task.task: dict(task.scores) for task in found}}
            write_whole(state.run_dir / QUESTIONS, json.dumps(table) + "\n")
