"""The learning rate as a function of the step. No torch."""

import math

from hybridnorm.train.config import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 1) of `steps`: linear warm-up, then a cosine.

    The warm-up reaches `peak` at step `warmup_steps`; the cosine reaches
    `final_lr_fraction * peak` at the last step.
    """
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    low = schedule.final_lr_fraction
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
