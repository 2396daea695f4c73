"""`hybridnorm advise`: what it plans for a budget, and what it recommends."""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import pytest
import tomli_w

from command_line import Cli
from hybridnorm.errors import HybridNormError
from hybridnorm.recipe import load_recipe
from hybridnorm.study.advise import Pace, advice, fitting
from hybridnorm.study.plan import Study, study_of
from studies import fake_run

STEPS = load_recipe("demo").train.steps
PACE = Pace(start=10, step=0.1)
RUN = PACE.start + STEPS * PACE.step


@pytest.mark.parametrize(
    ("runs", "sizes"),
    [
        (90, (6, 5, 3)),  # arms, rates, seeds
        (89, (6, 3, 4)),
        (53, (5, 3, 3)),
        (18, (2, 3, 3)),
        (10_000, (6, 5, 10)),
    ],
)
def test_a_plan_is_the_largest_that_fits(runs: int, sizes: tuple[int, ...]) -> None:
    study = fitting("demo", {}, PACE, runs * RUN)
    assert tuple(map(len, study.grid.values())) == sizes
    assert {run.recipe.train.steps for run in study.runs} == {STEPS}
    assert study.arms[0] == study.baseline == load_recipe("demo").model.placement


def test_too_little_time_makes_runs_shorter_and_then_is_refused() -> None:
    study = fitting("demo", {}, PACE, 18 * (PACE.start + 200 * PACE.step))
    [(steps, warmup)] = {(r.recipe.train.steps, r.recipe.schedule.warmup_steps) for r in study.runs}
    assert (len(study.runs), steps, warmup) == (18, 200, 20)
    with pytest.raises(HybridNormError, match=r"18 runs of 100 steps.*2.0 times as long"):
        fitting("demo", {}, PACE, 9 * (PACE.start + 100 * PACE.step))


def test_tasks_are_not_asked_on_the_way_to_advice() -> None:
    asking = {"evaluate.tasks": ("piqa",), "evaluate.every": STEPS}
    for budget in (18 * (PACE.start + 200 * PACE.step), 90 * RUN):
        study = fitting("demo", asking, PACE, budget)
        assert {run.recipe.evaluate.tasks for run in study.runs} == {()}
        study.runs[0].changed("trial", {"train.eval_every": 7, "train.steps": 140})


def advised(study: Study, folder: Path, losses: dict[tuple[str, float], list[float]]) -> str:
    for run in study.runs:
        arm, rate = run.values["model.placement"], run.values["optimizer.lr"]
        loss = losses[arm, rate][run.values["seed"]]
        fake_run(folder, run.name, [loss], val_loss_choosing=loss, val_loss_comparing=loss)
    return "\n".join(advice(study, folder, load_recipe("demo")))


GRID = {
    "model.placement": ["pre-norm", "post-norm"],
    "optimizer.lr": [1e-3, 2e-3, 4e-3],
    "seed": [0, 1, 2],
}


def test_what_is_recommended_is_a_recipe_with_its_confidence(tmp_path: Path) -> None:
    study = study_of(tmp_path / "s.toml", {"set": {"train.steps": 300}, "grid": GRID})
    worse = [3.0, 3.1, 3.2]
    losses = dict.fromkeys(((arm, lr) for arm in study.arms for lr in (1e-3, 4e-3)), worse)
    losses |= {("pre-norm", 2e-3): [2.5, 2.6, 2.7], ("post-norm", 2e-3): [2.41, 2.5, 2.61]}
    said = advised(study, tmp_path, losses)
    assert "Train with post-norm at learning rate 0.002" in said
    assert "each of these is behind" in said
    assert "Runs had 300 of 600 steps" in said and "lie beyond" not in said
    recipe = load_recipe(tmp_path / "advised.toml")
    assert (recipe.model.placement, recipe.optimizer.lr) == ("post-norm", 2e-3)
    assert recipe.train == load_recipe("demo").train


def test_arms_that_are_not_told_apart_and_an_edge_are_said(tmp_path: Path) -> None:
    study = study_of(tmp_path / "s.toml", {"set": {}, "grid": GRID})
    losses = {(arm, lr): [3 - 100 * lr] * 3 for arm in study.arms for lr in GRID["optimizer.lr"]}
    losses["post-norm", 4e-3] = [2.7, 2.4, 2.69]
    said = advised(study, tmp_path, losses)
    assert "Train with post-norm at learning rate 0.004" in said
    assert "not told apart" in said and "Confidence: low" in said
    assert "pre-norm (the highest), post-norm (the highest)" in said and "Runs had" not in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_plan_is_run_to_its_advice(
    own_process: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("advise", "demo", *tiny, "--jobs", 2, "--minutes")
    refused = own_process(*words, 1e-3, timeout=200)
    assert refused.returncode == 1 and "minutes: 18 runs of 100 steps" in refused.stderr
    rates = [1e-3, 0.1]
    grid = GRID | {"optimizer.lr": rates, "seed": [0]}
    plan = {"set": overrides(tiny), "grid": grid, "recipe": "demo"}
    folder = Path("studies/demo-advice")
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(tomli_w.dumps(plan))
    for change in (("--model.d-model", 64), ("--data.tokenizer", "bpe")):
        other = own_process(*words, 1e-3, *change, timeout=200)
        assert other.returncode == 1 and "holds the advice for another recipe" in other.stderr
    told = own_process(*words, 1e-3, timeout=500)
    assert told.returncode == 0, told.stderr
    losses = defaultdict(list)
    with (folder / "results.csv").open() as file:
        for row in csv.DictReader(file):
            setting = row["model.placement"], float(row["optimizer.lr"])
            losses[setting].append(float(row["val_loss_choosing"]))
    recipe = load_recipe(folder / "advised.toml")
    mine = recipe.model.placement, recipe.optimizer.lr
    assert fmean(losses[mine]) == min(fmean(losses[mine[0], rate]) for rate in rates)
    assert f"Train with {mine[0]}" in told.stdout


def overrides(words: list[str]) -> dict[str, object]:
    """Words of a command line as fields of a study's file."""
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    return {n: int(v) if v.isdigit() else v for n, v in zip(names, words[1::2], strict=True)}
