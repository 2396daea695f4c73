"""`hybridnorm inspect`: what is inside, on one screen."""

import shutil
from pathlib import Path

import pytest

from command_line import Cli
from exports import EXPERTS, exported, model


@pytest.fixture(scope="module")
def run(cli: Cli, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    options = (*tiny, "--train.checkpoint-every", "10")
    assert cli("train", "demo", "--run-dir", folder, *options).returncode == 0
    return folder


def test_a_run(cli: Cli, run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "run"
    shutil.copytree(run, damaged)
    last = damaged / "checkpoints" / "step-00000020"
    next(last.glob("*.safetensors")).write_bytes(b"")
    done = cli("inspect", damaged)
    assert done.returncode == 0, done.stderr
    for part in (
        "finished, step 20 of 20",
        "HybridNorm*, 1 norm on the stream of 2 blocks",
        "d_model 32",
        "2,560 seen, 2,560 planned",
        "at step 20; best",
        "257 tokens, 256 ends a document",
        "valid, held-out loss",
        "is damaged",
    ):
        assert part in done.stdout
    assert len(done.stdout.splitlines()) < 25


def test_losses_that_are_not_finite_are_dashes(cli: Cli, run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": null}\n{"step": 21, "val_loss": null}\n')
    done = cli("inspect", broken)
    assert done.returncode == 0, done.stderr
    assert "– at step 21" in done.stdout and "– at step 21; best" in done.stdout


@pytest.mark.parametrize("architecture", ["hybridnorm", "llama"])
def test_a_folder(cli: Cli, architecture: str, tmp_path: Path) -> None:
    theirs = exported(model("pre-norm"), tmp_path / "run", architecture)
    theirs.save_pretrained(tmp_path / "model")
    done = cli("inspect", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    for part in (architecture, "Pre-Norm", "d_model 48", "vocabulary 259", "29 tensors"):
        assert part in done.stdout


def test_an_imported_run(cli: Cli, tmp_path: Path) -> None:
    exported(model(**EXPERTS), tmp_path / "run").save_pretrained(tmp_path / "model")
    assert cli("import", tmp_path / "model", "--to", tmp_path / "again").returncode == 0
    done = cli("inspect", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    for part in ("not started", "3 of 8 and 1 shared experts", "step-00000000", "valid"):
        assert part in done.stdout


def test_what_is_neither_is_named(cli: Cli, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        done = cli("inspect", path)
        assert done.returncode == 1
        assert "neither a run" in done.stderr
    (tmp_path / "config.json").write_text("[]")
    assert "expected a JSON object" in cli("inspect", tmp_path).stderr
