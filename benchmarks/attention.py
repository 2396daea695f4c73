"""Attention of a CPU training step: by blocks of queries beside PyTorch's kernel.

    python benchmarks/attention.py --rounds 15

Forward and backward of causal attention; both take turns in one process. The errors are those of
the context and of the query's gradient against float64, relative to its norm.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hybridnorm.model.kernels.cpu_attention import blockwise_attention
from hybridnorm.recipe.config import TrainConfig
from hybridnorm.train.process_setup import set_up_process

# Batch, seq, heads, key/value heads, head width.
SHAPES = ((16, 128, 4, 2, 32), (16, 256, 8, 4, 32), (4, 512, 8, 4, 64), (2, 1024, 16, 4, 64))


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return blockwise_attention(q, k, v, None)


def row(shape: tuple[int, ...], dtype: torch.dtype, rounds: int) -> list[str]:
    batch, seq, heads, groups, width = shape
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int) -> Tensor:
        return torch.randn(batch, seq, n, width, generator=generator).to(dtype)

    inputs = [drawn(n).requires_grad_() for n in (heads, groups, groups)]
    gradient = drawn(heads)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    exact = kernel(*wide)
    exact = (exact, torch.autograd.grad(exact, wide[0], gradient.double())[0])
    seconds: dict[str, list[float]] = {"kernel": [], "blocks": []}
    errors = {}
    for number in range(rounds + 1):
        for function in (kernel, blocks):
            start = time.perf_counter()
            out = function(*inputs)
            grads = torch.autograd.grad(out, inputs, gradient)
            if number:  # the first one warms up
                seconds[function.__name__].append(time.perf_counter() - start)
            pairs = zip((out, grads[0]), exact, strict=True)
            errors[function.__name__] = [((a - b).norm() / b.norm()).item() for a, b in pairs]
    ratios = [a / b for a, b in zip(seconds["kernel"], seconds["blocks"], strict=True)]
    times = [f"{statistics.median(found) * 1e3:.1f}" for found in seconds.values()]
    span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    rounding = [" ".join(f"{error:.1e}" for error in found) for found in errors.values()]
    name = str(dtype).removeprefix("torch.")
    return [f"{batch} x {seq}, {heads}/{groups} x {width}", name, *times, span, *rounding]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    set_up_process(TrainConfig())
    headings = ("tokens, heads", "dtype", "kernel ms", "blocks ms", "times as fast")
    table = Table(*headings, "errors: kernel", "blocks")
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            table.add_row(*row(shape, dtype, rounds))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
