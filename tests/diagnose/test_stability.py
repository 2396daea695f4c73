import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_probes import BATCH, close, diagnosed, small, values

from command_line import Cli
from hybridnorm.diagnose.stability import quantize
from hybridnorm.diagnose.table import read_table, select


def by_hand(x: torch.Tensor, format: str) -> torch.Tensor:
    """Entry by entry: the nearest of all numbers that the format has."""
    if format == "int8":
        grid = torch.arange(-127, 128, dtype=torch.float64)
    else:
        bits = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
        grid = bits[bits.isfinite()].unique()
    scale = x.abs().max().double() / grid.max()
    distance = (x.double().flatten()[:, None] / scale - grid).abs()
    return (grid[distance.argmin(1)] * scale).view(x.shape)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_quantized_numbers_are_the_nearest_of_the_format(format: str) -> None:
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) ** 3
    torch.testing.assert_close(
        quantize(x, format).double(), by_hand(x, format), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(quantize(torch.zeros(3), format), torch.zeros(3))


def test_quantization_is_that_of_every_product_in_the_blocks() -> None:
    model = small("hybridnorm")
    table = diagnosed(model, "quantization")["quantization"]
    with torch.no_grad():
        whole = model.loss(*BATCH)
        for module in model.blocks.modules():
            if isinstance(module, torch.nn.Linear):
                module.forward = lambda x, m=module: F.linear(  # type: ignore[method-assign]
                    by_hand(x, "int8").float(), by_hand(m.weight, "int8").float()
                )
        expected = model.loss(*BATCH) - whole
    assert values(table, "int8")[0] == pytest.approx(float(expected), rel=1e-2, abs=1e-6)
    assert len(values(table, "fp8")) == 4


def test_nothing_is_quantized_afterwards() -> None:
    model = small("hybridnorm-star", n_experts=4, d_expert=8)
    before = model(BATCH.input_ids)
    diagnosed(model, "quantization", "block-removal")
    assert torch.equal(model(BATCH.input_ids), before)
    assert close(0.0) == 0.0


@pytest.mark.slow
def test_trainings_up_to_divergence(cli: Cli, tiny: list[str], tmp_path: Path) -> None:
    probes = ("--probes", "lr-ramp", "no-warmup", "lr-sensitivity")
    result = cli("diagnose", "demo", *tiny, *probes, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    ramp = read_table(tmp_path / "lr-ramp.csv")
    [stable], rates = select(ramp, "largest_stable_lr"), select(ramp, "lr")
    assert 1e-4 <= stable.value <= 1 and rates[0].value == pytest.approx(1e-4)
    losses = {row.layer: row.value for row in select(ramp, "loss")}
    assert losses[len(losses)] > min(losses.values()) or not select(ramp, "diverged")[0].value
    sensitivity = read_table(tmp_path / "lr-sensitivity.csv")
    finals = [row.value for row in select(sensitivity, "loss")]
    expected = sum(loss - min(finals) for loss in finals) / len(finals)
    assert select(sensitivity, "sensitivity")[0].value == pytest.approx(expected)
    warm = read_table(tmp_path / "no-warmup.csv")
    assert len(select(warm, "with")) == len(select(warm, "without")) == 100
    assert all(math.isfinite(row.value) for row in warm)
