"""What a study adds to its grid: learning rates beyond the edge, and runs of equal things."""

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.study import load_study
from hybridnorm.study.figures import figures
from hybridnorm.study.folder import claim
from hybridnorm.study.growth import MOST_RATES, Floor, completed, noise_floor
from hybridnorm.study.plan import RATE, Run, Study
from hybridnorm.study.rates import curve, edge, next_rate, stable
from hybridnorm.study.report import rebuild, write_results
from hybridnorm.study.results import Result, arms
from hybridnorm.study.statistics import chance
from hybridnorm.study.tables import arm_columns, evidence_columns, runs_text
from hybridnorm.study.verdict import is_below, verdict
from studies import fake_run

RATES = """
extend = true
baseline = "pre-norm"
[grid]
model.placement = ["pre-norm", "post-norm"]
optimizer.lr = [2e-3, 4e-3]
seed = [0, 1, 2]
"""
FLOORED = """
floor = true
correct = "holm"
[grid]
model.placement = ["pre-norm", "post-norm", "hybridnorm"]
seed = [0, 1, 2]
"""


def study_of(folder: Path, text: str) -> Study:
    path = folder / "s.toml"
    path.write_text(text)
    return load_study(path)


def run_to_the_end(
    study: Study, folder: Path, loss: Callable[[Run], float]
) -> tuple[Study, list[Result]]:
    """Train as a study does; where the loss is infinite, a run diverges."""
    while True:
        study, results = completed(study, folder)
        waiting = [result.run for result in results if result.status == "missing"]
        if not waiting:
            return study, results
        for run in waiting:
            final = loss(run)
            fake_run(folder, run.name, [5.0, final], "finished" if final < 9 else "diverged")


def valley(best: float, cliff: float) -> Callable[[Run], float]:
    """Loss by learning rate: a parabola over its logarithm, and divergence beyond the cliff."""

    def loss(run: Run) -> float:
        rate = run.recipe.optimizer.lr
        return math.inf if rate > cliff else 3 + math.log2(rate / best) ** 2 / 10

    return loss


def test_rates_are_added_until_the_best_is_inside(tmp_path: Path) -> None:
    study = study_of(tmp_path, RATES)
    high, low = valley(0.017, 1.0), valley(0.0006, 0.003)
    study, results = run_to_the_end(
        study, tmp_path, lambda run: (high if "pre-norm" in run.name else low)(run)
    )
    pre, post = arms(study, results)
    assert [point.rate for point in curve(pre)] == [0.002, 0.004, 0.008, 0.016, 0.032]
    assert pre.settings == {RATE: 0.016} and edge(pre) == ""
    assert str(stable(pre)) == "≥ 0.032"
    assert [point.rate for point in curve(post)] == [0.00025, 0.0005, 0.001, 0.002, 0.004]
    assert post.settings == {RATE: 0.0005}
    assert (stable(post).rate, stable(post).unstable_at) == (0.002, 0.004)
    added = [run for run in study.runs if run.part == "extension"]
    assert len(added) == 18 and len({run.name for run in added}) == 18
    assert {run.recipe.optimizer.lr for run in added if "post" in run.name} == {
        *(0.00025, 0.0005, 0.001)
    }
    (chart,) = (c for name, c in figures(study, [pre, post]).items() if name == "learning-rate")
    worst = next(row for row in chart.rows if row["diverged"])
    assert (worst["model.placement"], worst[RATE], worst["diverged"]) == ("post-norm", 0.004, 3)
    assert "mean" not in worst and len(chart.rows) == 10


def test_a_rate_at_which_nothing_is_learned_is_not_stable(tmp_path: Path) -> None:
    study = study_of(tmp_path, RATES.replace("extend = true", ""))
    for run in study.runs:
        stuck = run.recipe.optimizer.lr == 0.004 and "post" in run.name
        fake_run(tmp_path, run.name, [8.0, 7.01 if stuck else 5.0], unigram=7.0)
    pre, post = arms(*completed(study, tmp_path))
    assert (str(stable(pre)), str(stable(post))) == ("≥ 0.004", "0.002")
    assert runs_text(post) == "6 finished, 3 at the plateau"
    assert "learned more" not in verdict(study, [pre, post])
    slow = study_of(tmp_path, RATES.replace("extend = true", "").replace("2e-3", "2e-4"))
    for run in slow.runs:
        if run.recipe.optimizer.lr == 2e-4:
            fake_run(tmp_path, run.name, [8.0, 7.5], unigram=7.0)
    pre, post = arms(*completed(slow, tmp_path))
    assert (str(stable(pre)), str(stable(post))) == ("≥ 0.004", "< 0.004")
    assert "No run of post-norm learned more than" in verdict(slow, [pre, post])


def test_a_best_that_never_comes_is_flagged_after_the_stated_number_of_steps(
    tmp_path: Path,
) -> None:
    study, results = run_to_the_end(study_of(tmp_path, RATES), tmp_path, valley(0.3, 1.0))
    found = arms(study, results)
    assert all(len(curve(arm)) == 2 + MOST_RATES for arm in found)
    assert arm_columns(study, found)[RATE] == ["0.064 (edge)"] * 2
    assert "pre-norm, post-norm is at the edge of the grid" in verdict(study, found)


def test_an_arm_that_finished_nowhere_has_no_best_rate_to_speak_of(tmp_path: Path) -> None:
    study = study_of(tmp_path, RATES.replace("extend = true", ""))
    for run in study.runs:
        loss, end = (8.0, "diverged") if "post" in run.name else (5.0, "finished")
        fake_run(tmp_path, run.name, [8.0, loss], end)
    found = arms(*completed(study, tmp_path))
    assert "post-norm is at the edge" not in verdict(study, found)
    assert next_rate(found[1]) == 0.001


def test_an_arm_whose_runs_are_not_done_waits(tmp_path: Path) -> None:
    study = study_of(tmp_path, RATES)
    for run in study.runs[:-1]:
        fake_run(tmp_path, run.name, [5.0, valley(0.1, 1.0)(run)])
    grown, _ = completed(study, tmp_path)
    assert {run.name for run in grown.runs[len(study.runs) :]} == {
        f"pre-norm-lr0.008-seed{seed}" for seed in range(3)
    }


@pytest.mark.parametrize("rates", ["optimizer.lr = [1e-3]", "seed = [0]"])
def test_there_is_something_to_extend(rates: str, tmp_path: Path) -> None:
    text = f'extend = true\n[grid]\nmodel.placement = ["pre-norm"]\n{rates}'
    with pytest.raises(HybridNormError, match=r"s\.toml: extend: needs two or more values of opt"):
        study_of(tmp_path, text)


def noisy(folder: Path, null: float = 0.01) -> tuple[Study, list[Result]]:
    """Arms that differ by 0.05 and by 0.001, and equal ones that differ by noise of size `null`."""
    means = {"post-norm": 0.05, "hybridnorm": 0.001, "pre-qkv-post": 0.001}
    noise = {"pre-norm": 0.0, "hybridnorm": 0.0002, "post-norm": 0.003, "pre-qkv-post": null}

    def loss(run: Run) -> float:
        name, seed = run.recipe.model.placement, run.recipe.seed
        shared = 0.1 * np.random.default_rng(seed).normal()
        own = noise[name] * np.random.default_rng([seed, 1]).normal()
        return float(3 + shared + means.get(name, 0.0) + own)

    return run_to_the_end(study_of(folder, FLOORED), folder, loss)


def test_the_noise_floor_is_what_equal_things_differ_by(tmp_path: Path) -> None:
    study, results = noisy(tmp_path)
    # hybridnorm is qkv-post: what is trained already is not trained again.
    added = [run.name for run in study.runs if run.part == "floor"]
    assert added == [
        *(f"floor-pre-qkv-post-seed{seed}" for seed in range(3)),
        *(f"floor-pre-norm-seed{seed}" for seed in (3, 4, 5)),
    ]
    loss = {result.run.name: result.val_loss or 0.0 for result in results}
    equals = [loss[f"floor-pre-qkv-post-seed{s}"] - loss[f"hybridnorm-seed{s}"] for s in range(3)]
    reseeded = [loss[f"floor-pre-norm-seed{s + 3}"] - loss[f"pre-norm-seed{s}"] for s in range(3)]
    floor = noise_floor(study, results)
    assert floor == Floor(pytest.approx(equals), pytest.approx(reseeded))  # type: ignore[arg-type]
    assert floor.paired == chance(equals) and floor.unpaired > 3 * floor.paired
    pre, post, hybrid = arms(study, results)
    assert (is_below(pre, floor), is_below(post, floor), is_below(hybrid, floor)) == (0, 0, 1)
    assert all(len(arm.results) == 3 for arm in (pre, post, hybrid))
    assert hybrid.significant  # of its own pairs alone it would be
    page = write_results(study, tmp_path, results).read_text()
    assert '<span class="below">+0.00' in page and "and below the noise floor" in page


def test_equal_things_are_told_apart_where_every_arm_learns(tmp_path: Path) -> None:
    text = FLOORED + "optimizer.lr = [1e-3, 2e-3, 4e-3]"
    study = study_of(tmp_path, text.replace("[grid]", "extend = true\n[grid]"))
    best = {"pre-norm": 2e-3, "post-norm": 2e-3}
    study, _ = run_to_the_end(
        study, tmp_path, lambda run: valley(best.get(run.recipe.model.placement, 6e-4), 1.0)(run)
    )
    added = {run.name: run.recipe.optimizer.lr for run in study.runs if run.part == "floor"}
    assert set(added.values()) == {5e-4, 2e-3}
    assert all(rate == (2e-3 if "pre-norm" in name else 5e-4) for name, rate in added.items())


@pytest.mark.parametrize("how", ["lost", "at the plateau"])
def test_a_floor_that_lost_a_run_is_not_known(how: str, tmp_path: Path) -> None:
    study, results = noisy(tmp_path)
    run_dir = tmp_path / "runs" / "floor-pre-norm-seed4"
    if how == "lost":
        (run_dir / "metrics.jsonl").write_bytes(b"\0\n")
    else:
        shutil.rmtree(run_dir)
        fake_run(tmp_path, run_dir.name, [5.0, 3.1], unigram=3.0)
    study, results = completed(study, tmp_path)
    assert noise_floor(study, results) is None
    assert "The noise floor is not known" in write_results(study, tmp_path, results).read_text()


def test_stars_follow_the_correction_that_the_file_declares(tmp_path: Path) -> None:
    text = """
correct = "{}"
[grid]
model.placement = ["pre-norm", "post-norm", "hybridnorm", "peri-ln", "keel"]
seed = [0, 1, 2]
"""
    # p = 0.02 alone, 0.08 as the smallest of four.
    away = dict(
        zip(("post-norm", "hybridnorm", "peri-ln", "keel"), (1.0, 0.4, 0.3, 0.2), strict=True)
    )
    study = study_of(tmp_path, text.format("holm"))
    for run in study.runs:
        bump = (0.0, 0.01, 0.02)[run.recipe.seed]
        mean = away.get(run.recipe.model.placement, 0.0)
        fake_run(tmp_path, run.name, [5.0, 3 + mean * 0.03 + bump * bool(mean)])
    for correct, marked, column in (("holm", 0, "p, Holm"), ("none", 1, "p")):
        study = study_of(tmp_path, text.format(correct))
        found = arms(study, completed(study, tmp_path)[1])
        cells = arm_columns(study, found)["difference to pre-norm"]
        assert sum(cell.endswith("*") for cell in cells) == marked
        first = float(evidence_columns(study, found)[column][0])
        assert first == pytest.approx(0.021 * (4 if correct == "holm" else 1), rel=0.1)


def test_comparisons_are_declared_before_the_runs(tmp_path: Path) -> None:
    study = study_of(tmp_path, FLOORED)
    claim(study, tmp_path / "out", "typed")
    other = study_of(tmp_path, FLOORED.replace("holm", "none"))
    claim(other, tmp_path / "out", "typed")  # nothing has run yet
    fake_run(tmp_path / "out", study.runs[0].name, [5.0])
    with pytest.raises(HybridNormError, match=r"correct was 'none' when the runs started"):
        claim(study, tmp_path / "out", "typed")
    text = FLOORED.replace("holm", "none")
    claim(
        study_of(tmp_path, text.replace('"hybridnorm"', '"hybridnorm", "keel"')),
        tmp_path / "out",
        "",
    )
    for named, changed in (
        ("baseline was 'pre-norm'", 'baseline = "post-norm"\n' + text),
        ("keel was compared", text),
        ("keel was compared", text.replace("[0, 1, 2]", "[7, 8, 9]")),  # runs of its own
    ):
        with pytest.raises(HybridNormError, match=named):
            claim(study_of(tmp_path, changed), tmp_path / "out", "typed")


def test_two_levels_of_uncertainty(tmp_path: Path) -> None:
    study = study_of(tmp_path, '[grid]\nmodel.placement = ["pre-norm", "keel"]\nseed = [0, 1, 2]')
    random = np.random.default_rng(0)
    text = random.normal(3.0, 0.5, size=196)  # some windows are harder, for every model
    kept = {}
    for run in study.runs:
        better = 0.02 * (run.recipe.model.placement == "keel")
        losses = text - better + random.normal(0, 0.05, size=196)
        kept[run.name] = losses
        fake_run(tmp_path, run.name, [5.0, float(losses.mean())], windows=losses.tolist())
    _, keel = arms(study, completed(study, tmp_path)[1])
    assert keel.over_windows and keel.over_windows.paired and keel.over_windows.n == 14
    each = sum(kept[f"keel-seed{s}"] - kept[f"pre-norm-seed{s}"] for s in range(3)) / 3
    stretches = each.reshape(14, 14).mean(axis=1)
    half = 2.16037 * stretches.std(ddof=1) / math.sqrt(14)
    low, high = keel.over_windows.paired.interval
    assert (low, high) == pytest.approx((each.mean() - half, each.mean() + half), rel=1e-4)


def test_a_report_is_written_anew_from_the_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    study = study_of(tmp_path, RATES)
    claim(study, folder, "typed")
    study, results = run_to_the_end(study, folder, valley(0.006, 0.1))
    write_results(study, folder, results)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".csv", ".svg", ".html")}
    for path in before:
        path.unlink()
    rebuild(folder)
    assert before == {path: path.read_bytes() for path in before}
    page = (folder / "report.html").read_text()
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(rows) == 24
    best = {result.run.name for arm in arms(study, results) for result in arm.best}
    for row in rows:
        assert page.count(f'<a href="runs/{row["run"]}/">') == len(row) + (row["run"] in best)
    drawings = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert drawings == {path.stem for path in (folder / "figures").glob("*.csv")}
    with pytest.raises(HybridNormError, match="not the folder of a study"):
        rebuild(tmp_path / "elsewhere")


def test_a_study_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    study = study_of(tmp_path, RATES)
    claim(study, tmp_path, "hybridnorm study s.toml")
    page = rebuild(tmp_path).read_text()
    assert "No run has finished" in page
