"""What a recipe leaves to the machine: the dtype of the activations, compilation, threads."""

import os
import shutil
import time
from dataclasses import replace

import torch

from hybridnorm.data import cores
from hybridnorm.model import flops_per_token
from hybridnorm.placements import Placement
from hybridnorm.recipe import Recipe, TrainConfig

# Rules of thumb, for CPUs on the careful side; benchmarks/throughput.py and loop.py measure yours.
# For CUDA from an H100 with 47M parameters (docs/results/gpu.md).
_FASTER = 1.2  # a product in bf16 must be so much faster, as the casts take time, too
_EFFICIENCY = {"cpu": 0.6, "cuda": 0.15}  # of an eager step, beside a large matrix product
_SAVED = {"cpu": 0.1, "cuda": 0.55}  # of an eager step, by compiling
_COMPILE_SECONDS = 12.0  # per kind of block, with an empty cache
_SIZES = 256, 1024, 4096  # of square matrices
_LONG = 0.0015  # seconds that a product may take before one 64 times as large is tried


def resolve_auto(
    recipe: Recipe, placement: Placement, device: torch.device, world_size: int = 1
) -> tuple[Recipe, list[str]]:
    """The recipe (`in_steps`, with its vocabulary size) without `auto`, and a reason for each.

    Args:
        world_size: ranks that share the work.
    """
    train, reasons = recipe.train, list[str]()
    if train.dtype == "auto":
        train, reason = _with_dtype(train, device)
        reasons.append(reason)
    if train.compile == "auto":
        per_token = flops_per_token(recipe.model, train.seq_len, placement)
        work = train.planned_tokens * per_token / world_size
        train, reason = _with_compile(train, device, work, _block_kinds(recipe, placement))
        reasons.append(reason)
    return replace(recipe, train=train), reasons


def set_threads(threads: int | None) -> str:
    """Use `threads` threads; None: torch's choice, or this rank's part of a node's cores."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if threads is None and ranks > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        threads = max(1, cores() // ranks)  # torchrun says 1 where nobody says anything
    if threads is not None:
        torch.set_num_threads(threads)
    return f"threads: {torch.get_num_threads()}, on {cores()} cores"


def _with_dtype(train: TrainConfig, device: torch.device) -> tuple[TrainConfig, str]:
    if device.type == "cpu":
        ratio = _speed(torch.bfloat16) / _speed(torch.float32)
        reason = f"products run {ratio:.2g} times as fast in bf16 as in fp32 here"
        faster = ratio > _FASTER
    elif device.type == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
        reason = f"this device {'has' if faster else 'lacks'} bf16 products"
    else:
        faster, reason = False, f"bf16 is not measured on {device.type}"
    chosen = replace(train, dtype="bf16" if faster else "fp32")
    return chosen, f"{chosen.dtype}: {reason}"


def _with_compile(
    train: TrainConfig, device: torch.device, work: float, kinds: int
) -> tuple[TrainConfig, str]:
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "cl"))):
        return replace(train, compile="off"), "eager: there is no C++ compiler"
    dtype = torch.bfloat16 if train.dtype == "bf16" else torch.float32
    kind = device.type if device.type in _SAVED else "cpu"
    saved = _SAVED[kind] * work / (_EFFICIENCY[kind] * _speed(dtype, device))
    cost = _COMPILE_SECONDS * kinds
    sums = f"compiling saves about {_clock(saved)} of this run and takes about {_clock(cost)}"
    if saved > cost:
        return replace(train, compile="on"), f"compiled: {sums}"
    return replace(train, compile="off"), f"eager: {sums}"


def _block_kinds(recipe: Recipe, placement: Placement) -> int:
    """How many blocks compile to different code."""
    layers = range(recipe.model.n_layers)
    kinds = ((placement.block(n, len(layers)), recipe.model.has_experts(n)) for n in layers)
    return len(set(kinds))


def _speed(dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """FLOP/s of a matrix product.

    Of a small one where that is slow: a CPU without bf16 takes seconds for a large one.
    """
    for size in _SIZES:
        seconds = min(_seconds(size, dtype, device) for _ in range(5))
        if seconds > _LONG:
            break
    return 2 * size**3 / seconds


def _seconds(size: int, dtype: torch.dtype, device: torch.device | str) -> float:
    x = torch.ones(size, size, dtype=dtype, device=device)
    start = time.perf_counter()
    (x @ x)[0, 0].item()
    return time.perf_counter() - start


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
