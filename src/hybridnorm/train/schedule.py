"""The learning rate as a function of the step. No torch."""

import math

from hybridnorm.recipe import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 1) of `steps`.

    A linear warm-up reaches `peak` at step `warmup_steps`. What follows ends at the last step with
    `final_lr_fraction * peak`: half a cosine (cosine), a straight line (linear), or `peak` up to
    the last `decay_steps` steps and then a straight line (wsd). `constant` stays at `peak`.
    """
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    start = schedule.decay_start(steps)
    progress = min(1.0, max(0, step - start) / max(1, steps - start))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
    low = schedule.final_lr_fraction
    return peak * (low + (1 - low) * left)
