"""Where a training step spends its time, by operator.

python benchmarks/profile_step.py --shape 256
"""

import argparse
from types import SimpleNamespace

import torch
from contenders import SHAPES
from peers.hybridnorm import build, optimizer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

WARM_UP, STEPS, ROWS = 3, 4, 14
NAMES = {
    "aten::mm": "matrix products",
    "aten::bmm": "attention: products",
    "aten::baddbmm": "attention: scores",
    "aten::_softmax": "attention: softmax",
    "aten::copy_": "copies and casts",
    "aten::_fused_adamw_": "AdamW",
    "aten::linalg_vector_norm": "clipping: norms",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="256")
    parser.add_argument("--placement", default="hybridnorm-star")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    setup = SimpleNamespace(
        shape=shape, variant=options.placement, dtype="default", device="cpu", compiled=True
    )
    model, objective = build(setup)
    steps = optimizer(model, 1e-3)
    ids = torch.randint(shape.vocab_size, (shape.batch, shape.seq + 1))

    def step() -> None:
        objective(ids[:, :-1], ids[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
        steps.zero_grad(set_to_none=True)

    for _ in range(WARM_UP):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(STEPS):
            step()
    spent: dict[str, float] = {}
    for event in found.key_averages():
        fused = "CompiledFxGraph" in event.key
        name = "fused by torch.compile" if fused else NAMES.get(event.key, event.key)
        spent[name] = spent.get(name, 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    table = Table(
        "what", "ms per step", "share", title=f"{shape}, {options.placement}", title_justify="left"
    )
    for name, micros in sorted(spent.items(), key=lambda item: -item[1])[:ROWS]:
        table.add_row(name, f"{micros / STEPS / 1e3:.1f}", f"{micros / total:.1%}")
    table.add_row("all", f"{total / STEPS / 1e3:.1f}", "100.0%")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
