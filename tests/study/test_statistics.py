"""What differences are worth, against scipy.stats and against simulations whose truth is known."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from hybridnorm.study.statistics import (
    batch_means,
    chance,
    compare,
    holm,
    pairs_to_resolve,
    quantile,
)

Numbers = NDArray[np.float64]


def arms(mean: float, deviation: float, spread: float, leaning: float) -> tuple[Numbers, Numbers]:
    """Three pairs: `spread` is the baseline's standard deviation, `deviation` that of the pairs,
    `leaning` the correlation of the two.
    """
    one, other = np.array([1.0, 0.0, -1.0]), np.array([1.0, -2.0, 1.0]) / np.sqrt(3)
    baseline = 3 + spread * one
    away = np.sqrt(1 - leaning**2) * other
    return baseline + mean + deviation * (leaning * one + away), baseline


@pytest.mark.parametrize(
    ("mean", "deviation", "spread", "paired", "welch"),
    [
        (0.0086, 0.0023, 0.0115, 6.4, 1.0),
        (0.0028, 0.0016, 0.0066, 3.0, 0.5),
        (-0.0106, 0.0021, 0.0036, -8.8, -3.7),
        (-0.0164, 0.0004, 0.0087, -75.0, -2.4),
    ],
)
def test_published_moments_give_the_published_t(
    mean: float, deviation: float, spread: float, paired: float, welch: float
) -> None:
    """Modified beside standard residuals at 60M to 1B, three seeds each.

    The moments are rounded, and one spread is given for both arms: t comes within its own rounding
    for some data that round to them.
    """
    half, found = 5e-5, {"paired": [], "unpaired": []}
    edges = itertools.product((-half, half), (-half, half), (-half, half), (-1, 0, 1))
    for shift, wider, broader, leaning in edges:
        values, baseline = arms(mean + shift, deviation + wider, spread + broader, leaning)
        comparison = compare(list(values), list(baseline))
        for name, ours in found.items():
            ours.append(getattr(comparison, name).t)
    for name, given, digit in (("paired", paired, 0.05), ("unpaired", welch, 0.05)):
        digit = 0.5 if abs(given) > 10 else digit
        assert min(found[name]) <= given + digit and max(found[name]) >= given - digit


def test_paired_and_unpaired_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    for n in (3, 5, 30):
        baseline = random.normal(size=n)
        values = 0.7 * baseline + random.normal(0.1, 0.3, size=n)
        ours = compare(list(values), list(baseline))
        assert ours.paired and ours.unpaired
        for estimate, test in (
            (ours.paired, stats.ttest_rel(values, baseline)),
            (ours.unpaired, stats.ttest_ind(values, baseline, equal_var=False)),
        ):
            assert (estimate.t, estimate.p) == pytest.approx((test.statistic, test.pvalue))
            low, high = test.confidence_interval()
            assert estimate.interval == pytest.approx((low, high))
        assert ours.deviation == pytest.approx(np.std(values - baseline, ddof=1))
        assert ours.correlation == pytest.approx(stats.pearsonr(values, baseline).statistic)
        variances = np.var(values, ddof=1) + np.var(baseline, ddof=1)
        left = np.var(values - baseline, ddof=1) / variances
        assert ours.variance_reduction == pytest.approx(1 - left)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int) -> None:
    random, truth, studies = np.random.default_rng(n), -0.02, 3000
    shared = random.normal(3.0, 0.05, size=(studies, n))
    noise = random.normal(0.0, 0.01, size=(2, studies, n))
    covered = 0
    for values, baseline in zip(shared + noise[0] + truth, shared + noise[1], strict=True):
        paired = compare(list(values), list(baseline)).paired
        assert paired
        covered += paired.interval[0] <= truth <= paired.interval[1]
    assert 0.93 < covered / studies < 0.97


def test_neighbours_that_resemble_each_other_count_as_less() -> None:
    random, studies = np.random.default_rng(0), 2000
    fresh = random.normal(size=(studies, 400))
    for last, now in itertools.pairwise(fresh.T):  # autocorrelation 0.4, 0.16, ...
        now += 0.4 * last

    def covered(sample: Callable[[list[float]], list[float]]) -> float:
        found = [compare(sample(list(one)), [0.0] * len(sample(list(one)))).paired for one in fresh]
        return sum(e is not None and e.interval[0] <= 0 <= e.interval[1] for e in found) / studies

    assert covered(batch_means) > 0.93 > 0.85 > covered(list)


def test_two_pairs_give_no_interval_and_equal_arms_no_difference() -> None:
    found = compare([-0.1, -0.2], [0.0, 0.0])
    assert found.paired is None and found.wins == 2
    same = compare([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert same.paired and same.paired.p == 1 and same.paired.interval == (0, 0)
    always = compare([1.5] * 3, [1.0] * 3)
    assert always.paired and always.paired.p == 0 and always.correlation is None
    with pytest.raises(ValueError, match="no pairs"):
        compare([], [])


@pytest.mark.parametrize(("difference", "deviation"), [(0.02, 0.01), (0.01, 0.012), (0.004, 0.01)])
def test_so_many_pairs_resolve_a_difference_in_four_of_five_studies(
    difference: float, deviation: float
) -> None:
    n = pairs_to_resolve(difference, deviation)
    assert n is not None

    def resolved(n: int) -> float:
        draws = np.random.default_rng(n).normal(difference, deviation, size=(20_000, n))
        return float((stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean())

    assert resolved(n) > 0.79 and (n == 3 or resolved(n - 1) < 0.81)


def test_what_no_number_of_pairs_resolves() -> None:
    assert pairs_to_resolve(0.0, 1.0) is None and pairs_to_resolve(1e-6, 1.0) is None
    assert pairs_to_resolve(1.0, 0.0) == 3 and pairs_to_resolve(0.003, 1.0) is not None


def test_chance_is_exceeded_once_in_twenty() -> None:
    draws = np.random.default_rng(0).normal(0, 0.01, size=(4000, 4))
    # The floor of one null test, and the mean of another one.
    beyond = [abs(b.mean()) > chance(list(a)) for a, b in itertools.pairwise(draws)]
    assert 0.04 < np.mean(beyond) < 0.06
    assert chance([0.01] * 4) == pytest.approx(stats.t.ppf(0.975, 4) * 0.01 / 2)


def test_holm_by_hand_and_by_what_it_promises() -> None:
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0] and holm([]) == []
    # Of three arms that equal the baseline, which they share, one study in twenty names any.
    random, named = np.random.default_rng(1), 0
    for arms in random.normal(size=(2000, 4, 5)):
        pairs = [compare(list(arm), list(arms[0])).paired for arm in arms[1:]]
        named += min(holm([pair.p for pair in pairs if pair])) < 0.05
    assert named / 2000 < 0.06


def test_the_quantile_is_that_of_a_textbook() -> None:
    assert [quantile(n) for n in (2, 4, 30)] == pytest.approx([4.303, 2.776, 2.042], abs=5e-4)
