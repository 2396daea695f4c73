"""What the arms of a study come to, in words and cells. No torch."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from hybridnorm.study.plan import RATE, Study
from hybridnorm.study.rates import edge, has_rates, stable
from hybridnorm.study.results import Arm, Result, arms
from hybridnorm.study.statistics import LEVEL, Comparison, Estimate, pairs_to_resolve
from hybridnorm.text import number

STABLE = "largest stable rate"
_WORTH = 0.01
"""Nats per token: 1% of perplexity."""


def results_table(study: Study, results: Sequence[Result]) -> Table:
    """The final table, for the terminal."""
    table = Table(title=study.title, box=None, title_justify="left")
    columns = arm_columns(study, arms(study, results))
    # What 80 columns cannot hold is in results.csv and the report.
    for heading in ("perplexity", "bits/byte", "tokens/s", STABLE):
        columns.pop(heading, None)
    for heading in columns:
        left = heading == study.compare
        table.add_column(
            heading.rpartition(".")[2],
            justify="left" if left else "right",
            no_wrap=left,
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def arm_columns(study: Study, found: Sequence[Arm]) -> dict[str, list[str]]:
    """Heading to cells, one cell per arm."""
    columns: dict[str, list[str]] = {study.compare: [str(arm.value) for arm in found]}
    for name in found[0].settings:
        columns[name] = ["–" if arm.val_loss is None else str(arm.settings[name]) for arm in found]
    if has_rates(found):
        edges = [" (edge)" if edge(arm) else "" for arm in found]
        columns[RATE] = [rate + at for rate, at in zip(columns[RATE], edges, strict=True)]
    columns["held-out loss"] = [number(arm.val_loss, ".4f") for arm in found]
    columns["perplexity"] = [number(perplexity(arm), ".2f") for arm in found]
    columns["bits/byte"] = [number(arm.bits_per_byte, ".4f") for arm in found]
    columns[difference_heading(study)] = [interval(arm.comparison, arm.p) for arm in found]
    columns["tokens/s"] = [number(arm.speed, ",.0f") for arm in found]
    if has_rates(found):
        columns[STABLE] = [str(stable(arm)) for arm in found]
    columns["runs"] = [runs_text(arm) for arm in found]
    return columns


def perplexity(arm: Arm) -> float | None:
    """Of the mean held-out loss, so that arms rank as their losses do."""
    return None if arm.val_loss is None else math.exp(min(arm.val_loss, 700.0))


def difference_heading(study: Study) -> str:
    """Of the column whose cells are differences to the baseline."""
    return f"difference to {study.baseline}"


def interval(found: Comparison | None, p: float | None = None) -> str:
    """ "−0.0123 [−0.0200, −0.0046]*": a mean difference with its t interval.

    Args:
        p: by which it is marked as significant; None: the comparison's own.
    """
    if found is None:
        return "–"
    if found.paired is None:
        return _signed(found.mean)
    p = found.paired.p if p is None else p
    return _bounds(found.paired) + ("*" if p < 1 - LEVEL else "")


def evidence_columns(study: Study, found: Sequence[Arm]) -> dict[str, list[str]]:
    """What the differences rest on: heading to cells, one cell per arm that has an interval."""
    columns: dict[str, list[str]] = {}

    def add(heading: str, value: object) -> None:
        columns.setdefault(heading, []).append(str(value))

    for arm in found:
        c = arm.comparison
        if c is None or c.paired is None or c.unpaired is None or c.deviation is None:
            continue
        add(study.compare, arm.value)
        add("paired difference", _bounds(c.paired))
        add("sd of the pairs", f"{c.deviation:.4f}")
        add("t", f"{c.paired.t:.2f}")
        add("p", f"{c.paired.p:.2g}")
        if study.correct != "none":
            add(f"p, {study.correct.capitalize()}", number(arm.p, ".2g"))
        add("unpaired (Welch)", _bounds(c.unpaired))
        add("its t", f"{c.unpaired.t:.2f}")
        add("its p", f"{c.unpaired.p:.2g}")
        add("correlation of the pairs", number(c.correlation, ".3f"))
        add("variance that pairing saves", number(c.variance_reduction, ".1%"))
        add("seeds for this difference", _pairs(c.mean, c.deviation))
        add(f"seeds for {_WORTH}", _pairs(_WORTH, c.deviation))
        windows = arm.over_windows and arm.over_windows.paired
        add("over held-out text", _bounds(windows) if windows else "–")
    return columns


def runs_text(arm: Arm) -> str:
    """ "3 finished, 1 diverged, 9 steps skipped": nothing is dropped."""
    statuses = sorted({result.status for result in arm.results}, key=lambda s: s != "finished")
    skipped = sum(result.skipped_steps for result in arm.results)
    counts = [f"{arm.count(status)} {status}" for status in statuses]
    at_plateau = sum(result.at_plateau for result in arm.results)
    further = {"at the plateau": at_plateau, "steps skipped": skipped}
    return ", ".join(counts + [f"{n} {what}" for what, n in further.items() if n])


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as a CSV, whose columns are those of all rows."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _bounds(estimate: Estimate) -> str:
    low, high = map(_signed, estimate.interval)
    return f"{_signed(estimate.mean)} [{low}, {high}]"


def _pairs(difference: float, deviation: float) -> str:
    return number(pairs_to_resolve(difference, deviation), ",")
