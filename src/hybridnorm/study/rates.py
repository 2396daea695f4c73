"""Learning rates, arm by arm: the curve, its edge, and where training stops being stable."""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple

from hybridnorm.study.plan import RATE
from hybridnorm.study.results import Arm, Result


class Point(NamedTuple):
    """An arm at one learning rate."""

    rate: float
    losses: list[float]
    """Final held-out losses of the runs that finished, of the text that arms are compared on."""
    diverged: int
    """Runs."""
    at_plateau: int
    """Runs that finished, but learned no more than how frequent tokens are."""
    complete: bool
    """Whether all runs finished."""

    @property
    def mean(self) -> float | None:
        return fmean(self.losses) if self.losses else None


class Stable(NamedTuple):
    """The largest rate at which, and below which, every run of an arm learned."""

    rate: float | None
    """None: not even the lowest one."""
    unstable_at: float | None
    """The next rate, if a run diverged there or did not leave the unigram plateau; None: the
    largest stable rate was not reached."""

    def __str__(self) -> str:
        if self.unstable_at is None:
            return "–" if self.rate is None else f"≥ {self.rate:g}"
        return f"< {self.unstable_at:g}" if self.rate is None else f"{self.rate:g}"


def has_rates(found: Sequence[Arm]) -> bool:
    """Whether the arms were free to choose a learning rate."""
    return RATE in found[0].settings and all(len(curve(arm)) > 1 for arm in found)


def curve(arm: Arm) -> list[Point]:
    """The arm at every rate it was tried at, in ascending order, its other settings at their best.

    Raises:
        KeyError: the learning rate is no setting of the study.
    """
    fixed = {name: value for name, value in arm.settings.items() if name != RATE}
    groups: dict[float, list[Result]] = {arm.settings[RATE]: []}
    for result in arm.results:
        if all(result.run.values[name] == value for name, value in fixed.items()):
            groups.setdefault(result.run.values[RATE], []).append(result)
    return [_point(rate, groups[rate], arm.measure) for rate in sorted(groups)]


def edge(arm: Arm) -> Literal["", "lowest", "highest"]:
    """Whether the arm's best rate is the last one tried on a side: a better one may lie beyond."""
    if arm.val_loss is None:
        return ""
    rates = [point.rate for point in curve(arm)]
    if arm.settings[RATE] == rates[0]:
        return "lowest"
    return "highest" if arm.settings[RATE] == rates[-1] else ""


def next_rate(arm: Arm) -> float | None:
    """The rate beyond the edge, a step as wide as the last one; None where the best is inside.

    Of an arm that lost a run at every rate it is the one below the lowest.
    """
    rates = [point.rate for point in curve(arm)]
    ends = {"lowest": (rates[0], rates[1]), "highest": (rates[-1], rates[-2])}
    if not (side := "lowest" if arm.val_loss is None else edge(arm)):
        return None
    last, before = ends[side]
    return float(f"{last * last / before:.6g}")


def stable(arm: Arm) -> Stable:
    """The largest stable rate of the arm; a rate whose runs are not all done bounds nothing."""
    largest = None
    for point in curve(arm):
        too_slow = point.rate < arm.settings[RATE]  # where it learned too little, not too fast
        if point.diverged or (point.at_plateau and not too_slow):
            return Stable(largest, point.rate)
        if not point.complete:
            break
        if not point.at_plateau:
            largest = point.rate
    return Stable(largest, None)


def _point(rate: float, results: Sequence[Result], measure: str) -> Point:
    losses = [loss for result in results if (loss := result.held_out(measure)) is not None]
    diverged = sum(result.status == "diverged" for result in results)
    at_plateau = sum(result.at_plateau for result in results)
    return Point(rate, losses, diverged, at_plateau, len(losses) == len(results))
