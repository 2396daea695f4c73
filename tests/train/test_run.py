"""Runs as users start them: in processes of their own, killed, resumed, stopped, broken."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import Cli
from hybridnorm.train.report.metrics import read_metrics
from processes import hangup


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in read_metrics(run_dir).train}


def start(run_dir: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hybridnorm", "train", "demo", "--run-dir", str(run_dir), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        path = run_dir / "metrics.jsonl"
        if path.exists() and (rows := read_metrics(run_dir).train) and rows[-1]["step"] >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"ended before step {step}: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def undisturbed(
    own_process: Cli, tiny: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory of a finished run; whoever changes it changes a copy."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    result = own_process("train", "demo", "--run-dir", run_dir, *tiny)
    assert result.returncode == 0, result.stderr
    return run_dir


def test_a_run_learns_and_says_what_it_did(undisturbed: Path) -> None:
    metrics = read_metrics(undisturbed)
    assert [row["step"] for row in metrics.train] == list(range(1, 21))
    assert [row["step"] for row in metrics.evaluations] == [10, 20]
    assert metrics.train[-1]["loss"] < metrics.train[0]["loss"] - 0.5
    final = metrics.evaluations[-1]
    assert metrics.events[-1]["event"] == "finished"
    assert metrics.events[-1]["val_loss"] == final["val_loss"]
    # Byte tokens: bits per byte is the loss in bits, but for the end-of-document tokens.
    assert final["val_bits_per_byte"] == pytest.approx(final["val_loss"] / 0.6931, rel=0.02)
    environment = json.loads((undisturbed / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["torch"]
    assert (undisturbed / "placement.toml").exists()


def test_best_is_by_the_loss_of_the_checkpoints_own_step(
    cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    rhythm = ("--train.eval-every", "8", "--train.keep-checkpoints", "9")
    assert cli("train", "demo", *tiny, *rhythm, "--run-dir", tmp_path).returncode == 0
    evaluated = {row["step"]: row["val_loss"] for row in read_metrics(tmp_path).evaluations}
    for path in (tmp_path / "checkpoints").iterdir():
        meta = json.loads((path / "checkpoint.json").read_text())
        assert meta["val_loss"] == evaluated.get(meta["step"])
    assert evaluated.keys() == {8, 16, 20}
    done = cli("generate", tmp_path, "--prompt", "a", "--checkpoint", "best")
    assert done.returncode == 0, done.stderr


def test_the_run_directory_reproduces_the_run(cli: Cli, undisturbed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    result = cli("train", undisturbed / "recipe.toml", "--run-dir", again)
    assert result.returncode == 0, result.stderr
    assert losses(again) == losses(undisturbed)


def test_sigkill_at_random_steps_changes_no_bit(
    own_process: Cli, undisturbed: Path, tiny: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    moments = random.Random()
    for kill in range(3):
        process = start(run_dir, *tiny, *(["--resume"] if kill else []))
        wait_for_step(run_dir, moments.randint(3, 18), process)
        process.kill()
        process.communicate()
    result = own_process("train", "demo", "--run-dir", run_dir, "--resume", *tiny)
    assert result.returncode == 0, result.stderr
    assert losses(run_dir) == losses(undisturbed)
    ends = [read_metrics(path).evaluations[-1]["val_loss"] for path in (run_dir, undisturbed)]
    assert ends[0] == ends[1]


LONG = ("--train.steps", "100000", "--train.checkpoint-every", "100000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_is_told_by_the_exit_status(
    number: signal.Signals, tiny: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "stopped"
    with hangup(signal.SIG_DFL):
        process = start(run_dir, *tiny, *LONG)
    wait_for_step(run_dir, 7, process)
    for _ in range(1 if number == signal.SIGINT else 3):  # schedulers repeat themselves
        process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, output
    assert "Traceback" not in output and "--resume" in output
    assert_saved_where_it_stopped(run_dir)


def assert_saved_where_it_stopped(run_dir: Path) -> None:
    metrics = read_metrics(run_dir)
    assert metrics.status == "interrupted"
    stopped = metrics.train[-1]["step"]
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [f"step-{stopped:08d}"]


def test_where_nobody_reads_on_the_run_is_saved(tiny: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "head"
    with hangup(signal.SIG_DFL):
        process = start(run_dir, *tiny, *LONG, "--train.eval-every", "1")
    assert process.stdout
    process.stdout.readline()  # | head -n 1
    process.stdout.close()
    status = process.wait(timeout=60)
    if (run_dir / "checkpoints").exists():  # it broke off in the loop, and not before
        assert status == 128 + signal.SIGHUP
        assert_saved_where_it_stopped(run_dir)
    else:
        assert status == -signal.SIGHUP


def test_a_signal_that_is_ignored_stays_ignored(tiny: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "nohup"
    with hangup(signal.SIG_IGN):
        process = start(run_dir, *tiny, "--train.steps", "200")
    wait_for_step(run_dir, 3, process)
    process.send_signal(signal.SIGHUP)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and read_metrics(run_dir).status == "finished", output


def test_too_many_nonfinite_steps_stop_with_step_layer_and_remedy(
    cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "hot"
    hot = (
        "--optimizer.lr",
        "1e30",
        "--optimizer.grad-clip",
        "1e30",
        "--schedule.warmup-steps",
        "0",
    )
    each = ("--train.checkpoint-every", "1", "--train.max-skipped-steps", "3")
    args = (*tiny, *hot, *each, "--model.placement", "no-norm", "--train.log-every", "4")
    result = cli("train", "demo", "--run-dir", run_dir, *args)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr and result.stderr.count("\n") == 1
    assert "step 4: the loss is nan (3 steps in a row)" in result.stderr
    assert "first non-finite value in the output of" in result.stderr
    assert "optimizer.lr" in result.stderr
    metrics = read_metrics(run_dir)
    assert metrics.status == "diverged"
    assert metrics.train[-1]["loss"] is None, "JSON has no NaN"
    # No checkpoint is made among the skipped steps.
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["step-00000001"]


def test_generate_continues_a_prompt(
    cli: Cli, own_process: Cli, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    args = ("generate", run_dir, "--prompt", "the norm", "--max-new-tokens", "20")
    first, second = cli(*args), own_process(*args)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and first.stdout.startswith("the norm")
    newest = max((run_dir / "checkpoints").iterdir())
    next(newest.glob("*.safetensors")).write_bytes(b"torn")
    older = cli(*args)
    assert older.returncode == 0 and f"passed over: checkpoint: {newest}" in older.stderr
    missing = cli("generate", tmp_path / "nowhere")
    assert missing.returncode == 1 and "not a run directory" in missing.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "demo", "--model.placment", "x"], "did you mean '--model.placement'?"),
        (["train", "demo", "--model.placement", "hybridnrom"], "did you mean 'hybridnorm'?"),
        (["train", "dmeo"], "did you mean 'demo'?"),
        (["train", "demo", "--model.n-heads", "3"], "3 heads do not divide d_model"),
        (["train", "demo", "--optimizer.lr", "fast"], "--optimizer.lr"),
        (["train", "demo", "--data.source", "/nowhere.txt"], "/nowhere.txt"),
        (["train", "demo", "--train.device", "cuda:77"], "train.device: 'cuda:77'"),
        (["train", "demo", "--resume", "--run-dir", "nowhere-at-all"], "no run to resume"),
        (["trian"], "did you mean 'train'?"),
        (["show", "hybridnrom"], "did you mean 'hybridnorm'?"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], message: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(*args)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_never_overwritten(
    cli: Cli, undisturbed: Path, tiny: list[str], tmp_path: Path
) -> None:
    run_dir = Path(shutil.copytree(undisturbed, tmp_path / "run"))
    result = cli("train", "demo", "--run-dir", run_dir, *tiny)
    assert result.returncode == 1 and "--resume" in result.stderr
    other = cli("train", "demo", "--run-dir", run_dir, "--resume", *tiny, "--model.d-ff", "96")
    assert other.returncode == 1
    assert "another model (d_ff 64, now 96)" in other.stderr
    strange = tmp_path / "thesis"
    strange.mkdir()
    (strange / "chapter1.txt").write_text("precious")
    refused = cli("train", "demo", "--run-dir", strange, *tiny)
    assert refused.returncode == 1 and "not a run" in refused.stderr


def test_a_directory_that_cannot_be_written_is_one_line(
    cli: Cli, own_process: Cli, tiny: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    run = cli("train", "demo", "--run-dir", tmp_path / "file" / "run", *tiny)
    study = own_process("study", "demo", "--dir", tmp_path / "file" / "study")
    for result, what in ((run, "run"), (study, "study")):
        assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
        assert f"{tmp_path / 'file' / what}: cannot write here" in result.stderr


def test_micro_batches_change_the_sum_order_only(
    cli: Cli, undisturbed: Path, tiny: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "micro"
    result = cli("train", "demo", "--run-dir", run_dir, *tiny, "--train.micro-batch-size", "1")
    assert result.returncode == 0, result.stderr
    expected = losses(undisturbed)
    for step, (loss, _) in losses(run_dir).items():
        assert loss == pytest.approx(expected[step][0], abs=1e-5)
