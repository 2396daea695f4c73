"""What a study makes of its runs, whatever became of them."""

import csv
from pathlib import Path

import pytest

from hybridnorm.diagnose.catalogue import catalogue
from hybridnorm.diagnose.hook import table_path
from hybridnorm.study import load_study
from hybridnorm.study.figures import figures, save_figures
from hybridnorm.study.plan import Study
from hybridnorm.study.report import write_results
from hybridnorm.study.results import Result, arms, read_results
from hybridnorm.study.tables import csv_text, results_table, runs_text
from hybridnorm.study.verdict import verdict
from studies import fake_run

PAIR = '[grid]\nmodel.placement = ["pre-norm", "hybridnorm"]\nseed = [0, 1, 2]'


def pair(folder: Path, text: str = PAIR) -> Study:
    path = folder / "s.toml"
    path.write_text(text)
    return load_study(path)


def results_csv(results: list[Result]) -> str:
    return csv_text([result.row() for result in results])


def damage(folder: Path, name: str, line: bytes) -> Path:
    path = folder / "runs" / name / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    return path


@pytest.mark.parametrize("line", [b"\0" * 9, b"\xff\xfe", b"7", b"{}", b'{"step": 1, "loss": [1]}'])
def test_a_damaged_run_is_named_and_takes_no_other_with_it(line: bytes, tmp_path: Path) -> None:
    study = pair(tmp_path)
    for run in study.runs:
        fake_run(tmp_path, run.name, [5.0, 3.0 + run.recipe.seed])
    path = damage(tmp_path, "hybridnorm-seed1", line)
    results = read_results(study, tmp_path)
    assert [result.status for result in results] == [*["finished"] * 4, "crashed", "finished"]
    assert results[4].reason.startswith(f"{path}: ")
    assert results[4].reason in results_csv(results)


@pytest.mark.parametrize(
    "text", ["{", "{}", '{"tasks": {"t": [1]}}', '{"tasks": {"t": {"q": null}}}']
)
def test_damaged_answers_are_named(text: str, tmp_path: Path) -> None:
    study = pair(tmp_path)
    for run in study.runs:
        fake_run(tmp_path, run.name, [5.0, 3.0])
    path = tmp_path / "runs" / "hybridnorm-seed1" / "questions.json"
    path.write_text(text)
    results = read_results(study, tmp_path)
    assert [result.status for result in results] == [*["finished"] * 4, "crashed", "finished"]
    assert results[4].reason.startswith(f"{path}: ")


def test_the_report_of_a_damaged_study(tmp_path: Path) -> None:
    study = pair(tmp_path)
    for run in study.runs:
        fake_run(tmp_path, run.name, [5.0, 3.0])
    path = damage(tmp_path, "hybridnorm-seed1", b"\0")
    damage(tmp_path, "pre-norm-seed0", b'{"step": 7, "loss": 3.4e38}')  # no tokens, no speed
    (tmp_path / "runs" / "pre-norm-seed0" / "environment.json").write_bytes(b"\xff{")
    (tmp_path / "runs" / "pre-norm-seed1" / "environment.json").write_text("[1]")
    (tmp_path / "command.txt").write_bytes(b"\xff")
    probes = table_path(tmp_path / "runs" / "pre-norm-seed2", next(iter(catalogue())))
    probes.parent.mkdir()
    probes.write_text("step\n1\n")
    page = write_results(study, tmp_path, read_results(study, tmp_path)).read_text()
    assert "2 finished, 1 crashed" in page and str(path) in page
    assert f"{probes}: is not a table of" in page


def test_a_run_without_a_finite_loss_at_its_end_has_diverged(tmp_path: Path) -> None:
    study = pair(tmp_path)
    for run in study.runs:
        bad = run.name == "hybridnorm-seed2"
        fake_run(tmp_path, run.name, [5.0, float("nan") if bad else 3.0], skipped=4 * bad)
    results = read_results(study, tmp_path)
    assert results[5].status == "diverged" and results[5].val_loss is None
    rows = list(csv.DictReader(results_csv(results).splitlines()))
    assert [row["skipped_steps"] for row in rows] == ["0"] * 5 + ["4"]
    assert rows[5]["train_loss"] == "" and rows[5]["val_loss"] == ""
    found = arms(study, results)
    assert runs_text(found[1]) == "2 finished, 1 diverged, 4 steps skipped"
    assert "2 finished, 1 diverged, 4 steps skipped" in verdict(study, found)


def test_an_arm_that_lost_runs_is_not_the_best(tmp_path: Path) -> None:
    study = pair(tmp_path)
    for run in study.runs:
        lucky = run.name == "hybridnorm-seed0"
        status = "finished" if lucky or run.name.startswith("pre") else "diverged"
        fake_run(tmp_path, run.name, [5.0, 1.0 if lucky else 3.0], status)
    said = verdict(study, arms(study, read_results(study, tmp_path)))
    assert said.startswith("Lowest held-out loss of the arms that lost fewest runs: pre-norm, 3.0")
    assert "hybridnorm: 1 finished, 2 diverged" in said


@pytest.mark.parametrize(
    ("grid", "compare"),
    [
        ("optimizer.betas = [[0.9, 0.95], [0.8, 0.9]]", "optimizer.betas"),
        ("optimizer.betas = [[0.9, 0.95], [0.8, 0.9]]\nseed = [0, 1]", "seed"),
        ('data.prepared = [["a", "b"]]\ndata.weights = [[1, 2], [2, 1]]', "data.weights"),
    ],
)
def test_arrays_are_values_of_a_grid(grid: str, compare: str, tmp_path: Path) -> None:
    study = pair(tmp_path, f'compare = "{compare}"\n[grid]\n{grid}')
    for run in study.runs:
        fake_run(tmp_path, run.name, [5.0, 3.0])
    results = read_results(study, tmp_path)
    found = arms(study, results)
    assert all(arm.val_loss == 3.0 for arm in found)
    assert len(results_csv(results).splitlines()) == len(study.runs) + 1
    assert results_table(study, results).row_count == len(found)
    figures(study, found)


def test_what_a_user_names_is_no_markup_and_no_formula(tmp_path: Path) -> None:
    names = ["a$b_{c$.toml", "_x.toml", "[red].toml"]
    for name in names:
        (tmp_path / name).write_text('[attention]\ninput_norm = "rms"')
    text = f"title = '[/red] $x_$'\n[grid]\nmodel.placement = {names}\nseed = [0]"
    study = pair(tmp_path, text)
    for run in study.runs:
        fake_run(tmp_path, run.name, [5.0, 3.0])
    results = read_results(study, tmp_path)
    drawn = figures(study, arms(study, results))
    save_figures(drawn, tmp_path / "figures")
    legend = drawn["training-loss"].figure.axes[0].get_legend()
    assert legend and [text.get_text().strip() for text in legend.get_texts()] == names


def test_a_report_says_what_differs_besides_the_grid(tmp_path: Path) -> None:
    grid = 'model.preset = ["small", "small-deep"]\ntrain.steps = [100, 200]'
    study = pair(tmp_path, f'compare = "model.preset"\nrecipe = "small"\n[grid]\n{grid}')
    page = write_results(study, tmp_path, read_results(study, tmp_path)).read_text()
    steps = study.runs[0].recipe.train.tokens_per_step
    assert f"{100 * steps:,} to {200 * steps:,} tokens" in page
    width, depth = (
        [getattr(run.recipe.model, n) for run in study.runs] for n in ("d_model", "n_layers")
    )
    for name, values in (("d_model", width), ("n_layers", depth)):
        assert f"<td>model.{name}</td><td>{values[0]}, {values[-1]}</td>" in page
