"""Paired differences and what they are worth. numpy only.

With the handful of seeds that pretraining affords, a percentile bootstrap is too narrow (with
three pairs it can only see averages of three numbers). The interval that decides is therefore
Student's t; the bootstrap interval stands beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000
_MOST_RESAMPLED = 1000  # pairs; of more, resampling shows what the t interval does
# Two-sided 95% quantiles of Student's t by degrees of freedom (any statistics table).
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Comparison:
    """Differences to the baseline over matched runs; intervals are 95%, None below 3 pairs."""

    n: int
    mean: float
    wins: int
    t_interval: tuple[float, float] | None = None
    bootstrap_interval: tuple[float, float] | None = None

    @property
    def significant(self) -> bool:
        """Whether the t interval excludes zero."""
        return self.t_interval is not None and not (self.t_interval[0] <= 0 <= self.t_interval[1])


def compare(differences: Sequence[float]) -> Comparison:
    """Summarize paired differences (value minus baseline; below zero is better).

    Raises:
        ValueError: there are none.
    """
    if not differences:
        raise ValueError("no pairs to compare")
    values = np.asarray(differences, dtype=float)
    n, mean = len(values), float(values.mean())
    wins = int((values < 0).sum())
    if n < 3:
        return Comparison(n, mean, wins)
    half = t95(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    interval = mean - half, mean + half
    if n > _MOST_RESAMPLED:
        return Comparison(n, mean, wins, interval)
    picks = np.random.default_rng(0).integers(n, size=(_RESAMPLES, n))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return Comparison(n, mean, wins, interval, (float(low), float(high)))


def t95(degrees: int) -> float:
    """The two-sided 95% quantile of Student's t."""
    return _T95[degrees - 1] if degrees <= len(_T95) else 1.96 + 2.4 / degrees
