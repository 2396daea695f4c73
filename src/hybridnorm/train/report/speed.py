"""How fast a run is, and how much memory it takes; nothing here waits for the device."""

import re
import resource
import sys

import torch

from hybridnorm.model import ModelConfig, flops_per_token

# Published dense peaks in bfloat16 (data sheets of the makers, without sparsity), by what
# torch.cuda.get_device_name returns; the first that matches counts.
_PEAKS = {
    r"\bMIG\b": None,  # a slice of a card
    r"\bB200\b": 2250e12,
    r"\bH(100|200) NVL\b": 835e12,
    r"\bH100 PCIe\b": 756e12,
    r"\b(H100|H200|H800|GH200)\b": 989e12,
    r"\bH20\b": 148e12,
    r"\b(A100|A800)\b": 312e12,
    r"\bA40\b": 150e12,
    r"\bA30\b": 165e12,
    r"\bL40S\b": 362e12,
    r"\bL40\b": 181e12,
    r"\bL4\b": 121e12,
    r"\bMI300X\b": 1307e12,
    r"\bMI325X\b": 1307e12,
    r"\bMI250X\b": 383e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The published peak in FLOP/s (dense, bfloat16); None where unknown, as of CPUs."""
    return _peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """The most bytes held at a time: tensors on a CUDA device, else the process (resident set)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class SpeedMeter:
    """Turns a run's throughput into what metrics.jsonl says of speed and memory."""

    def __init__(
        self, config: ModelConfig, seq_len: int, device: torch.device, world_size: int = 1
    ) -> None:
        self.device, self.world_size = device, world_size
        self.flops_per_token = flops_per_token(config, seq_len)
        self.peak = peak_flops(device)

    def row(self, tokens_per_second: float) -> dict[str, float]:
        """Achieved FLOP/s, their share of the ranks' peak (where known), and peak memory.

        Args:
            tokens_per_second: of all ranks together.
        """
        achieved = tokens_per_second * self.flops_per_token
        row: dict[str, float] = {"flops_per_second": achieved}
        if self.peak is not None:
            row["mfu"] = achieved / (self.peak * self.world_size)
        return {**row, "peak_memory_bytes": peak_memory(self.device)}


def _peak_of(name: str) -> float | None:
    return next((peak for pattern, peak in _PEAKS.items() if re.search(pattern, name)), None)
