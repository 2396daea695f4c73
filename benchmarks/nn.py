"""A training step of our layers beside torch.nn's, of the same shape, in one process.

    python benchmarks/nn.py --rounds 15

Forward, backward and AdamW of a layer in training mode, dropout 0.1, LayerNorm; the layers take
turns, so that a noisy machine is noisy to all. The ratio is to torch.nn's layer with the same
placement; HybridNorm, which torch.nn lacks, stands beside its Pre-Norm.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import hybridnorm.nn as hnn
from hybridnorm.recipe import TrainConfig
from hybridnorm.train import set_up_process

# Batch, seq, d_model, heads, d_ff.
SHAPES = ((16, 128, 128, 4, 512), (8, 256, 256, 8, 1024), (4, 256, 512, 8, 2048))
ARMS: dict[str, Callable[..., nn.Module]] = {
    "torch.nn, Pre-Norm": lambda *a, **k: nn.TransformerEncoderLayer(*a, norm_first=True, **k),
    "torch.nn, Post-Norm": nn.TransformerEncoderLayer,
    "Pre-Norm": lambda *a, **k: placed("pre-norm", *a, **k),
    "Post-Norm": lambda *a, **k: placed("post-norm", *a, **k),
    "HybridNorm": lambda *a, **k: placed("hybridnorm", *a, **k),
}
BASIS = {"Post-Norm": "torch.nn, Post-Norm"}


def placed(placement: str, *arguments: Any, **options: Any) -> nn.Module:
    return hnn.TransformerEncoderLayer(*arguments, placement=placement, norm="layer", **options)


def steps(
    build: Callable[..., nn.Module], shape: tuple[int, ...], compiled: bool
) -> Callable[[], float]:
    """A function that takes a training step and says how long it took."""
    batch, seq, d_model, heads, d_ff = shape
    torch.manual_seed(0)
    module = build(d_model, heads, d_ff, batch_first=True)
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    run = torch.compile(module) if compiled else module
    x = torch.randn(batch, seq, d_model)

    def step() -> float:
        start = time.perf_counter()
        run(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def rows(shape: tuple[int, ...], compiled: bool, rounds: int) -> list[list[str]]:
    torch.compiler.reset()  # else the last arms reach its limit of graphs and are eager
    arms = {name: steps(build, shape, compiled) for name, build in ARMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 2):
        for name, step in arms.items():
            taken = step()
            if number > 1:  # the first ones warm up
                seconds[name].append(taken)
    size = f"{shape[0]} x {shape[1]}, {shape[2]}"
    found = []
    for name, times in seconds.items():
        basis = seconds[BASIS.get(name, "torch.nn, Pre-Norm")]
        ratios = sorted(a / b for a, b in zip(basis, times, strict=True))
        quarter = len(ratios) // 4
        span = f"{statistics.median(ratios):.2f} ({ratios[quarter]:.2f}-{ratios[-1 - quarter]:.2f})"
        ratio = "" if name.startswith("torch.nn") else span
        how = "compiled" if compiled else "eager"
        found.append([size, how, name, f"{statistics.median(times) * 1e3:.1f}", ratio])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    set_up_process(TrainConfig())
    table = Table("tokens, d_model", "", "layer", "ms", "times as fast (quartiles)")
    for shape in SHAPES:
        for compiled in (False, True):
            for row in rows(shape, compiled, rounds):
                table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
