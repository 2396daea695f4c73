"""Runs that a study adds to its grid once it has seen it: more learning rates, and equal things."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from hybridnorm.study.parts import parts
from hybridnorm.study.plan import EXTENSION, FLOOR, PLACEMENT, RATE, SEED, Run, Study
from hybridnorm.study.rates import next_rate
from hybridnorm.study.results import DONE, Arm, Result, arms, read_results
from hybridnorm.study.statistics import chance

MOST_RATES = 4
"""Learning rates that are added to an arm's own, at most."""
EQUALS = "pre-qkv-post", "qkv-post"
"""Placements of one function class: a norm before q-, k- and v-norm adds nothing but a gain."""


@dataclass(frozen=True)
class Floor:
    """Differences between runs of equal things, seed by seed."""

    equals: list[float]
    """Of the two placements that are one function class, with the same seeds."""
    reseeded: list[float]
    """Of the baseline, with other seeds."""

    @property
    def paired(self) -> float:
        """How large a paired difference chance alone makes, in 19 of 20 studies."""
        return chance(self.equals)

    @property
    def unpaired(self) -> float:
        """How large a difference between runs of other seeds it makes."""
        return chance(self.reseeded)


Pairs = list[tuple[Run, Run]]


def completed(
    study: Study, folder: Path, crashes: Mapping[str, str] | None = None
) -> tuple[Study, list[Result]]:
    """The study with all runs that its results ask for so far, and what is known of them.

    From the files alone, and the same whenever it is asked: a run is added where every run that it
    depends on is done.
    """
    results = read_results(study, folder, crashes)
    while more := _more(_extensions, study, results) or _more(_equals, study, results):
        results += read_results(replace(study, runs=more), folder, crashes)
        study = replace(study, runs=[*study.runs, *more])
    return study, results


def noise_floor(study: Study, results: Sequence[Result]) -> Floor | None:
    """What runs of equal things differ by; None where there are none, or one learned nothing."""
    found = arms(study, results)
    learned = {result.run.name: result for result in results if not result.at_plateau}
    losses = {name: result.held_out(found[0].measure) for name, result in learned.items()}
    differences: list[list[float]] = []
    for pairs in _null_tests(study, found):
        known = [(losses.get(one.name), losses.get(other.name)) for one, other in pairs]
        differences.append([a - b for a, b in known if a is not None and b is not None])
        if len(differences[-1]) < len(pairs):
            return None
    return Floor(*differences) if differences else None


def _more(
    asked_for: Callable[[Study, Sequence[Result]], Iterable[Run]],
    study: Study,
    results: Sequence[Result],
) -> list[Run]:
    """What every part of the study asks for."""
    found = parts(study, results)
    return [run for part in found for run in asked_for(part.study, part.results)]


def _extensions(study: Study, results: Sequence[Result]) -> Iterator[Run]:
    """The next learning rate of every arm whose best one is the last that was tried."""
    for arm in arms(study, results) if study.extend else ():
        added = {r.run.values[RATE] for r in arm.results if r.run.part == EXTENSION}
        if _is_done(arm) and len(added) < MOST_RATES and (rate := next_rate(arm)):
            lowest = min(result.run.values[RATE] for result in arm.results)
            for result in arm.results:
                if result.run.values[RATE] == lowest:
                    yield result.run.changed(EXTENSION, {RATE: rate})


def _equals(study: Study, results: Sequence[Result]) -> Iterator[Run]:
    """The runs of the null tests that the study does not have yet."""
    names = {run.name for run in study.runs}
    for run in chain.from_iterable(chain.from_iterable(_null_tests(study, arms(study, results)))):
        if run.name not in names:
            yield run


def _null_tests(study: Study, found: Sequence[Arm]) -> tuple[Pairs, Pairs] | tuple[()]:
    """Pairs of runs that differ by chance alone, as in `Floor`, at the baseline's best settings.

    The two that are one function class stand lower rates than most: theirs is the lowest best one.
    """
    if not study.floor or not all(map(_is_done, found)):
        return ()
    baseline = found[study.arms.index(study.baseline)]
    rate = {RATE: min(arm.settings[RATE] for arm in found)} if RATE in baseline.settings else {}

    def known(run: Run) -> Run:
        return next((other for other in study.runs if other.same_as(run)), run)

    runs = sorted((result.run for result in baseline.best), key=lambda run: run.recipe.seed)
    unused = 1 + max(run.recipe.seed for run in study.runs if run.part != FLOOR)
    one, other = (
        [known(r.changed(FLOOR, {PLACEMENT: name, **rate})) for r in runs] for name in EQUALS
    )
    fresh = [known(r.changed(FLOOR, {SEED: unused + i})) for i, r in enumerate(runs)]
    return list(zip(one, other, strict=True)), list(zip(fresh, runs, strict=True))


def _is_done(arm: Arm) -> bool:
    return all(result.status in DONE for result in arm.results)
