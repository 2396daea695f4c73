"""The recipe's optimizer, schedule and z-loss, from the command line to the metrics and back."""

import shutil
from pathlib import Path

import pytest

from command_line import Cli
from hybridnorm.train.report.metrics import read_metrics

MUON = [
    *("--optimizer.name", "muon"),
    *("--schedule.name", "wsd"),
    *("--schedule.decay-steps", "10"),
    *("--train.z-loss", "1e-4"),
    *("--train.log-every", "1"),
    *("--train.keep-checkpoints", "9"),
]
SGD = [
    *("--optimizer.name", "torch.optim.SGD"),
    *("--optimizer.options", "momentum=0.9", "nesterov=true"),
]


def test_a_muon_run_resumes_where_it_was(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    run_dir, again = tmp_path / "run", tmp_path / "again"
    result = cli("train", "demo", "--run-dir", run_dir, *tiny, *MUON)
    assert result.returncode == 0, result.stderr
    assert "matrices     muon" in result.stdout
    rows = read_metrics(run_dir).train
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert [row["lr"] for row in rows[1:10]] == [2e-3] * 9 and rows[-1]["lr"] == pytest.approx(2e-4)

    shutil.copytree(run_dir, again)
    for step in (15, 20):
        shutil.rmtree(again / "checkpoints" / f"step-{step:08d}")
    (again / "metrics.jsonl").unlink()
    result = cli("train", "demo", "--run-dir", again, "--resume", *tiny, *MUON)
    assert result.returncode == 0, result.stderr
    for a, b in zip(rows[10:], read_metrics(again).train, strict=True):
        assert all(a[name] == b[name] for name in ("step", "loss", "z_loss", "grad_norm", "lr"))

    result = cli("train", "demo", "--run-dir", again, "--resume", *tiny)
    assert result.returncode == 1 and "the checkpoint is of another optimizer" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_optimizer_by_import_path_trains(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    result = cli("train", "demo", "--run-dir", tmp_path / "run", *tiny, *SGD)
    assert result.returncode == 0, result.stderr
    assert "torch.optim.SGD" in result.stdout
    rows = read_metrics(tmp_path / "run").train
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all("z_loss" not in row for row in rows)


def test_z_loss_is_part_of_the_objective_but_not_of_the_loss(
    cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    runs = {}
    for name, options in {
        "off": [],
        "weak": ["--train.z-loss", "0.1"],
        "strong": ["--train.z-loss", "0.2", "--train.micro-batch-size", "1"],
    }.items():
        result = cli("train", "demo", "--run-dir", tmp_path / name, *tiny, *options)
        assert result.returncode == 0, result.stderr
        runs[name] = read_metrics(tmp_path / name)
    first = {name: metrics.train[0] for name, metrics in runs.items()}
    assert first["off"]["loss"] == pytest.approx(first["weak"]["loss"])
    assert first["off"]["loss"] == pytest.approx(first["strong"]["loss"])
    assert first["strong"]["z_loss"] == pytest.approx(2 * first["weak"]["z_loss"])
    assert first["off"]["grad_norm"] < first["weak"]["grad_norm"] < first["strong"]["grad_norm"]
    last = {name: metrics.train[-1] for name, metrics in runs.items()}
    assert last["strong"]["z_loss"] / 2 < last["weak"]["z_loss"] < first["weak"]["z_loss"]
    # Held-out loss is cross-entropy alone: like the training loss, and far from loss + z_loss.
    held_out = runs["weak"].evaluations[-1]["val_loss"]
    assert held_out == pytest.approx(last["weak"]["loss"], abs=0.2)
    assert last["weak"]["z_loss"] > 1
