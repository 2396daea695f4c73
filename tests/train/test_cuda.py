"""What a GPU does is what the CPU does; skipped where there is none."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.generate import generate
from hybridnorm.model.transformer import Transformer
from hybridnorm.train.metrics import read_metrics

Cli = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(("setting", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_run_has_the_losses_of_the_cpu(
    setting: str, tolerance: float, compiled: str, cli: Cli, corpus: Path, tmp_path: Path
) -> None:
    losses = {}
    for device, dtype, compiles in (("cpu", "fp32", "off"), ("cuda", setting, compiled)):
        result = cli(
            *("train", "demo", "--data.source", corpus, "--run-dir", tmp_path / device),
            *("--train.device", device, "--train.dtype", dtype, "--train.compile", compiles),
            *("--train.steps", "20", "--train.log-every", "1"),
        )
        assert result.returncode == 0, result.stderr
        losses[device] = [row["loss"] for row in read_metrics(tmp_path / device).train]
    assert len(losses["cpu"]) == 20
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=tolerance)


def test_generation_takes_the_tokens_of_the_cpu() -> None:
    config = ModelConfig(d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, vocab_size=50)
    model, prompt = Transformer(config), torch.arange(8).view(2, 4)
    expected = generate(model, prompt, 16, temperature=0)
    found = generate(model.cuda(), prompt.cuda(), 16, temperature=0)
    assert torch.equal(found.cpu(), expected)
