import csv
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from command_line import Cli
from hybridnorm.errors import HybridNormError
from hybridnorm.study.plan import load_study
from hybridnorm.study.report import write_report
from hybridnorm.study.results import arms, read_results
from hybridnorm.study.statistics import compare, t95
from hybridnorm.train.report.metrics import MetricsWriter, read_metrics

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
MINI = """
[set]
"data.source" = "{corpus}"
"data.tokenizer" = "byte"
"data.cache" = "{corpus}/prepared"
"model.d_model" = 32
"model.d_ff" = 64
"model.n_layers" = 2
"train.steps" = 6
"train.batch_size" = 2
"train.seq_len" = 32
"train.eval_every" = 300
"train.eval_sequences" = 4
"train.log_every" = 1
"schedule.warmup_steps" = 1
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
    assert "Of my own" in write_report(study, tmp_path, read_results(study, tmp_path)).read_text()


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


def test_the_t_interval_against_a_textbook() -> None:
    # n = 5, mean 2.02, s 0.17889, t(4) 2.776: 2.02 -/+ 0.2221.
    found = compare([2.0, 2.1, 1.8, 2.3, 1.9])
    assert found.mean == pytest.approx(2.02)
    assert found.t_interval == pytest.approx((1.7812, 2.2588), abs=1e-3)
    assert found.significant and found.wins == 0
    assert t95(60) == pytest.approx(2.000, abs=0.002) and t95(31) == pytest.approx(2.040, abs=0.005)


def test_the_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    samples = random.normal(0.0, 1.0, size=(2000, 3))
    covered = sum(not compare(list(sample)).significant for sample in samples[:600])
    assert 0.92 < covered / 600 < 0.98


def test_two_pairs_give_no_interval() -> None:
    found = compare([-0.1, -0.2])
    assert found.t_interval is None and not found.significant and found.wins == 2


def fake_run(folder: Path, name: str, losses: list[float], status: str = "finished") -> None:
    run_dir = folder / "runs" / name
    run_dir.mkdir(parents=True)
    writer = MetricsWriter(run_dir)
    writer.write(event="started", step=0, parameters=1000)
    for step, loss in enumerate(losses, start=1):
        writer.write(
            step=step,
            tokens=step * 100,
            loss=loss,
            grad_norm=1.0,
            lr=1e-3,
            tokens_per_second=50.0,
            seconds=step * 2.0,
        )
    if status == "finished":
        writer.write(
            step=len(losses),
            tokens=len(losses) * 100,
            val_loss=losses[-1],
            val_perplexity=math.exp(losses[-1]),
            val_bits_per_byte=1.0,
        )
        writer.write(
            event="finished",
            step=len(losses),
            val_loss=losses[-1],
            seconds=9.0,
            tokens_per_second=50.0,
        )
    elif status == "diverged":
        writer.write(event="diverged", step=9, reason="step 9: the loss is nan")
    writer.close()


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
    half = 4.303 * 0.01 / math.sqrt(3)
    assert hybrid.comparison.t_interval == pytest.approx((-0.09 - half, -0.09 + half))
    page = write_report(study, tmp_path, results).read_text()
    assert "1 diverged" in page and "−0.0900 [−0.1148, −0.0652]*" in page
    assert "step 9: the loss is nan" in page
    resources = page.replace("http://www.w3.org/", "").replace("http://creativecommons.org/", "")
    resources = resources.replace("http://purl.org/", "").replace("https://matplotlib.org/", "")
    assert "http" not in resources and "<script" not in page


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_study_leaves_no_run_behind_and_continues(
    number: signal.Signals, cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    path, folder = tmp_path / "mini.toml", tmp_path / "out"
    path.write_text(MINI.format(corpus=corpus) + '[grid]\n"model.placement" = ["pre-norm"]')
    args = ["study", str(path), "--dir", str(folder), "--jobs", "2", "--train.steps", "150"]
    study = subprocess.Popen([sys.executable, "-m", "hybridnorm", *args])
    run_dir = folder / "runs" / "pre-norm"
    while not (run_dir / "metrics.jsonl").exists() or not read_metrics(run_dir).train:
        assert study.poll() is None
        time.sleep(0.01)
    study.send_signal(number)
    assert study.wait(timeout=60) == 130
    assert read_metrics(run_dir).status == "interrupted"
    assert cli(*args).returncode == 0
    events = [event["event"] for event in read_metrics(run_dir).events]
    assert events == ["started", "interrupted", "resumed", "finished"]


def test_a_study_runs_skips_what_is_done_and_survives_a_crash(
    cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mini.toml"
    path.write_text(
        MINI.format(corpus=corpus)
        + """[grid]
"model.placement" = ["pre-norm", "hybridnorm"]
"train.seq_len" = [32, 1000000]
"""
    )
    folder = tmp_path / "out"
    result = cli("study", path, "--dir", folder, "--jobs", "2")
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["finished", "crashed"] * 2
    assert "train.seq_len" in rows[1]["reason"]
    assert "report.html" in result.stdout and (folder / "figures" / "held-out-loss.svg").exists()
    stamps = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/metrics.jsonl")}
    again = cli("study", folder / "study.toml", "--dir", folder)
    assert "2 finished before" in again.stdout
    assert stamps == {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/metrics.jsonl")}
    other = cli("study", path, "--dir", folder, "--optimizer.lr", "1e-2")
    assert other.returncode == 1 and "another recipe; name another --dir" in other.stderr


def test_reading_a_study_needs_no_torch() -> None:
    code = (
        "import sys; from hybridnorm.study import plan, report, results; "
        "plan.load_study('demo'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
