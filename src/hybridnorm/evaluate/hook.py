"""Tasks while a model trains."""

import json

from torch.distributed.fsdp import FSDPModule

from hybridnorm.data import load_tokenizer
from hybridnorm.evaluate.results import QUESTIONS, columns
from hybridnorm.evaluate.run_model import RunModel
from hybridnorm.evaluate.tasks import Tasks, ask, check_installed
from hybridnorm.files import write_whole
from hybridnorm.train import Hook, Row, State


class TaskScores(Hook):
    """Adds the scores of `[evaluate] tasks` to rows about held-out text, every so many steps.

    The score of every question goes to questions.json, for paired comparisons. Every rank asks all
    questions: a model that is laid out over ranks needs them all.

    Raises:
        HybridNormError: lm-eval is not installed.
    """

    def __init__(self) -> None:
        check_installed()

    def start(self, state: State) -> None:
        config = state.recipe.evaluate
        self.tasks = Tasks(config.tasks, offline=config.offline)

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
