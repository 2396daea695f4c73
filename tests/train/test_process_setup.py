"""Ranks end with the torchrun that started them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from processes import children, linux, wait_for_end
from runs import last_step


@linux
@pytest.mark.slow
def test_ranks_end_with_a_torchrun_that_is_killed(tiny: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "hybridnorm", "train", "demo", "--run-dir", str(tmp_path / "run"), *tiny]
    command += ["--train.steps", "1000000", "--train.checkpoint-every", "1000000"]
    launcher = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while last_step(tmp_path / "run") < 1:
        assert launcher.poll() is None
    ranks = children(launcher.pid)
    assert len(ranks) >= 2
    launcher.kill()
    launcher.wait()
    wait_for_end(ranks, 10)
