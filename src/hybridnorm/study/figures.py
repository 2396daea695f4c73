"""The figures of a study, as matplotlib SVGs. One colour per arm in all of them."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from hybridnorm.charts import COLOURS, STYLES, finish
from hybridnorm.files import write_whole
from hybridnorm.study.plan import Study
from hybridnorm.study.results import Arm, Result
from hybridnorm.text import svg
from hybridnorm.train.report import Row

Series = NDArray[np.float64]
_SMOOTH = 0.02  # width of the running mean, as a fraction of the run


def figures(study: Study, found: Sequence[Arm]) -> dict[str, Figure]:
    """Name to figure: training loss, held-out loss, gradient norm, final losses."""
    return {
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


def figure_svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element; `name` keeps its ids apart from those of other figures."""
    return svg(figure, name, bbox_inches="tight")


def save_figures(found: dict[str, Figure], folder: Path) -> None:
    """Write every figure as NAME.svg."""
    for name, figure in found.items():
        write_whole(folder / f"{name}.svg", figure_svg(figure, name))


def _curves(
    study: Study,
    found: Sequence[Arm],
    label: str,
    series: Callable[[Result], tuple[Series, Series]],
    marker: str = "",
    log: bool = False,
) -> Figure:
    """One line per arm (mean over its runs) in a band from the lowest to the highest run."""
    figure = Figure(figsize=(7.2, 4.0))
    axes = figure.add_subplot()
    for index, arm in enumerate(found):
        runs = [series(result) for result in arm.best]
        runs = [(x, y) for x, y in runs if len(x)]
        if not runs:
            continue
        shared = min((x for x, _ in runs), key=len)
        values = np.stack([np.interp(shared, x, y) for x, y in runs])
        colour, style = COLOURS[index % 8], STYLES[index // 8 % 4]
        axes.plot(shared, values.mean(axis=0), style, color=colour, marker=marker, ms=3, lw=1.5)
        axes.lines[-1].set_label(_label(arm))
        if len(runs) > 1:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(shared, low, high, color=colour, alpha=0.15, lw=0)
    if log:
        axes.set_yscale("log")
    finish(axes, "tokens", label)
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    if axes.lines:
        legend = axes.legend(frameon=False, title=study.compare)
        _as_written(legend.get_texts())
    return figure


def _final(study: Study, found: Sequence[Arm]) -> Figure:
    """Every run's final held-out loss, runs of one seed joined: what is compared."""
    figure = Figure(figsize=(7.2, 0.5 * len(found) + 1.2))
    axes = figure.add_subplot()
    by_seed: dict[object, list[tuple[float, int]]] = {}
    for index, arm in enumerate(found):
        for result in arm.best:
            if (loss := result.held_out(arm.measure)) is not None:
                by_seed.setdefault(result.seed, []).append((loss, index))
                axes.plot(loss, index, "o", color=COLOURS[index % 8], ms=6, alpha=0.8)
        if arm.val_loss is not None:
            axes.plot([arm.val_loss] * 2, [index - 0.3, index + 0.3], color=COLOURS[index % 8])
    for points in by_seed.values():
        axes.plot(*zip(*points, strict=True), color="0.7", lw=0.8, zorder=0)
    axes.set_yticks(range(len(found)), [_label(arm) for arm in found])
    _as_written(axes.get_yticklabels())
    axes.set_ylim(len(found) - 0.4, -0.6)
    finish(axes, "final held-out loss (nats per token); one dot per run, one line per seed", "")
    return figure


def _label(arm: Arm) -> str:
    """The arm's value; matplotlib leaves what begins with an underscore out of a legend."""
    return re.sub(r"^_", " _", str(arm.value))


def _as_written(texts: Iterable[Text]) -> None:
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
