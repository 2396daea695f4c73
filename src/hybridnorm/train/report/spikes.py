"""Spike score: how often the loss or the gradient norm jumps. No torch."""

from collections.abc import Iterable
from typing import TypedDict

import numpy as np

WINDOW = 1000
SIGMAS = 7.0
MINIMUM = 128
"""Values before a step is scored; OLMo-core's monitor looks at as many."""


class SpikeState(TypedDict):
    """What `SpikeMonitor` remembers, as JSON stores it."""

    recent: list[float]
    scored: int
    spikes: int


class SpikeMonitor:
    """Counts spikes in a series that is fed in the order of the steps.

    A value is a spike if it lies at least 7 standard deviations above the mean of the 1000 values
    before it (OLMo 2, arXiv 2501.00656, without its falls: a falling loss is no spike). This is
    not the monitor of OLMo-core, which takes 6 and 128. Until there are 1000 values before it, a
    step is scored against those there are, and not at all below `MINIMUM`. A value that is not
    finite is always a spike, and no measure for later values.
    """

    def __init__(self, state: SpikeState | None = None) -> None:
        """Start anew, or where the monitor stood that `state()` came from."""
        state = state or {"recent": [], "scored": 0, "spikes": 0}
        self._recent = np.array(state["recent"], dtype=np.float64)
        self.scored, self.spikes = state["scored"], state["spikes"]

    def update(self, values: Iterable[float]) -> None:
        """Score the next values; how they are cut into calls makes no difference."""
        for value in values:
            finite = bool(np.isfinite(value))
            if not finite or len(self._recent) >= MINIMUM:
                self.scored += 1
                self.spikes += not finite or self._is_spike(value)
            if finite:
                self._recent = np.append(self._recent, value)[-WINDOW:]

    @property
    def score(self) -> float | None:
        """Spikes per scored step; None until one is scored."""
        return self.spikes / self.scored if self.scored else None

    def state(self) -> SpikeState:
        return {"recent": self._recent.tolist(), "scored": self.scored, "spikes": self.spikes}

    def _is_spike(self, value: float) -> bool:
        # Taken from the value, differences lose no digits, and a constant series is no spike.
        above = value - self._recent
        return bool(above.mean() > 0 and above.mean() >= SIGMAS * above.std())
