"""Studies that train: what is skipped, what stops them, and what they leave running: nothing."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import Cli
from hybridnorm.train.report.metrics import read_metrics
from processes import children, hangup, is_alive, linux, wait_for_end
from runs import last_step
from studies import MINI

TIMES = "seconds", "tokens_per_second"
ENDLESS = ("--train.steps", "1000000", "--train.eval-every", "1000000")


def study_file(folder: Path, corpus: Path, grid: str, head: str = "") -> Path:
    path = folder / "mini.toml"
    path.write_text(head + MINI.format(corpus=corpus) + f"[grid]\n{grid}")
    return path


def start(path: Path, folder: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    words = ["study", str(path), "--dir", str(folder), "--jobs", "2", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "hybridnorm", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def wait_for_step(study: subprocess.Popen[bytes], run_dir: Path, step: int = 1) -> None:
    while last_step(run_dir) < step:
        assert study.poll() is None
        time.sleep(0.01)


@linux
def test_each_run_has_a_gpu_of_its_own(corpus: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path, corpus, 'model.placement = ["pre-norm", "hybridnorm"]')
    folder, options = tmp_path / "out", (*ENDLESS, "--train.device", "cpu")
    study = start(path, folder, *options, CUDA_VISIBLE_DEVICES="4,7")
    for name in ("pre-norm", "hybridnorm"):
        wait_for_step(study, folder / "runs" / name)
    seen = set()
    for pid in children(study.pid):
        pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
        seen |= {pair for pair in pairs if pair.startswith("CUDA_VISIBLE_DEVICES")}
    study.terminate()
    assert study.wait(timeout=60) == 130
    assert seen == {"CUDA_VISIBLE_DEVICES=4", "CUDA_VISIBLE_DEVICES=7"}


@linux
def test_runs_that_a_launcher_starts(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path, corpus, 'model.placement = ["pre-norm", "hybridnorm"]')
    launch = tmp_path / "launch"
    launch.write_text(f'#!/bin/sh\necho "$OMP_NUM_THREADS" >> {tmp_path}/seen\nsetsid --wait "$@"')
    launch.chmod(0o755)
    words = ("study", path, "--dir", tmp_path / "out", "--jobs", "2", "--launcher")
    result = cli(*words, str(launch))
    assert result.returncode == 1 and "train.dtype: 'auto' times this machine" in result.stderr
    result = cli(*words, "no-such-thing -x")
    assert result.returncode == 1 and "--launcher: there is no command" in result.stderr
    result = cli(*words, str(launch), "--train.dtype", "fp32", "--train.compile", "off")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "results.csv").read_text().count("finished") == 2
    assert len((tmp_path / "seen").read_text().splitlines()) == 2


@linux
def test_what_a_launcher_has_started_ends_with_the_study(
    cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    path = study_file(tmp_path, corpus, 'model.placement = ["pre-norm"]')
    launch, folder = tmp_path / "launch", tmp_path / "out"
    choices = ("--train.dtype", "fp32", "--train.compile", "off")
    launch.write_text('#!/bin/sh\n"$@"\nexit 0')
    launch.chmod(0o755)
    study = start(path, folder, *ENDLESS, *choices, "--launcher", str(launch))
    wait_for_step(study, folder / "runs" / "pre-norm")
    study.send_signal(signal.SIGINT)
    assert study.wait(timeout=60) == 130
    for _ in range(600):
        if read_metrics(folder / "runs" / "pre-norm").status == "interrupted":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the run goes on")
    result = cli("study", path, "--dir", tmp_path / "none", *choices, "--launcher", "true")
    assert result.returncode == 1 and "a launcher has to wait for it" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_study_leaves_no_run_behind_and_continues(
    number: signal.Signals, cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    path = study_file(tmp_path, corpus, 'model.placement = ["pre-norm"]')
    folder, steps = tmp_path / "out", ("--train.steps", "150")
    run_dir = folder / "runs" / "pre-norm"
    with hangup(signal.SIG_IGN):
        study = start(path, folder, *steps)
    wait_for_step(study, run_dir)
    study.send_signal(signal.SIGHUP)  # as nohup has it: the terminal has gone
    wait_for_step(study, run_dir, last_step(run_dir) + 2)
    study.send_signal(number)
    assert study.wait(timeout=60) == 130
    assert read_metrics(run_dir).status == "interrupted"
    assert cli("study", path, "--dir", folder, "--jobs", "2", *steps).returncode == 0
    events = [event["event"] for event in read_metrics(run_dir).events]
    assert events == ["started", "interrupted", "resumed", "finished"]


@linux
def test_one_study_in_a_folder_whose_runs_end_when_it_is_killed(
    cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    path = study_file(tmp_path, corpus, 'model.placement = ["pre-norm", "hybridnorm"]')
    folder = tmp_path / "out"
    study = start(path, folder, *ENDLESS)
    for name in ("pre-norm", "hybridnorm"):
        wait_for_step(study, folder / "runs" / name)
    written = {p: p.read_bytes() for p in (folder / "recipes").iterdir()}
    second = cli("study", path, "--dir", folder, "--optimizer.lr", "0.5")
    assert second.returncode == 1 and second.stdout == ""
    assert second.stderr == (
        f"hybridnorm: {folder}: another process works here; stop it first, or name another place\n"
    )
    assert written == {p: p.read_bytes() for p in (folder / "recipes").iterdir()}
    assert study.poll() is None
    runs = children(study.pid)
    assert len(runs) == 2 and all(map(is_alive, runs))
    study.kill()
    study.wait()
    wait_for_end(runs, 10)


@linux
def test_a_run_that_is_killed_is_no_success(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    path = study_file(tmp_path, corpus, 'model.placement = ["pre-norm"]')
    folder = tmp_path / "out"
    study = start(path, folder, *ENDLESS)
    wait_for_step(study, folder / "runs" / "pre-norm")
    (run,) = children(study.pid)
    os.kill(run, signal.SIGKILL)
    assert study.wait(timeout=60) == 1
    (row,) = csv.DictReader((folder / "results.csv").read_text().splitlines())
    assert row["status"] == "crashed" and "signal 9 (Killed)" in row["reason"]
    assert "No run has finished" in (folder / "report.html").read_text()


def test_a_study_runs_skips_what_is_done_and_survives_a_crash(
    cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    grid = 'model.placement = ["pre-norm", "hybridnorm"]\ntrain.seq_len = [32, 1000000]'
    path = study_file(tmp_path, corpus, grid)
    path.write_text(path.read_text().replace('"train.seq_len" = 32\n', ""))
    folder = tmp_path / "out"
    result = cli("study", path, "--dir", folder, "--jobs", "2")
    assert result.returncode == 1
    assert result.stderr == (
        f"hybridnorm: {folder}: of 4 runs 2 crashed; results.csv and logs/ say why, and the same "
        "command tries them again\n"
    )
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


def results(folder: Path) -> list[dict[str, str]]:
    """results.csv without what depends on the clock."""
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@linux
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "launcher", [(), ("--launcher", "setsid --wait")], ids=["here", "elsewhere"]
)
def test_whatever_is_killed_and_whenever_the_results_are_the_same(
    launcher: tuple[str, ...], cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    grid = 'model.placement = ["pre-norm"]\noptimizer.lr = [8e-3, 16e-3]'
    path = study_file(tmp_path, corpus, grid, "extend = true\nfloor = true\n")
    options = "--train.steps", "60", "--train.checkpoint-every", "10", "--train.dtype", "fp32"
    options += "--train.compile", "off", *launcher
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli("study", path, "--dir", whole, "--jobs", "2", *options).returncode == 0
    for runs, whom in (
        ("pre-norm-lr0.008", "study"),
        ("pre-norm-lr0.016", "run"),
        ("floor-*", "study"),
    ):
        study = start(path, killed, *options)
        while not any(map(last_step, killed.glob(f"runs/{runs}"))) or not children(study.pid):
            assert study.poll() is None
            time.sleep(0.01)
        os.kill(study.pid if whom == "study" else children(study.pid)[0], signal.SIGKILL)
        study.wait(timeout=120)
    assert cli("study", path, "--dir", killed, "--jobs", "2", *options).returncode == 0
    assert results(killed) == results(whole)
    parts = {row["part"] for row in results(whole)}
    assert parts == {"grid", "extension", "floor"}
    assert cli("study", "report", killed).returncode == 0
    assert results(killed) == results(whole)
