"""The figures of probes, as matplotlib draws them: numbers over depth, or over the run."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hybridnorm.charts import finish, look
from hybridnorm.diagnose.table import Arms, Table, by_layer, select, steps_of

Panels = Sequence[tuple[str, str, str]]
_MOST_STEPS = 5
_WIDTH, _HEIGHT = 4.6, 3.2


def panels(arms: Arms, shown: Panels, *, axis: Literal["layer", "step"], log: bool) -> Figure:
    """A panel for each of `shown` (sublayer, name, label).

    Over depth, lines are arms and there is a row for the first and the last step; with a single
    arm, lines are steps. Over the run, lines are layers and there is a row for each arm.
    """
    tables = [table for runs in arms.values() for table in runs]
    steps = sorted({step for table in tables for step in steps_of(table)})
    if axis == "step" and len(steps) > 1:
        rows = list(arms)
        figure, grid = _grid(len(rows), len(shown))
        for (arm, line), cells in zip(arms.items(), grid, strict=True):
            for axes, (sublayer, name, label) in zip(cells, shown, strict=True):
                _over_steps(axes, line, sublayer, name)
                finish(axes, "step", f"{label}\n{arm}" if arm else label)
        _share_y(grid)
    elif len(arms) > 1:
        chosen = sorted({steps[0], steps[-1]})
        figure, grid = _grid(len(chosen), len(shown))
        for step, cells in zip(chosen, grid, strict=True):
            for axes, (sublayer, name, label) in zip(cells, shown, strict=True):
                _arms_over_depth(axes, arms, sublayer, name, step)
                finish(axes, "layer", f"{label}\nstep {step}")
        _legend(grid[0, 0], "")
    else:
        figure, grid = _grid(1, len(shown))
        [[table, *_]] = arms.values()
        for axes, (sublayer, name, label) in zip(grid[0], shown, strict=True):
            _steps_over_depth(axes, table, sublayer, name, steps)
            finish(axes, "layer", label)
        _legend(grid[0, 0], "step")
    for axes in grid.flat:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log:
            axes.set_yscale("log")
    return figure


def heat_maps(maps: Sequence[tuple[str, NDArray[np.float64]]], x: str, y: str) -> Figure:
    """A map for each (title, values); NaN is left white."""
    figure, grid = _grid(1, len(maps))
    for axes, (title, values) in zip(grid[0], maps, strict=True):
        image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis")
        figure.colorbar(image, ax=axes)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows), layout="constrained")
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False))


def _arms_over_depth(axes: Axes, arms: Arms, sublayer: str, name: str, step: int) -> None:
    """A line for each arm, the mean of its runs, in a band from the lowest to the highest."""
    for index, (arm, runs) in enumerate(arms.items()):
        found = [by_layer(table, name, step, sublayer) for table in runs]
        layers = sorted(set.intersection(*map(set, found)))
        if not layers:
            continue
        values = np.array([[one[layer] for layer in layers] for one in found])
        colour, style = look(index)
        axes.plot(layers, values.mean(0), style, color=colour, lw=1.5, marker="o", ms=3, label=arm)
        if len(runs) > 1:
            axes.fill_between(layers, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)


def _steps_over_depth(
    axes: Axes, table: Table, sublayer: str, name: str, steps: Sequence[int]
) -> None:
    picked = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_STEPS)).round())
    for index in picked.astype(int):
        values = by_layer(table, name, steps[index], sublayer)
        colour = colormaps["viridis"](0.85 * index / max(1, len(steps) - 1))
        axes.plot(*_xy(values), color=colour, lw=1.5, marker="o", ms=3, label=str(steps[index]))


def _over_steps(axes: Axes, runs: Sequence[Table], sublayer: str, name: str) -> None:
    """A line for each layer, the mean of the runs; pale is shallow."""
    rows = [row for table in runs for row in select(table, name, sublayer=sublayer)]
    layers = sorted({row.layer for row in rows})
    for index, layer in enumerate(layers):
        series: dict[int, list[float]] = {}
        for row in rows:
            if row.layer == layer:
                series.setdefault(row.step, []).append(row.value)
        means = {step: float(np.mean(values)) for step, values in sorted(series.items())}
        colour = colormaps["viridis_r"](index / max(1, len(layers) - 1))
        axes.plot(*_xy(means), color=colour, lw=1.2, label=str(layer))
    handles, labels = axes.get_legend_handles_labels()
    few = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 4)).round().astype(int))
    axes.legend(
        [handles[i] for i in few],
        [labels[i] for i in few],
        title="layer",
        fontsize=8,
        frameon=False,
    )


def _xy(values: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(values), list(values.values())


def _share_y(grid: NDArray[Any]) -> None:
    """The same range for the arms of a panel."""
    for column in grid.T:
        limits = [axes.get_ylim() for axes in column]
        for axes in column:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _legend(axes: Axes, title: str) -> None:
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, title=title)
