import math
import subprocess
import sys
from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.study.plan import load_study
from hybridnorm.study.report import write_results
from hybridnorm.study.results import arms, read_results
from studies import fake_run

STUDY = """
title = "A study"
baseline = "pre-norm"
[set]
"train.steps" = 200
[grid]
"model.placement" = ["pre-norm", "hybridnorm"]
"optimizer.lr" = [1e-3, 1e-2]
seed = [0, 1, 2]
"""


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY)
    study = load_study(path, {"model.d_ff": 64, "seed": [5, 6]})
    assert len(study.runs) == 8 and len({run.name for run in study.runs}) == 8
    assert study.runs[0].name == "pre-norm-lr0.001-seed5"
    assert {run.recipe.seed for run in study.runs} == {5, 6}
    assert all(run.recipe.model.d_ff == 64 for run in study.runs)
    assert all(run.recipe.train.steps == 200 for run in study.runs)
    with pytest.raises(HybridNormError, match=r"grid\.seed: expected a non-empty array"):
        load_study(path, {"seed": []})


def test_a_placement_beside_the_recipe_is_found_wherever_the_study_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('title = "Of my own"\n[attention]\ninput_norm = "rms"')
    (tmp_path / "r.toml").write_text("")
    path = tmp_path / "s.toml"
    path.write_text(f'recipe = "{tmp_path}/r.toml"\n[grid]\n"model.placement" = ["mine.toml"]')
    study = load_study(path)
    assert {name: found.title for name, found in study.placements.items()} == {
        "mine.toml": "Of my own"
    }
    assert "Of my own" in write_results(study, tmp_path, read_results(study, tmp_path)).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[grid]\n"model.placment" = ["a"]\nseed=[1]\ncompare="x"', "compare"),
        ('compare = "seed"\n[grid]\nseed = [0]\n"model.d_modle" = [1]', "did you mean 'd_model'"),
        ('compare = "seed"\n[grid]\nseed = 3', "grid.seed: expected a non-empty array"),
        (
            'baseline = "pre-nrm"\n[grid]\n"model.placement" = ["pre-norm"]',
            "did you mean 'pre-norm'",
        ),
        ("x = 1\n[grid]\nseed = [0]", "x: unknown field"),
        ('recipe = "dmeo"\ncompare = "seed"\n[grid]\nseed = [0]', "did you mean 'demo'"),
        ('compare = "seed"', "grid: a study needs a"),
        ('set = 3\ncompare = "seed"\n[grid]\nseed = [0]', "set: expected a table"),
        ('compare = "seed"\n[grid]\nseed = [0]\n"model.n_heads.x" = [1]', "n_heads has none"),
        ('compare = "seed"\n[grid]\nseed = [0, 1, 0]', "two runs would be called 'seed0'"),
    ],
)
def test_broken_studies_name_the_field(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(HybridNormError) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_each_arm_at_its_own_best_and_nothing_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY)
    study = load_study(path)
    finals = {
        ("pre-norm", "0.001"): 3.0,
        ("pre-norm", "0.01"): 2.5,
        ("hybridnorm", "0.001"): 2.4,
        ("hybridnorm", "0.01"): 2.0,
    }
    noise = [0.0, 0.1, 0.3]
    for run in study.runs:
        key = (run.values["model.placement"], str(run.values["optimizer.lr"]))
        seed = run.values["seed"]
        bad = key == ("hybridnorm", "0.01") and seed == 2
        final = finals[key] + noise[seed] + (0.01 * seed if key[0] == "hybridnorm" else 0)
        fake_run(tmp_path, run.name, [5.0, final], "diverged" if bad else "finished")
    results = read_results(study, tmp_path)
    pre, hybrid = arms(study, results)
    assert pre.settings == {"optimizer.lr": 1e-2} and pre.comparison is None
    # The better learning rate lost a run: the arm is judged where all its runs finished.
    assert hybrid.settings == {"optimizer.lr": 1e-3}
    assert hybrid.count("diverged") == 1 and hybrid.count("finished") == 5
    assert hybrid.comparison is not None
    assert hybrid.comparison.mean == pytest.approx(-0.1 + 0.01)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert hybrid.comparison.paired is not None
    assert hybrid.comparison.paired.interval == pytest.approx((-0.09 - half, -0.09 + half))
    page = write_results(study, tmp_path, results).read_text()
    assert "1 diverged" in page and "−0.0900 [−0.1148, −0.0652]*" in page
    assert "step 9: the loss is nan" in page
    resources = page.replace("http://www.w3.org/", "").replace("http://creativecommons.org/", "")
    resources = resources.replace("http://purl.org/", "").replace("https://matplotlib.org/", "")
    assert "http" not in resources and "<script" not in page


def test_settings_are_chosen_on_one_half_of_the_held_out_text_and_compared_on_the_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY)
    study = load_study(path)
    for run in study.runs:
        high = run.values["optimizer.lr"] == 1e-2
        hybrid = run.values["model.placement"] == "hybridnorm"
        comparing = 3.0 - 0.25 * hybrid + 0.5 * high  # the better rate there is not asked for
        halves = {"val_loss_choosing": 2.5 - high, "val_loss_comparing": comparing}
        fake_run(tmp_path, run.name, [5.0, 2.0], **halves)
    pre, hybrid = arms(study, read_results(study, tmp_path))
    assert pre.settings == hybrid.settings == {"optimizer.lr": 1e-2}
    assert pre.val_loss == 3.5 and hybrid.val_loss == 3.25
    assert hybrid.comparison is not None and hybrid.comparison.mean == -0.25
    # All text comes to 2.0 nats and 1.0 bits per byte, the half that is compared to 3.5 nats.
    assert pre.bits_per_byte == 1.75


def test_reading_a_study_needs_no_torch() -> None:
    code = (
        "import sys; from hybridnorm.study import listing, plan, report, results; "
        "plan.load_study('demo'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
