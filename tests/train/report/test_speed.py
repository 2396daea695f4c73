import re
from pathlib import Path

import pytest
import torch

from hybridnorm.model.config import ModelConfig
from hybridnorm.train.report import speed

CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=128)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_utilization_is_of_the_published_peak_of_all_ranks(
    name: str, teraflops: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5)
    meter = speed.SpeedMeter(CONFIG, 64, torch.device("cuda"), world_size=4)
    row = meter.row(tokens_per_second=1e6)
    assert row["flops_per_second"] == 1e6 * meter.flops_per_token
    assert row["peak_memory_bytes"] == 5
    if teraflops is None:
        assert "mfu" not in row
    else:
        assert row["mfu"] == pytest.approx(row["flops_per_second"] / (4 * teraflops * 1e12))


def test_a_cpu_has_no_published_peak() -> None:
    assert "mfu" not in speed.SpeedMeter(CONFIG, 64, CPU).row(1.0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to compare with")
def test_peak_memory_of_a_process_is_what_the_kernel_says() -> None:
    block = torch.ones(64 * 2**20)  # 256 MiB, touched
    status = Path("/proc/self/status").read_text()
    kernel = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    assert speed.peak_memory(CPU) == pytest.approx(kernel, rel=0.05)
    assert speed.peak_memory(CPU) > block.nbytes
