import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hybridnorm.train.report.metrics import read_metrics

Cli = Callable[..., subprocess.CompletedProcess[str]]
MEDDLING = """
from hybridnorm.train.hooks import Hook

class Watch(Hook):
    calls = []

    def __getattribute__(self, name):
        if name in Hook.__dict__ and not name.startswith("_"):
            Watch.calls.append(name)
        return object.__getattribute__(self, name)

    def end(self, state):
        (state.run_dir / "calls.txt").write_text(" ".join(Watch.calls))

class Broken(Hook):
    def __init__(self):
        raise RuntimeError("no luck")

class NoHook:
    pass

class Raising(Hook):
    def after_step(self, state):
        if state.step == 3:
            {}["missing"]

class Counting(Hook):
    count = 0

    def after_step(self, state):
        self.count += 1

    def log(self, state, steps, row):
        row["count"] = self.count
        row["mood"] = "good"

    def memory(self):
        return {"count": self.count}

    def recall(self, memory):
        self.count = memory["count"]

class Tensors(Hook):
    def log(self, state, steps, row):
        row["norm"] = object()

class Greedy(Hook):
    def log(self, state, steps, row):
        row["loss"] = 0.0

class Forgetful(Hook):
    def memory(self):
        return None
"""


def line_of(code: str) -> int:
    return next(n for n, line in enumerate(MEDDLING.splitlines(), start=1) if code in line)


def test_a_hook_sees_the_run_and_changes_no_number(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watching.py").write_text(MEDDLING)
    (tmp_path / "shares.py").write_text(
        (Path(__file__).parents[2] / "examples" / "hook.py").read_text()
    )
    monkeypatch.chdir(tmp_path)
    hooks = ("--train.hooks", "watching.Watch", "shares.GradientShares")
    steps = ("--train.log-every", "2", "--train.steps", "4", "--train.eval-every", "4")
    for run, extra in (("without", ()), ("with", hooks)):
        result = cli("train", "demo", *tiny, "--run-dir", run, *steps, *extra)
        assert result.returncode == 0, result.stderr
    without, watched = (read_metrics(tmp_path / run) for run in ("without", "with"))
    assert [row["loss"] for row in watched.train] == [row["loss"] for row in without.train]
    assert watched.evaluations[-1]["val_loss"] == without.evaluations[-1]["val_loss"]
    shares = {k: v for k, v in watched.train[-1].items() if k.startswith("gradient_share_")}
    assert len(shares) == 3 and abs(sum(shares.values()) - 1) < 1e-6
    calls = (tmp_path / "with" / "calls.txt").read_text().split()
    step = ["before_forward", "after_backward", "after_step"]
    logged = [*step, *step, "log"]
    assert calls[:2] == ["start", "event"]
    assert [c for c in calls if c != "memory"][2:] == [
        *logged, *logged, "after_evaluation", "event", "end"
    ]  # fmt: skip


def test_a_hook_that_cannot_be_made_is_one_line_before_the_run(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unmade.py").write_text(MEDDLING)
    place = f"{tmp_path / 'unmade.py'}:{line_of('raise RuntimeError')}"
    monkeypatch.chdir(tmp_path)
    for path, reason in (
        ("nowhere.Hook", "cannot import nowhere.Hook: No module named 'nowhere'"),
        ("unmade.Hok", "cannot import unmade.Hok: module 'unmade' has no attribute 'Hok'"),
        ("unmade.NoHook", "unmade.NoHook is no hook class"),
        ("unmade.Broken", f"unmade.Broken() fails in {place}: RuntimeError: no luck"),
    ):
        result = cli("train", "demo", *tiny, "--run-dir", "run", "--train.hooks", path)
        assert result.returncode == 1
        assert result.stderr.strip() == f"hybridnorm: train.hooks: {reason}"
        assert not (tmp_path / "run").exists()


def test_a_hook_that_raises_is_one_line_and_the_run_can_go_on(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising.py").write_text(MEDDLING)
    monkeypatch.chdir(tmp_path)
    tiny = [*tiny, "--train.log-every", "1", "--train.checkpoint-every", "2", "--train.steps", "4"]
    result = cli("train", "demo", *tiny, "--run-dir", "run", "--train.hooks", "raising.Raising")
    assert result.returncode == 1
    place = f"{tmp_path / 'raising.py'}:{line_of('{}[')}"
    expected = f"train.hooks: raising.Raising.after_step fails in {place}: KeyError: 'missing'"
    assert result.stderr.strip() == f"hybridnorm: {expected}"
    assert cli("train", "demo", *tiny, "--run-dir", "run", "--resume").returncode == 0
    assert cli("train", "demo", *tiny, "--run-dir", "whole").returncode == 0
    resumed, whole = (read_metrics(tmp_path / run).train for run in ("run", "whole"))
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]


def test_a_checkpoint_keeps_the_memory_of_each_hook(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counting.py").write_text(MEDDLING)
    monkeypatch.chdir(tmp_path)
    tiny = [*tiny, "--train.log-every", "2", "--train.checkpoint-every", "2", "--run-dir", "run"]
    hooks = ("--train.hooks", "counting.Counting", "--train.trackers", "tensorboard")
    for steps, extra in (("2", ()), ("4", hooks), ("6", hooks)):
        resume = () if steps == "2" else ("--resume",)
        result = cli("train", "demo", *tiny, "--train.steps", steps, *resume, *extra)
        assert result.returncode == 0, result.stderr
        assert "goes on without" not in result.stdout  # a text of a hook is no number to draw
    assert [row.get("count") for row in read_metrics(tmp_path / "run").train] == [None, 2, 4]


def test_what_a_hook_hands_over_is_checked(
    cli: Cli, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "handing.py").write_text(MEDDLING)
    monkeypatch.chdir(tmp_path)
    for name, reason in (
        ("Tensors", "log adds 'norm', a object; a row takes plain numbers, such as float(x)"),
        ("Greedy", "log changes 'loss'; a hook only adds to a row"),
        ("Forgetful", "memory returns None, not a dictionary"),
    ):
        result = cli(
            *("train", "demo", *tiny, "--run-dir", name, "--train.steps", "2"),
            *("--train.hooks", f"handing.{name}"),
        )
        assert result.returncode == 1
        assert result.stderr.strip() == f"hybridnorm: train.hooks: handing.{name}.{reason}"
