"""What it costs an arm to reach the baseline's loss: tokens, FLOPs, seconds. No torch.

An arm's cost is where its held-out curve first falls to the baseline's final loss, interpolated
linearly in the logarithm of the cost, over what the baseline paid for it; below 1 is cheaper. Both
are of the same seed, and of the same currency. Ratios are averaged as logarithms, with Student's t
interval over seeds. A run that never gets there costs more than it has spent: its ratio is a bound,
and an arm with such a run has a bound in place of an interval.
"""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from matplotlib.figure import Figure

from hybridnorm.charts import finish
from hybridnorm.html_page import html_figure, html_table
from hybridnorm.study.figures import (
    Chart,
    Series,
    as_written,
    draw_curves,
    figure_svg,
    has_data,
    log_sizes,
    save_figures,
)
from hybridnorm.study.parts import Part
from hybridnorm.study.plan import Study
from hybridnorm.study.results import DONE, Arm, Result
from hybridnorm.study.statistics import Estimate
from hybridnorm.train.report import Row

_READING = (
    "To reach a loss: where the held-out curve first falls to it, linear between evaluations in "
    "the logarithm of the cost, over what the other paid for it at its end; geometric mean over "
    "seeds with its 95% t interval. Below 1 is cheaper. A bound (>) counts the runs that had not "
    "reached it at their end. In the middle of a run the learning rate is still high, so that a "
    "run planned to be shorter gets there sooner: a cheaper arm saves more than these ratios say. "
    "FLOPs are of matrix products (norms are left out); arms of one shape have those of their "
    "tokens. Seconds are those of all steps at the run's median speed; runs may have shared the "
    "machine with others, which is unfair to some: benchmarks/overhead.py measures the steps of "
    "all arms in turns."
)
_CAPTION = "Held-out loss against what it cost. Line: mean over seeds; band: lowest to highest run."


CURRENCIES: Mapping[str, Callable[[Result], float | None]] = {
    "tokens": lambda result: 1.0,
    "FLOPs": lambda result: result.flops_per_token,
    "seconds": lambda result: 1 / result.speed if result.speed else None,
}
"""What a token costs a run; None where that is not recorded."""


@dataclass(frozen=True)
class Price:
    """One arm's cost over another's, of one currency."""

    ratio: float
    """Geometric mean; of runs that did not get there, with what they spent as the cost."""
    interval: tuple[float, float] | None
    """95% t interval over seeds; None below 3 seeds, or where `missed`."""
    n: int
    missed: int
    """Runs that did not reach the loss: the ratio is a lower bound."""

    def __str__(self) -> str:
        if self.missed:
            return f"> {self.ratio:.2f} (not reached by {self.missed} of {self.n})"
        if self.interval is None:
            return f"{self.ratio:.2f}"
        low, high = self.interval
        return f"{self.ratio:.2f} [{low:.2f}, {high:.2f}]"


def cost_curve(result: Result, currency: str, measure: str = "val_loss") -> tuple[Series, Series]:
    """Cost and held-out loss of each evaluation of a run; empty where the cost is not recorded."""
    rows = [row for row in result.metrics.evaluations if row.get("tokens") and row.get("val_loss")]
    if (of_a_token := CURRENCIES[currency](result)) is None:
        return np.empty(0), np.empty(0)
    cost = of_a_token * np.array([row["tokens"] for row in rows], dtype=float)
    return cost, np.array([row.get(measure, row["val_loss"]) for row in rows], dtype=float)


def cost_to_reach(loss: float, cost: Series, losses: Series) -> tuple[float, bool]:
    """What it cost to come down to `loss`, and whether the curve does: else, all that was spent.

    At the first evaluation, at the latest, where it was reached before.
    """
    below = np.flatnonzero(losses <= loss)
    if not len(below):
        return float(cost[-1]), False
    after = int(below[0])
    if after == 0:
        return float(cost[0]), True
    x, y = np.log(cost[after - 1 : after + 1]), losses[after - 1 : after + 1]
    return float(np.exp(np.interp(-loss, -y, x))), True


def price(arm: Arm, target: Arm, currency: str) -> Price | None:
    """What `arm` pays for the final losses of `target`, over what that paid. None: no pair."""
    paid = {result.seed: result for result in target.best if result.status == "finished"}
    logs, n, missed = list[float](), 0, 0
    for result in arm.best:
        if result.seed not in paid or result.status not in DONE:
            continue
        cost, losses = cost_curve(result, currency, arm.measure)
        own, own_losses = cost_curve(paid[result.seed], currency, target.measure)
        if not len(own) or (result.status == "finished" and not len(cost)):
            continue  # what was not recorded
        n += 1
        if not len(cost):  # it was lost before its first evaluation
            missed += 1
            continue
        spent, reached = cost_to_reach(float(own_losses[-1]), cost, losses)
        logs.append(math.log(spent / float(own[-1])))
        missed += not reached
    if not n:
        return None
    interval = None
    if n >= 3 and not missed:
        low, high = Estimate(fmean(logs), stdev(logs) / math.sqrt(n), n - 1).interval
        interval = math.exp(low), math.exp(high)
    return Price(math.exp(fmean(logs)) if logs else 0.0, interval, n, missed)


def price_columns(part: Part, found: Sequence[Arm]) -> dict[str, list[str]]:
    """Heading to cells, a line for each arm but the baseline and each currency."""
    study = part.study
    baseline = next(arm for arm in found if arm.value == study.baseline)
    rows = [
        (arm, currency, price(arm, baseline, currency), price(baseline, arm, currency))
        for arm in found
        for currency in CURRENCIES
        if arm is not baseline
    ]

    def text(found: Price | None) -> str:
        return "–" if found is None else str(found)

    return {
        study.compare: [str(arm.value) for arm, *_ in rows],
        "currency": [currency for _, currency, *_ in rows],
        f"to reach the loss of {study.baseline}": [text(there) for *_, there, _ in rows],
        f"{study.baseline} to reach its loss": [text(back) for *_, back in rows],
    }


def currency_chart(study: Study, found: Sequence[Arm]) -> Chart:
    """Held-out loss against each currency."""
    figure, rows = Figure(figsize=(10.0, 3.6), layout="constrained"), list[Row]()
    for axes, currency in zip(figure.subplots(1, 3, sharey=True), CURRENCIES, strict=True):
        series = partial(cost_curve, currency=currency, measure=found[0].measure)
        drawn = draw_curves(axes, study, found, "cost", series, "o")
        rows += [{"currency": currency, **row} for row in drawn]
        finish(axes, currency, "")
        if has_data(axes):
            log_sizes(axes)
    figure.axes[0].set_ylabel("held-out loss (nats per token)")
    named = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(*named, loc="outside upper center", ncols=4, frameon=False)
    as_written(legend.get_texts())
    return Chart(figure, rows)


def currency_section(part: Part, found: Sequence[Arm], folder: Path) -> list[str]:
    """What arms paid, for the report; the figure goes into `folder`, too."""
    columns = price_columns(part, found)
    if not any(arm.val_loss is not None for arm in found) or not columns["currency"]:
        return []
    name = part.file_name("currencies")
    chart = currency_chart(part.study, found)
    save_figures({name: chart}, folder)
    return [
        "<h3>What it costs</h3>",
        html_table(columns),
        f"<p>{html.escape(_READING)}</p>",
        html_figure(figure_svg(chart.figure, name), _CAPTION),
    ]
