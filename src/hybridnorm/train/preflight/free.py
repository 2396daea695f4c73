"""The memory that is free, beside what a run is expected to need."""

import os
from pathlib import Path

import torch

from hybridnorm.errors import HybridNormError
from hybridnorm.text import size
from hybridnorm.train.preflight.memory import MemoryEstimate


def check_memory(estimate: MemoryEstimate, device: torch.device) -> None:
    """Refuse a run that cannot fit, rather than let the allocator end it.

    Raises:
        HybridNormError: the estimate exceeds what is free on this rank's device.
    """
    free = free_memory(device)
    if free is not None and estimate.total > free:
        raise HybridNormError(
            f"memory: this run needs about {size(estimate.total)} per rank, and {size(free)} are "
            f"free on {device}; lower train.micro_batch_size, set parallel.activation_checkpointing"
            " full, use more ranks, or try with --force"
        )


def free_memory(device: torch.device) -> int | None:
    """Bytes that this rank may take on its device; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = [*_available(), *_left_in_group()]
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(limits) // ranks if limits else None


def _available() -> list[int]:
    """What Linux could give without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _left_in_group() -> list[int]:
    """What a container's limit leaves, its file cache counted as free."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no group, or no limit: "max"
        return []
    return [limit - used + int(stat.get("file", 0))]
