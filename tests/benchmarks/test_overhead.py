"""What placements cost: counted as the paper counts, measured at tiny size."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from hybridnorm.model.config import ModelConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(("name", "per_layer"), [("pre-norm", 8), ("hybridnorm", 16)])
def test_flops_of_norms_are_those_of_table_11(
    name: str, per_layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    overhead = importlib.import_module("overhead")
    d_model, n_layers = 64, 3  # as many key/value heads as heads
    config = ModelConfig(placement=name, d_model=d_model, n_layers=n_layers, vocab_size=128)
    final = 4 * d_model  # the table leaves it out
    assert overhead.norm_flops(config) == 3 * (per_layer * d_model * n_layers + final)


@pytest.mark.slow
def test_all_placements_of_a_study_take_turns() -> None:
    command = [sys.executable, str(BENCHMARKS / "overhead.py"), "first-block"]
    command += ["--rounds", "2", "--steps", "1", "--threads", "1", "--seq", "16"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert [line.split()[1] for line in lines] == [
        *("hybridnorm", "hybridnorm-star", "first-qkv-pre", "embed-norm")
    ]
    assert "1.000 (1.000-1.000)" in lines[0]
