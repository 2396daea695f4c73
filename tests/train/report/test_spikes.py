"""The spike score against a recomputation from the whole series, and across resumes."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridnorm.train.report.spikes import MINIMUM, SpikeMonitor, SpikeState


def recomputed(series: list[float]) -> tuple[int, int]:
    """Spikes and scored steps, in exact arithmetic up to one square root."""
    spikes = scored = 0
    for step, value in enumerate(series):
        before = np.array(series[:step][-1000:], dtype=np.longdouble)
        if len(before) >= MINIMUM:
            scored += 1
            spikes += bool(value > before.mean() and value >= before.mean() + 7 * before.std())
    return spikes, scored


def noisy(seed: int, length: int, offset: float, jumps: list[int]) -> list[float]:
    """A falling series with noise, far from zero by `offset`, and jumps up and down."""
    generator = np.random.default_rng(seed)
    series = offset + 3 * np.exp(-np.arange(length) / 300) + 0.05 * generator.normal(size=length)
    for jump in jumps:
        series[jump % length] += generator.choice([-2.0, 2.0, 20.0])
    return series.tolist()


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.integers(1, 1500),
    offset=st.sampled_from([0.0, 1e6]),
    jumps=st.lists(st.integers(0, 1499), max_size=5),
    cut=st.floats(0, 1),
)
def test_the_score_is_that_of_the_whole_series_also_when_resumed(
    seed: int, length: int, offset: float, jumps: list[int], cut: float
) -> None:
    series = noisy(seed, length, offset, jumps)
    at = int(cut * length)
    first = SpikeMonitor()
    first.update(series[:at])
    state: SpikeState = json.loads(json.dumps(first.state()))
    second = SpikeMonitor(state)
    for value in series[at:]:
        second.update([value])
    spikes, scored = recomputed(series)
    assert (second.spikes, second.scored) == (spikes, scored)
    assert second.score == (spikes / scored if scored else None)


def test_only_jumps_upwards_are_spikes() -> None:
    quiet = np.random.default_rng(0).normal(size=1500).tolist()
    monitor = SpikeMonitor()
    monitor.update([*quiet, -8.0])
    assert monitor.spikes == 0
    monitor.update([8.0])
    assert monitor.spikes == 1


@pytest.mark.parametrize("constant", [0.1, 1e8 + 0.1, 0.0])
def test_a_constant_series_has_no_spikes_and_any_rise_from_it_is_one(constant: float) -> None:
    monitor = SpikeMonitor()
    monitor.update([constant] * 1500)
    assert (monitor.spikes, monitor.scored) == (0, 1500 - MINIMUM)
    monitor.update([constant + 1])
    assert monitor.spikes == 1


def test_values_that_are_not_finite_are_spikes_and_spoil_nothing() -> None:
    monitor = SpikeMonitor()
    monitor.update([math.nan, *noisy(0, 300, 0.0, []), math.inf])
    assert (monitor.spikes, monitor.scored) == (2, 300 - MINIMUM + 2)
    assert json.loads(json.dumps(monitor.state(), allow_nan=False))["spikes"] == 2
    monitor.update([50.0])
    assert monitor.spikes == 3
