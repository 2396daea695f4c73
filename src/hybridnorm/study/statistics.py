"""Differences between two arms, and what they are worth. scipy is imported where it is called.

Everything rests on Student's t: with the handful of seeds that pretraining affords, a percentile
bootstrap is too narrow (with three pairs it can only see averages of three numbers).
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Of all intervals; a p value below the rest is significant."""
POWER = 0.8
"""With how many pairs a difference is resolved: so often would it be significant."""
_MOST_PAIRS = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean difference whose error follows Student's t."""

    mean: float
    error: float
    """Standard error of the mean."""
    degrees: float
    """Of freedom."""

    @property
    def t(self) -> float:
        if self.error:
            return self.mean / self.error
        return math.copysign(math.inf, self.mean) if self.mean else 0.0

    @property
    def p(self) -> float:
        """How often chance alone comes as far from zero, on either side."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.degrees, -abs(self.t)))

    @property
    def interval(self) -> tuple[float, float]:
        """Lowest and highest mean that the data leave open at `LEVEL`."""
        half = quantile(self.degrees) * self.error
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Comparison:
    """An arm beside the baseline, pair by pair; below 3 pairs there are no estimates."""

    n: int
    mean: float
    wins: int
    """Pairs in which the arm is below the baseline."""
    paired: Estimate | None = None
    unpaired: Estimate | None = None
    """Welch's: what the same values would say if nobody knew which belong together."""
    correlation: float | None = None
    """Of arm and baseline over the pairs; None where one of them never changes."""

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the paired differences."""
        return None if self.paired is None else self.paired.error * math.sqrt(self.n)

    @property
    def variance_reduction(self) -> float | None:
        """The part of the variance of the mean difference that pairing takes away."""
        if self.paired is None or self.unpaired is None or not self.unpaired.error:
            return None
        return 1 - (self.paired.error / self.unpaired.error) ** 2


def compare(values: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Compare an arm with the baseline; values at the same place belong together.

    Raises:
        ValueError: there are none, or not as many of both.
    """
    pairs = np.array([values, baseline], dtype=float)
    n = pairs.shape[1]
    if not n:
        raise ValueError("no pairs to compare")
    differences = pairs[0] - pairs[1]
    mean, wins = float(differences.mean()), int((differences < 0).sum())
    if n < 3:
        return Comparison(n, mean, wins)
    paired = Estimate(mean, float(differences.std(ddof=1)) / math.sqrt(n), n - 1)
    squares = pairs.var(axis=1, ddof=1) / n  # of the standard errors
    spread = float(squares.sum())
    freedom = (n - 1) * spread**2 / float((squares**2).sum()) if spread else 2 * (n - 1)
    welch = Estimate(mean, math.sqrt(spread), freedom)
    correlation = float(np.corrcoef(pairs)[0, 1]) if squares.all() else None
    return Comparison(n, mean, wins, paired, welch, correlation)


def batch_means(values: Sequence[float]) -> list[float]:
    """Means of √n stretches of √n values: neighbours resemble each other, stretches hardly do."""
    return [float(np.mean(part)) for part in np.array_split(values, math.isqrt(len(values)))]


def quantile(degrees: float) -> float:
    """Of Student's t: between minus and plus this are `LEVEL` of all draws."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2))


def pairs_to_resolve(difference: float, deviation: float) -> int | None:
    """How many pairs make this difference significant in `POWER` of all studies.

    Args:
        difference: the true mean of the paired differences.
        deviation: their standard deviation.

    Returns:
        3 at least, or None where a million are too few.
    """
    needed = 3 + bisect_left(
        range(3, _MOST_PAIRS), POWER, key=lambda n: power(n, difference, deviation)
    )
    return needed if needed < _MOST_PAIRS else None


def power(n: int, difference: float, deviation: float) -> float:
    """How often `n` pairs show such a difference as significant, on the right side."""
    from scipy.special import nctdtr

    if not difference:
        return 0.0
    shift = abs(difference) * math.sqrt(n)
    if shift > 37 * deviation:  # the non-central t underflows
        return 1.0
    return float(1 - nctdtr(n - 1, shift / deviation, quantile(n - 1)))


def chance(differences: Sequence[float]) -> float:
    """How far from zero a mean of so many differences comes by chance, in `LEVEL` of all cases.

    The differences are between equals: their mean is known to be zero.
    """
    squares = [difference**2 for difference in differences]
    return quantile(len(squares)) * math.sqrt(sum(squares)) / len(squares)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several comparisons, corrected for their number (Holm, 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for done, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[index]))
        corrected[index] = largest
    return corrected
