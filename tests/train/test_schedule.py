import pytest
import torch

from hybridnorm.train.config import ScheduleConfig
from hybridnorm.train.schedule import learning_rate


def test_cosine_agrees_with_torch() -> None:
    schedule = ScheduleConfig(warmup_steps=10, final_lr_fraction=0.1)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=0.05)
    for step in range(10, 101):
        assert learning_rate(schedule, 0.5, step, 100) == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()


def test_warmup_is_linear_from_zero_and_steps_never_leave_the_range() -> None:
    schedule = ScheduleConfig(warmup_steps=4, final_lr_fraction=0.0)
    assert [learning_rate(schedule, 1.0, s, 8) for s in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(schedule, 1.0, 8, 8) == pytest.approx(0.0)
    assert learning_rate(ScheduleConfig(warmup_steps=0), 1.0, 1, 1) == pytest.approx(0.1)
