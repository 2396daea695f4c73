"""Tasks while a model trains: numbers in the metrics, none changed, compared by a study."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import Cli
from hybridnorm.study import load_study
from hybridnorm.study.report import write_results
from hybridnorm.study.results import arms, read_results
from hybridnorm.study.tasks import compare_tasks
from hybridnorm.train.report import read_metrics
from offline_tasks import install
from runs import losses

pytest.importorskip("lm_eval")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]
ASKED = ["--evaluate.tasks", "piqa", "arc_easy", "--evaluate.offline"]


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "packages")
    monkeypatch.syspath_prepend(tmp_path / "packages")


def test_scores_are_in_the_metrics_and_change_no_loss(
    tiny: list[str], cli: Cli, tmp_path: Path
) -> None:
    plain, asked = tmp_path / "plain", tmp_path / "asked"
    assert cli("train", *tiny, "--run-dir", plain).returncode == 0
    every = ["--evaluate.every", "20", "--evaluate.limit", "5", "--train.trackers", "tensorboard"]
    result = cli("train", *tiny, *ASKED, *every, "--run-dir", asked)
    assert result.returncode == 0, result.stderr
    assert losses(asked) == losses(plain)
    before, last = read_metrics(asked).evaluations
    assert not [name for name in before if name.startswith("tasks/")]
    assert {"tasks/piqa/acc_norm", "tasks/piqa/acc_norm_stderr", "tasks/arc_easy/acc"} <= set(last)
    scores = json.loads((asked / "questions.json").read_text())
    assert scores["step"] == 20 and len(scores["tasks"]["piqa"]) == 5
    assert last["tasks/piqa/acc_norm"] == np.mean(list(scores["tasks"]["piqa"].values()))
    assert f"piqa/acc_norm {last['tasks/piqa/acc_norm']:.4f}" in result.stdout
    again = cli("evaluate", asked, "--tasks", "piqa", "--offline", "--limit", "5")
    assert f"{last['tasks/piqa/acc_norm']:.4f} ± " in again.stdout

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(asked / "tensorboard"))
    shown.Reload()
    [point] = shown.Scalars("tasks/piqa/acc_norm")
    assert point.step == 20 and point.value == pytest.approx(last["tasks/piqa/acc_norm"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluate.every", "15"], "evaluate.every: 15 is no multiple of train.eval_every 10"),
        (["--evaluate.every", "0"], "evaluate.every: must be at least 1"),
        (["--evaluate.tasks", "piqqa"], "'piqqa' is not among those without a network; did you"),
    ],
)
def test_bad_settings_end_the_run_at_its_start(
    words: list[str], message: str, tiny: list[str], cli: Cli, tmp_path: Path
) -> None:
    result = cli("train", *tiny, *ASKED, *words, "--run-dir", tmp_path / "run")
    assert result.returncode == 1 and message in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1


STUDY = """
baseline = "pre-norm"
[grid]
"model.placement" = ["pre-norm", "hybridnorm"]
seed = [0, 1]
"""


def finished(folder: Path, name: str, scores: dict[str, float] | None) -> None:
    run_dir = folder / "runs" / name
    run_dir.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"event": "started", "step": 0, "parameters": 10},
        {"step": 9, "tokens": 90, "loss": 2.0, "grad_norm": 1.0, "tokens_per_second": 5.0}
        | {"seconds": 1.0, "lr": 0.1},
        {"step": 9, "tokens": 90, "val_loss": 2.0, "val_perplexity": 7.0, "val_bits_per_byte": 1.0},
        {"event": "finished", "step": 9, "tokens_per_second": 5.0},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if scores is not None:
        (run_dir / "questions.json").write_text(json.dumps({"step": 9, "tasks": {"piqa": scores}}))


def test_a_study_compares_arms_question_by_question(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY)
    study = load_study(path)
    draw = np.random.default_rng(0)
    before, after = draw.integers(0, 2, (2, 60)), draw.integers(0, 2, (2, 60))
    for arm, table in (("pre-norm", before), ("hybridnorm", after)):
        for seed in (0, 1):
            scores = {str(n): float(score) for n, score in enumerate(table[seed])}
            finished(tmp_path, f"{arm}-seed{seed}", scores)
    results = read_results(study, tmp_path)
    base, other = compare_tasks(study, arms(study, results))
    assert (base.arm, base.to_baseline, other.arm) == ("pre-norm", None, "hybridnorm")
    assert other.mean == pytest.approx(after.mean())
    assert other.to_baseline is not None and other.to_baseline.n == 60
    difference = after.mean(0) - before.mean(0)
    assert other.to_baseline.mean == pytest.approx(difference.mean())
    half = 2.001 * difference.std(ddof=1) / 60**0.5
    low, high = other.to_baseline.paired.interval
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    page = write_results(study, tmp_path, results).read_text()
    assert "<h2>Tasks</h2>" in page and "paired over questions" in page


def test_a_study_without_tasks_says_nothing_of_them(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY)
    study = load_study(path)
    for run in study.runs:
        finished(tmp_path, run.name, None)
    assert (
        "<h2>Tasks</h2>"
        not in write_results(study, tmp_path, read_results(study, tmp_path)).read_text()
    )
