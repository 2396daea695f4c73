"""What a resumed run is: its own recipe, nothing changed in silence, nothing of others touched."""

import resource
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import Cli
from hybridnorm.train.checkpoint.retention import list_checkpoints
from hybridnorm.train.report.metrics import read_metrics
from hybridnorm.train.run_dir import owned

PLACEMENT = """
title = "Mine"
attention = { input_norm = "rms" }
feed_forward = { input_norm = "rms", output_norm = "rms" }
"""


def losses(run_dir: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run_dir).train}


@pytest.fixture(scope="module")
def finished(cli: Cli, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps whose recipe named everything relative to where it was started."""
    home = tmp_path_factory.mktemp("home")
    corpus = tiny[tiny.index("--data.source") + 1]
    shutil.copytree(corpus, home / "text", ignore=shutil.ignore_patterns("prepared"))
    (home / "mine.toml").write_text(PLACEMENT)
    (home / "recipe.toml").write_text('model.placement = "mine.toml"\ndata.source = "text"\n')
    relative = [*tiny, "--data.source", "text", "--data.cache", "prepared"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        result = cli("train", "recipe.toml", "--run-dir", "run", *relative)
        assert result.returncode == 0, result.stderr
    return home / "run"


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def forget(run_dir: Path, steps: int) -> None:
    for path in list_checkpoints(run_dir):
        if int(path.name.removeprefix("step-")) > steps:
            shutil.rmtree(path)


def test_without_a_recipe_a_resume_takes_the_runs_own_wherever_it_is_called(
    cli: Cli, finished: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forget(run_dir, 15)
    result = cli("train", "--run-dir", run_dir, "--resume")
    assert result.returncode == 0, result.stderr
    assert "before" not in result.stdout
    assert losses(run_dir) == losses(finished)
    assert (run_dir / "recipe.toml").read_bytes() == (finished / "recipe.toml").read_bytes()


def test_a_change_is_said_with_its_step_and_kept_in_the_history(cli: Cli, run_dir: Path) -> None:
    result = cli("train", "--run-dir", run_dir, "--resume", "--optimizer.lr", "1e-3",
                 "--train.steps", "22", "--train.z-loss", "1e-4")  # fmt: skip
    assert result.returncode == 0, result.stderr
    changed = {
        "optimizer.lr": [0.0003, 0.001],
        "train.steps": [20, 22],
        "train.z_loss": [0.0, 0.0001],
    }
    for name, (old, new) in changed.items():
        assert f"{name}: {new} from step 21 on, {old} before" in result.stdout
    resumed = [row for row in read_metrics(run_dir).events if row["event"] == "resumed"]
    assert resumed[-1]["changed"] == changed and resumed[-1]["step"] == 20
    assert tomllib.loads((run_dir / "recipe.toml").read_text())["optimizer"]["lr"] == 0.001


def test_fewer_steps_than_done_are_refused(cli: Cli, run_dir: Path) -> None:
    before = (run_dir / "recipe.toml").read_bytes()
    result = cli("train", "--run-dir", run_dir, "--resume", "--train.steps", "7")
    assert result.returncode == 1 and "train.steps: 7, but" in result.stderr
    assert (run_dir / "recipe.toml").read_bytes() == before


def test_a_run_without_checkpoints_says_that_it_starts_again(cli: Cli, run_dir: Path) -> None:
    forget(run_dir, 0)
    result = cli("train", "--run-dir", run_dir, "--resume")
    assert result.returncode == 0, result.stderr
    assert "no checkpoint yet; from step 1 on" in result.stdout


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_in_use_is_left_alone(
    resume: bool, cli: Cli, tiny: list[str], run_dir: Path, tmp_path: Path
) -> None:
    target = run_dir if resume else tmp_path / "new"
    with owned(target, resume=resume):
        before = {path: path.read_bytes() for path in target.glob("*.*")}
        options = ["--resume", "--optimizer.lr", "1e-4"] if resume else tiny
        result = cli("train", "--run-dir", target, *options)
        assert result.returncode == 1 and "another process works here" in result.stderr
        assert {path: path.read_bytes() for path in target.glob("*.*")} == before


def test_an_unfinished_start_is_a_new_start(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "tokenizer.byte", "placement.toml", ".recipe.toml.partial"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).touch()
    result = cli("train", "demo", "--run-dir", tmp_path / "run", *tiny, "--train.steps", "2")
    assert result.returncode == 0, result.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokenizer.json").write_text("precious")
    result = cli("train", "demo", "--run-dir", tmp_path / "mine", *tiny)
    assert result.returncode == 1 and "is not a run" in result.stderr


def limited(n_bytes: int) -> Callable[[], None]:
    """No file may grow beyond so many bytes: what a full disk does to it."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.parametrize(
    ("n_bytes", "said"),
    [(1024, "recipe.toml: cannot write: File too large"), (8192, "checkpoints are intact")],
    ids=["recipe", "metrics or checkpoint"],
)
def test_a_disk_that_takes_no_more_leaves_a_run_that_can_be_resumed(
    n_bytes: int, said: str, cli: Cli, finished: Path, run_dir: Path
) -> None:
    forget(run_dir, 15)
    result = subprocess.run(
        [sys.executable, "-m", "hybridnorm", "train", "--run-dir", str(run_dir), "--resume"],
        capture_output=True,
        text=True,
        preexec_fn=limited(n_bytes),
    )
    assert result.returncode == 1 and said in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert (run_dir / "recipe.toml").read_bytes() == (finished / "recipe.toml").read_bytes()
    result = cli("train", "--run-dir", run_dir, "--resume")
    assert result.returncode == 0, result.stderr
    assert losses(run_dir) == losses(finished)


def test_a_damaged_checkpoint_is_set_aside_and_the_good_one_kept(
    cli: Cli, finished: Path, run_dir: Path
) -> None:
    newest = list_checkpoints(run_dir)[-1]
    next(newest.glob("*.safetensors")).write_bytes(b"torn")
    forget(run_dir, 0) if len(list_checkpoints(run_dir)) == 1 else None
    good = list_checkpoints(run_dir)[-2]
    result = cli("train", "--run-dir", run_dir, "--resume", "--train.keep-checkpoints", "1",
                 "--train.checkpoint-every", "100")  # fmt: skip
    assert result.returncode == 0 and f"passed over: checkpoint: {newest}" in result.stdout
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert names == {newest.name, f"damaged-{newest.name}"}, "written anew, and pruned the rest"
    assert good.name not in names and losses(run_dir) == losses(finished)


def test_a_run_that_ends_in_skipped_steps_has_diverged(
    cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    hot = ["--optimizer.lr", "1e30", "--optimizer.grad-clip", "1e30", "--train.steps", "4"]
    result = cli("train", "demo", "--run-dir", tmp_path / "run", *tiny, *hot,
                 "--schedule.warmup-steps", "0", "--model.placement", "no-norm")  # fmt: skip
    assert result.returncode == 1 and "step 4: the loss is nan (3 steps in a row)" in result.stderr
    assert "there is no checkpoint yet" in result.stderr
    assert read_metrics(tmp_path / "run").status == "diverged"


def test_more_memory_than_there_is_is_refused_before_it_is_taken(
    cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    huge = ["--model.d-model", str(2**17), "--model.n-heads", "64", "--model.d-ff", str(2**19)]
    result = cli("train", "demo", "--run-dir", tmp_path / "run", *tiny, *huge)
    assert result.returncode == 1, result.stdout
    assert "memory: this run needs about" in result.stderr and "--force" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["meta", "hpu", "cpu:x", ""])
def test_a_device_that_cannot_compute_is_one_line(
    device: str, cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    result = cli("train", "demo", "--run-dir", tmp_path / "run", *tiny, "--train.device", device)
    assert result.returncode == 1 and f"train.device: '{device}'" in result.stderr
