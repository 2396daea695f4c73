"""The figures of a study, as matplotlib SVGs. One colour per arm in all of them."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from hybridnorm.charts import finish, look
from hybridnorm.files import write_whole
from hybridnorm.study.plan import RATE, Study
from hybridnorm.study.rates import curve, has_rates
from hybridnorm.study.results import Arm, Result
from hybridnorm.study.tables import csv_text
from hybridnorm.text import svg
from hybridnorm.train.report import Row

Series = NDArray[np.float64]
_INSIDE = 4  # arms, whose names find room among the curves
_SMOOTH = 0.02  # width of the running mean, as a fraction of the run


class Chart(NamedTuple):
    """A figure, and what it shows as rows of a table."""

    figure: Figure
    rows: list[Row]


def figures(study: Study, found: Sequence[Arm]) -> dict[str, Chart]:
    """By name: losses and gradient norm over the run, final losses, and over learning rates."""
    charts = {
        "training-loss": _curves(
            study, found, "training loss (nats per token, running mean)", _train("loss")
        ),
        "held-out-loss": _curves(
            study, found, "held-out loss (nats per token)", _evaluation("val_loss"), "o"
        ),
        "gradient-norm": _curves(
            study, found, "gradient norm before clipping", _train("grad_norm"), log=True
        ),
        "final-loss": _final(study, found),
    }
    return {**charts, "learning-rate": _rates(study, found)} if has_rates(found) else charts


def figure_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element; `name` keeps its ids apart from those of other figures."""
    return svg(figure, name, bbox_inches="tight")


def save_figures(charts: dict[str, Chart], folder: Path) -> None:
    """Write every figure as NAME.svg, and what it shows as NAME.csv."""
    for name, chart in charts.items():
        write_whole(folder / f"{name}.svg", figure_svg(chart.figure, name))
        write_whole(folder / f"{name}.csv", csv_text(chart.rows))


def _curves(
    study: Study,
    found: Sequence[Arm],
    label: str,
    series: Callable[[Result], tuple[Series, Series]],
    marker: str = "",
    log: bool = False,
) -> Chart:
    figure = Figure(figsize=(7.2, 4.0))
    axes = figure.add_subplot()
    rows = draw_curves(axes, study, found, "tokens", series, marker)
    if log and has_data(axes):
        axes.set_yscale("log")
    finish(axes, "tokens", label)
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    _legend(axes, study)
    return Chart(figure, rows)


def draw_curves(
    axes: Axes,
    study: Study,
    found: Sequence[Arm],
    heading: str,
    series: Callable[[Result], tuple[Series, Series]],
    marker: str = "",
) -> list[Row]:
    """One line per arm (mean over its runs) in a band from the lowest to the highest run.

    Args:
        heading: of x, in the rows that are returned.
    """
    rows = list[Row]()
    for index, arm in enumerate(found):
        runs = [series(result) for result in arm.best]
        runs = [(x, y) for x, y in runs if len(x)]
        if not runs:
            continue
        n = min(len(x) for x, _ in runs)
        x, losses = (np.stack([both[i][:n] for both in runs]) for i in (0, 1))
        # Side by side in the order of the run, whatever each of them has paid for it.
        rows += _band(axes, study, arm, index, heading, x.mean(axis=0), list(losses.T), marker)
    return rows


def has_data(axes: Axes) -> bool:
    """Whether a point is drawn; a logarithmic axis without one cannot be."""
    return any(len(line.get_xdata()) for line in axes.lines)  # type: ignore[arg-type]


def log_sizes(axes: Axes) -> None:
    """A logarithmic axis of large numbers: 1, 2, 5, and thousands, millions, ... as k, M, ..."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _rates(study: Study, found: Sequence[Arm]) -> Chart:
    """Final held-out loss against learning rate; a cross at the top for every diverged run."""
    figure, rows = Figure(figsize=(7.2, 4.0)), list[Row]()
    axes = figure.add_subplot()
    for index, arm in enumerate(found):
        points = curve(arm)
        known = [point for point in points if point.losses]
        x = np.array([point.rate for point in known])
        band = _band(axes, study, arm, index, RATE, x, [point.losses for point in known], "o")
        losses = {row[RATE]: row for row in band}
        for point in points:
            counts = {"finished": len(point.losses), "diverged": point.diverged}
            rows.append({study.compare: arm.value, RATE: point.rate, **counts})
            rows[-1] |= losses.get(point.rate, {})
            for run in range(point.diverged):
                height = 0.98 - 0.03 * run - 0.01 * index
                axes.plot(
                    point.rate,
                    height,
                    "x",
                    color=look(index)[0],
                    transform=axes.get_xaxis_transform(),
                )
    if has_data(axes):
        rates = sorted({row[RATE] for row in rows})
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=30 * (len(rates) > 8))
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        _plateau(axes, found)
    cross = "; × a run that diverged" if any(row["diverged"] for row in rows) else ""
    finish(axes, f"learning rate{cross}", "final held-out loss (nats per token)")
    _legend(axes, study)
    return Chart(figure, rows)


def _plateau(axes: Axes, found: Sequence[Arm]) -> None:
    """A line at the loss of a model that knows no more than how frequent tokens are."""
    told = [result.unigram_loss for arm in found for result in arm.results]
    if len(known := {loss for loss in told if loss is not None}) == 1:
        axes.axhline(known.pop(), color="0.5", lw=0.8, ls=":", label="unigram plateau")


def _band(
    axes: Axes,
    study: Study,
    arm: Arm,
    index: int,
    heading: str,
    x: Series,
    runs: Sequence[Sequence[float]],
    marker: str,
) -> list[Row]:
    """Draw the mean of `runs` at each `x`, and from the lowest to the highest; return the rows."""
    colour, style = look(index)
    shown = [(float(np.mean(at)), float(min(at)), float(max(at))) for at in runs]
    mean, low, high = np.array(shown).reshape(-1, 3).T
    axes.plot(x, mean, style, color=colour, marker=marker, ms=3, lw=1.5, label=arm_label(arm.value))
    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    names = study.compare, heading, "mean", "lowest", "highest"
    return [
        dict(zip(names, (arm.value, float(at), *numbers), strict=True))
        for at, numbers in zip(x, shown, strict=True)
    ]


def _legend(axes: Axes, study: Study) -> None:
    if axes.lines:
        legend = axes.legend(framealpha=0.85, edgecolor="none", title=study.compare)
        if len(study.arms) > _INSIDE:
            legend.set_loc("upper left")
            legend.set_bbox_to_anchor((1.0, 1.0))
        as_written(legend.get_texts())


def _final(study: Study, found: Sequence[Arm]) -> Chart:
    """Every run's final held-out loss, runs of one seed joined: what is compared."""
    figure, rows = Figure(figsize=(7.2, 0.5 * len(found) + 1.2)), list[Row]()
    axes = figure.add_subplot()
    by_seed: dict[object, list[tuple[float, int]]] = {}
    for index, arm in enumerate(found):
        for result in arm.best:
            if (loss := result.held_out(arm.measure)) is not None:
                by_seed.setdefault(result.seed, []).append((loss, index))
                axes.plot(loss, index, "o", color=look(index)[0], ms=6, alpha=0.8)
                where = {study.compare: arm.value, "run": result.run.name, "seed": result.seed}
                rows.append({**where, arm.measure: loss})
        if arm.val_loss is not None:
            axes.plot([arm.val_loss] * 2, [index - 0.3, index + 0.3], color=look(index)[0])
    for points in by_seed.values():
        axes.plot(*zip(*points, strict=True), color="0.7", lw=0.8, zorder=0)
    axes.set_yticks(range(len(found)), [arm_label(arm.value) for arm in found])
    as_written(axes.get_yticklabels())
    axes.set_ylim(len(found) - 0.4, -0.6)
    finish(axes, "final held-out loss (nats per token); one dot per run, one line per seed", "")
    return Chart(figure, rows)


def arm_label(value: object) -> str:
    """The arm's value; matplotlib leaves what begins with an underscore out of a legend."""
    return re.sub(r"^_", " _", str(value))


def as_written(texts: Iterable[Text]) -> None:
    """What a user has named is no formula."""
    for text in texts:
        text.set_parse_math(False)


def _train(column: str) -> Callable[[Result], tuple[Series, Series]]:
    def series(result: Result) -> tuple[Series, Series]:
        x, y = _columns(result.metrics.train, column)
        width = max(1, int(len(y) * _SMOOTH) | 1)
        # Half a window shorter at both ends, rather than pulled towards a made-up edge.
        smooth = np.convolve(y, np.ones(width) / width, mode="valid") if len(y) else y
        edge = width // 2
        return x[edge : edge + len(smooth)], smooth

    return series


def _evaluation(column: str) -> Callable[[Result], tuple[Series, Series]]:
    return lambda result: _columns(result.metrics.evaluations, column)


def _columns(rows: Sequence[Row], column: str) -> tuple[Series, Series]:
    # A skipped step has no loss.
    known = [(row["tokens"], row[column]) for row in rows if _has(row, "tokens", column)]
    x, y = np.array(known, dtype=float).reshape(-1, 2).T
    return x, y


def _has(row: Row, *names: str) -> bool:
    return all(row.get(name) is not None for name in names)
