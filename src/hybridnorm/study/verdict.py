"""What the numbers of a study support, and what they do not, in sentences. No torch."""

from collections.abc import Sequence
from statistics import mean

from hybridnorm.study.growth import EQUALS, MOST_RATES, Floor
from hybridnorm.study.plan import RATE, Study
from hybridnorm.study.rates import edge, has_rates
from hybridnorm.study.results import Arm
from hybridnorm.study.statistics import LEVEL, POWER
from hybridnorm.study.tables import runs_text

EVIDENCE = (
    "Paired: of the differences, seed by seed. Unpaired: what the same losses would say if nobody "
    "knew which runs share a seed. The correlation of the pairs is why the two differ: pairing "
    "takes away the stated part of the variance, or adds to it, where that is below zero.",
    f"Seeds for a difference: so many pairs make it significant in {POWER:.0%} of all studies, if "
    "the pairs scatter as they do here; from few seeds that is a rough number.",
    "Over seeds, the interval says how far other seeds would move the difference on this held-out "
    "text; over held-out text, how far other text of the same kind would move it with these seeds "
    "(from the means of √n stretches of √n windows, as neighbours resemble each other). A claim "
    "needs both.",
)


def verdict(study: Study, found: Sequence[Arm], floor: Floor | None = None) -> str:
    """One paragraph of what the numbers support, and of what they do not."""
    losses = [(arm.val_loss, arm) for arm in found if arm.val_loss is not None]
    if not losses:
        return "No run has finished: there is nothing to compare yet."
    best = min(losses, key=lambda pair: (_lost(pair[1]), pair[0]))[1]
    among = " of the arms that lost fewest runs" if any(_lost(arm) for arm in found) else ""
    sentences = [f"Lowest held-out loss{among}: {best.value}, {best.val_loss:.4f} nats per token."]
    sentences += [_sentence(study, arm, floor) for arm in found if arm.comparison is not None]
    if ignorant := [str(a.value) for a in found if a.best and all(r.at_plateau for r in a.best)]:
        sentences.append(
            f"No run of {', '.join(ignorant)} learned more than how frequent each token is: train "
            "longer before you compare."
        )
    if at_edge := [str(arm.value) for arm in found if has_rates(found) and edge(arm)]:
        sentences.append(
            f"The best learning rate of {', '.join(at_edge)} is at the edge of the grid: a better "
            "one may lie outside."
        )
    failed = [
        f"{arm.value}: {runs_text(arm)}"
        for arm in found
        if arm.count("finished") < len(arm.results)
    ]
    if failed:
        sentences.append(f"Not all runs finished ({'; '.join(failed)}).")
    return " ".join(sentences)


def is_below(arm: Arm, floor: Floor | None) -> bool:
    """Whether the arm's difference is one that chance alone makes."""
    return (
        floor is not None
        and arm.comparison is not None
        and (abs(arm.comparison.mean) < floor.paired)
    )


def reading(study: Study, found: Sequence[Arm]) -> list[str]:
    """How to read the table of the arms."""
    corrected = (
        f"* where p is below {1 - LEVEL:.2f} after Holm's correction for the number of arms, which "
        "the study's file declares; the intervals are not corrected."
        if study.correct == "holm"
        else "* where it excludes zero. Neither is corrected for the number of comparisons."
    )
    lines = [
        f"Differences are paired: the run with the same seed under {study.baseline} saw the same "
        "batches in the same order and started from the same weights wherever both have them (up "
        "to their scale, where initializations differ). "
        "Below zero is better. Brackets: 95% Student t interval of the mean difference; "
        + corrected
    ]
    if found[0].settings:
        lines.append(
            "Each arm is judged at its own best setting of "
            f"{', '.join(found[0].settings)}, chosen on one half of the held-out text (every other "
            "window) and compared on the other half."
        )
    if has_rates(found):
        extended = f" The study added up to {MOST_RATES} rates to an arm." if study.extend else ""
        lines.append(
            f"(edge): the best {RATE} is the lowest or the highest one tried. Largest stable rate: "
            "the largest one up to which no run diverged, or failed at a rate above the best to "
            "get below the unigram plateau, the loss of knowing how frequent each token is and no "
            f"more; ≥ where none did at a higher one, < where one did at the lowest.{extended}"
        )
    return lines


def floor_text(study: Study, floor: Floor | None) -> list[str]:
    """What the null tests of the study found."""
    if not study.floor:
        return []
    if floor is None:
        return [
            "The noise floor is not known: not all of its runs have finished and got below the "
            "unigram plateau."
        ]
    one, other = EQUALS
    return [
        f"Noise floor: {floor.paired:.4f}. Chance alone makes paired differences up to this in 19 "
        f"of 20 studies with {len(floor.equals)} seeds, by the runs of two placements that are one "
        f"function class, {one} beside {other} (mean difference {mean(floor.equals):+.4f}). "
        "Smaller differences are grey. The baseline beside itself with other seeds gives "
        f"{floor.unpaired:.4f} (mean difference {mean(floor.reseeded):+.4f}): what the pairs save."
    ]


def _lost(arm: Arm) -> int:
    """Runs that did not finish where the arm is judged."""
    return sum(result.val_loss is None for result in arm.best)


def _sentence(study: Study, arm: Arm, floor: Floor | None) -> str:
    c = arm.comparison
    assert c is not None
    direction = "below" if c.mean < 0 else "above"
    size = f"{arm.value} ends {abs(c.mean):.4f} {direction} {study.baseline}"
    if c.paired is None:
        seeds = "one seed" if c.n == 1 else f"{c.n} seeds"
        return f"{size} ({seeds}: too few for an interval, so nothing is shown)."
    low, high = c.paired.interval
    word = "significant" if arm.significant else "not significant"
    if is_below(arm, floor):
        word += ", and below the noise floor"
    seeds = f"better in {c.wins} of {c.n} seeds"
    return f"{size} (95% interval {low:+.4f} to {high:+.4f}, {seeds}: {word})."
