"""Two ranks, killed again and again, in the middle of saving too: the losses do not change."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybridnorm.train.checkpoint.retention import list_checkpoints
from hybridnorm.train.report.metrics import read_metrics
from runs import last_step


def start(run_dir: Path, *args: str) -> list[subprocess.Popen[str]]:
    """Two ranks of one run."""
    return start_ranks("-m", "hybridnorm", "train", "demo", "--run-dir", str(run_dir), *args)


def start_ranks(*command: str) -> list[subprocess.Popen[str]]:
    """Two ranks, started as a cluster's scheduler would, without torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in ("0", "1")
    ]


def finish(ranks: list[subprocess.Popen[str]], status: int = 0) -> str:
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [status, status], outputs
    return outputs[0]


def kill_at_random(run_dir: Path, ranks: list[subprocess.Popen[str]], in_save: bool) -> bool:
    """SIGKILL both ranks; in the middle of a save, or anywhere. False if they ended before."""
    before, wait = last_step(run_dir), random.uniform(0.0, 0.3)
    while last_step(run_dir) <= before or (
        in_save and not list((run_dir / "checkpoints").glob(".partial-*"))
    ):
        if any(process.poll() is not None for process in ranks):
            return False
        time.sleep(0.0005)
    time.sleep(0.002 * wait if in_save else wait)
    for process in ranks:
        process.kill()
    for process in ranks:
        process.communicate()
    return True


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in read_metrics(run_dir).train}


@pytest.mark.parametrize(
    ("kills", "steps", "background"),
    [
        (2, 30, False),
        pytest.param(10, 60, False, marks=pytest.mark.slow),
        pytest.param(10, 60, True, marks=pytest.mark.slow),
    ],
)
def test_sigkill_of_two_ranks_changes_no_bit(
    kills: int, steps: int, background: bool, tiny: list[str], tmp_path: Path
) -> None:
    args = [*tiny, "--train.steps", str(steps), "--train.log-every", "1"]
    args += ["--train.checkpoint-every", "2", "--train.keep-every", str(steps // 3)]
    args += ["--train.async-checkpoints"] if background else []
    finish(start(tmp_path / "undisturbed", *args))
    run_dir = tmp_path / "killed"
    saves_cut = 0
    for kill in range(kills):
        ranks = start(run_dir, *args, *(["--resume"] if kill else []))
        assert kill_at_random(run_dir, ranks, in_save=kill % 2 == 1)
        saves_cut += bool(list((run_dir / "checkpoints").glob(".partial-*")))
    finish(start(run_dir, *args, "--resume"))
    assert saves_cut, "no kill fell into a save"
    assert losses(run_dir) == losses(tmp_path / "undisturbed")
    ends = [read_metrics(path).evaluations[-1] for path in (run_dir, tmp_path / "undisturbed")]
    assert ends[0] == ends[1]
    assert not list((run_dir / "checkpoints").glob(".partial-*"))
    kept = {int(path.name.removeprefix("step-")) for path in list_checkpoints(run_dir)}
    assert kept >= {steps // 3, 2 * steps // 3, steps - 2, steps}


def test_a_signal_to_one_rank_stops_all_after_the_same_step(
    tiny: list[str], tmp_path: Path
) -> None:
    long = [*tiny, "--train.steps", "100000", "--train.checkpoint-every", "100000"]
    ranks = start(tmp_path / "run", *long)
    while last_step(tmp_path / "run") < 5:
        assert ranks[0].poll() is None, ranks[0].communicate()[0]
        time.sleep(0.01)
    ranks[1].terminate()
    output = finish(ranks, 128 + signal.SIGTERM)
    metrics = read_metrics(tmp_path / "run")
    assert "--resume" in output and metrics.status == "interrupted"
    stopped = metrics.train[-1]["step"]
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == [f"step-{stopped:08d}"]


def test_ranks_that_diverge_while_a_checkpoint_is_written_say_one_line(
    tiny: list[str], tmp_path: Path
) -> None:
    hot = [
        "--optimizer.lr",
        "1e30",
        "--optimizer.grad-clip",
        "1e30",
        "--schedule.warmup-steps",
        "0",
    ]
    each = ["--train.async-checkpoints", "--train.checkpoint-every", "1"]
    ranks = start(tmp_path / "run", *tiny, *hot, *each, "--train.max-skipped-steps", "1",
                  "--model.placement", "no-norm")  # fmt: skip
    output = finish(ranks, 1)
    assert "the loss is nan" in output and "Traceback" not in output
    assert "the last checkpoint, of step 1, is intact" in output
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["step-00000001"]


def test_a_layout_that_does_not_fit_is_one_line(tiny: list[str], tmp_path: Path) -> None:
    ranks = start(tmp_path / "run", *tiny, "--parallel.tensor", "4")
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [1, 1]
    assert "tensor 4 is 4 ranks, but there are 2" in outputs[0]
    assert "Traceback" not in "".join(outputs)
    assert outputs[0].count("\n") == 1, outputs[0]
    assert outputs[1] == "", "rank 0 says it"
    assert not (tmp_path / "run").exists()


def test_more_layouts_that_do_not_fit(tiny: list[str], tmp_path: Path) -> None:
    cases = {
        "train.batch_size: 3 sequences do not divide among 2": ["--train.batch-size", "3"],
        "train.micro_batch_size: 4 does not divide the 2": ["--train.micro-batch-size", "4"],
        "do not divide model.n_kv_heads 1": ["--parallel.tensor", "2", "--model.n-kv-heads", "1"],
    }
    run_dir = str(tmp_path / "run")
    verbs = [["train", "demo", "--run-dir", run_dir, *tiny, *args] for args in cases.values()]
    ranks = start_ranks(str(Path(__file__).with_name("verbs.py")), json.dumps(verbs))
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in ranks)
    for message, (status, output, error) in zip(cases, first, strict=True):
        assert status == 1 and output == "" and message in error
        assert error.count("\n") == 1 and "Traceback" not in error
    assert second == [[1, "", ""]] * 3, "rank 0 says it"
    assert not (tmp_path / "run").exists()
