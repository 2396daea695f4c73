from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from hybridnorm.recipe.config import ScheduleConfig
from hybridnorm.train.schedule import learning_rate

PEAK, WARMUP, STEPS, LOW = 0.5, 10, 100, 0.2
Scheduler = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def torch_rates(*parts: tuple[int, Scheduler]) -> list[float]:
    """Learning rates of the steps, by torch; each part begins with the step before its number."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    warmup = lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, total_iters=WARMUP - 1)
    schedulers = [warmup, *(part(optimizer) for _, part in parts)]
    combined = lr_scheduler.SequentialLR(optimizer, schedulers, [start for start, _ in parts])
    rates = []
    for _ in range(STEPS):
        rates.append(combined.get_last_lr()[0])
        optimizer.step()
        combined.step()
    return rates


def line(steps: int) -> Scheduler:
    return lambda optimizer: lr_scheduler.LinearLR(optimizer, 1.0, LOW, total_iters=steps)


def stable(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def cosine(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, STEPS - WARMUP, eta_min=LOW * PEAK)


@pytest.mark.parametrize(
    ("name", "decay_steps", "parts"),
    [
        ("cosine", None, [(WARMUP - 1, cosine)]),
        ("linear", None, [(WARMUP - 1, line(STEPS - WARMUP))]),
        ("wsd", 30, [(WARMUP, stable), (STEPS - 30 - 1, line(30))]),
        ("wsd", None, [(WARMUP, stable), (STEPS - 20 - 1, line(20))]),
        ("constant", None, [(WARMUP, stable)]),
    ],
)
def test_schedules_agree_with_torch(
    name: str, decay_steps: int | None, parts: list[tuple[int, Scheduler]]
) -> None:
    low = {} if name == "constant" else {"final_lr_fraction": LOW}
    schedule = ScheduleConfig(name=name, warmup_steps=WARMUP, decay_steps=decay_steps, **low)  # type: ignore[arg-type]
    ours = [learning_rate(schedule, PEAK, step, STEPS) for step in range(1, STEPS + 1)]
    assert ours == pytest.approx(torch_rates(*parts))


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_the_last_step_has_the_final_fraction_of_the_peak(name: str) -> None:
    schedule = ScheduleConfig(name=name, warmup_steps=4, final_lr_fraction=0.0)  # type: ignore[arg-type]
    assert [learning_rate(schedule, 1.0, s, 8) for s in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(schedule, 1.0, 8, 8) == pytest.approx(0.0)
    short = ScheduleConfig(name=name, warmup_steps=0)  # type: ignore[arg-type]
    assert learning_rate(short, 1.0, 1, 1) == pytest.approx(0.1)
