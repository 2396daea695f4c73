"""Loss against size, arm by arm: a power law with its band. No torch.

L(x) = E + A x^-alpha, by least squares over all runs, needs at least four sizes; of two or three,
which cannot show whether the curve flattens, L(x) = A x^-alpha, that is without E. x are parameters
or training tokens. Bands are pointwise 95% t intervals of the curve by the delta method: of chance
between runs, not of the law being another one.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

from hybridnorm.charts import finish, look
from hybridnorm.html_page import html_figure, html_table
from hybridnorm.study.figures import (
    Chart,
    arm_label,
    as_written,
    figure_svg,
    log_sizes,
    save_figures,
)
from hybridnorm.study.parts import parts
from hybridnorm.study.plan import Study
from hybridnorm.study.results import Result, arms
from hybridnorm.study.statistics import quantile
from hybridnorm.train.report import Row

Numbers = NDArray[np.float64]
ENOUGH = 4  # sizes, for three unknowns and a look at how well they fit
_ALPHA = 1e-3, 3.0  # where the exponent is looked for
_FURTHER = 4.0  # times the largest size that was run is drawn


@dataclass(frozen=True)
class Law:
    """A fitted curve, in units of the geometric mean of the sizes."""

    floor: float
    """E; 0 where there are too few sizes for it."""
    scale: float
    """A times (mean size)^-alpha: what is above the floor at the mean size."""
    alpha: float
    centre: float
    covariance: Numbers
    """Of (E, A, alpha), or of (A, alpha)."""
    degrees: int
    """Runs minus unknowns."""
    sizes: tuple[float, ...]

    @property
    def extrapolates(self) -> bool:
        """Whether the curve may be believed beyond the sizes."""
        return len(self.sizes) >= ENOUGH and self.determined

    @property
    def determined(self) -> bool:
        """Whether the exponent is inside of where it was looked for."""
        return _ALPHA[0] * 1.01 < self.alpha < _ALPHA[1] * 0.99

    def at(self, size: ArrayLike) -> tuple[Numbers, Numbers]:
        """The curve at sizes, and half the width of its 95% band.

        Raises:
            ValueError: a size outside of those that were run, of fewer than four.
        """
        x = np.asarray(size, dtype=float)
        outside = (x < min(self.sizes) * 0.999) | (x > max(self.sizes) * 1.001)
        if not self.extrapolates and np.any(outside):
            raise ValueError(f"{len(self.sizes)} sizes do not say what lies beyond them")
        jacobian = _jacobian(x / self.centre, self.scale, self.alpha)[..., -len(self.covariance) :]
        variance = np.einsum("...i,ij,...j->...", jacobian, self.covariance, jacobian)
        half = quantile(self.degrees) * np.sqrt(variance)
        return self.floor + self.scale * (x / self.centre) ** -self.alpha, half

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the exponent."""
        half = quantile(self.degrees) * float(np.sqrt(self.covariance[-1, -1]))
        return self.alpha - half, self.alpha + half


def fit(sizes: ArrayLike, losses: ArrayLike) -> Law | None:
    """The law of these runs; None where their sizes or their number do not allow one."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(losses, dtype=float)
    distinct = tuple(np.unique(x))
    with_floor = len(distinct) >= ENOUGH
    unknowns = 2 + with_floor
    if len(distinct) < 2 or len(x) <= unknowns:
        return None
    centre = float(np.exp(np.log(x).mean()))
    u = x / centre

    def linear(alpha: float) -> tuple[float, float, float]:
        """E and A for a given exponent, and what they leave."""
        powers = u**-alpha
        columns = np.stack([np.ones_like(u), powers], axis=1) if with_floor else powers[:, None]
        (*floor, scale), *_ = np.linalg.lstsq(columns, y, rcond=None)
        left = y - columns @ np.array([*floor, scale])
        return float(sum(floor)), float(scale), float(left @ left)

    alpha = float(
        optimize.minimize_scalar(
            lambda a: linear(a)[2], bounds=_ALPHA, method="bounded", options={"xatol": 1e-7}
        ).x
    )
    floor, scale, left = linear(alpha)
    jacobian = _jacobian(u, scale, alpha)[:, -unknowns:]
    degrees = len(x) - unknowns
    covariance = np.asarray(np.linalg.pinv(jacobian.T @ jacobian), np.float64) * (left / degrees)
    return Law(floor, scale, alpha, centre, covariance, degrees, distinct)


def _jacobian(u: Numbers, scale: float, alpha: float) -> Numbers:
    """By E, A and alpha."""
    powers = u**-alpha
    return np.stack([np.ones_like(u), powers, -scale * powers * np.log(u)], axis=-1)


@dataclass(frozen=True)
class Scaling:
    """An arm's losses against one axis, all else being equal."""

    arm: str
    axis: str
    """parameters or tokens"""
    sizes: list[float]
    losses: list[float]
    law: Law | None


def scaling(study: Study, results: Sequence[Result]) -> list[Scaling]:
    """Of each arm of a study `within` sizes, at its best setting of each; [] of any other study."""
    points: dict[str, list[tuple[float, float, float]]] = {}
    for part in parts(study, results) if study.within else ():
        for arm in arms(part.study, part.results):
            for result in arm.best:
                loss, tokens = result.held_out(arm.measure), result.row()["tokens"]
                if loss is not None and result.parameters and tokens:
                    point = float(result.parameters), float(tokens), loss
                    points.setdefault(str(arm.value), []).append(point)
    found = []
    for name, of_arm in points.items():
        for axis, place in (("parameters", 0), ("tokens", 1)):
            for other in sorted({point[1 - place] for point in of_arm}):
                same = [point for point in of_arm if point[1 - place] == other]
                x, y = [point[place] for point in same], [point[2] for point in same]
                if len(set(x)) > 1:
                    found.append(Scaling(name, axis, x, y, fit(x, y)))
    return found


def _columns(found: Sequence[Scaling]) -> dict[str, list[str]]:
    def law(one: Scaling) -> str:
        if one.law is None:
            return "too few runs"
        floor = f"{one.law.floor:.3f} + " if len(one.law.sizes) >= ENOUGH else ""
        return f"{floor}{one.law.scale:.3f} (x / {one.law.centre:,.0f})^-{one.law.alpha:.3f}"

    def exponent(one: Scaling) -> str:
        if one.law is None:
            return "–"
        low, high = one.law.interval
        return f"[{low:.3f}, {high:.3f}]" if one.law.determined else "not determined"

    return {
        "arm": [one.arm for one in found],
        "x": [one.axis for one in found],
        "sizes": [f"{len(set(one.sizes))}" for one in found],
        "runs": [f"{len(one.sizes)}" for one in found],
        "loss": [law(one) for one in found],
        "alpha, 95% interval": [exponent(one) for one in found],
    }


def scaling_chart(found: Sequence[Scaling]) -> Chart:
    """One panel per axis: a dot per run, the law and its band; dashed beyond the sizes."""
    axes_names = list(dict.fromkeys(one.axis for one in found))
    names = list(dict.fromkeys(one.arm for one in found))
    figure = Figure(figsize=(7.2, 4.0 * len(axes_names)))
    for axes, name in zip(np.ravel(figure.subplots(len(axes_names))), axes_names, strict=True):
        for one in found:
            if one.axis == name:
                _draw(axes, one, look(names.index(one.arm))[0])
        log_sizes(axes)
        finish(axes, name, "held-out loss (nats per token)")
        as_written(axes.legend(frameon=False).get_texts())
    rows: list[Row] = [
        {"arm": one.arm, "axis": one.axis, "size": size, "loss": loss}
        for one in found
        for size, loss in zip(one.sizes, one.losses, strict=True)
    ]
    return Chart(figure, rows)


def _draw(axes: Axes, one: Scaling, colour: str) -> None:
    axes.plot(one.sizes, one.losses, "o", color=colour, ms=4, label=arm_label(one.arm))
    if one.law is None or not one.law.determined:
        return
    first, last = min(one.sizes), max(one.sizes)
    ends = [(first, last, "-"), *([(last, last * _FURTHER, "--")] if one.law.extrapolates else [])]
    for start, end, style in ends:
        x = np.geomspace(start, end, 50)
        middle, half = one.law.at(x)
        axes.plot(x, middle, style, color=colour, lw=1.5)
        axes.fill_between(x, middle - half, middle + half, color=colour, alpha=0.15, lw=0)


def scaling_section(study: Study, results: Sequence[Result], folder: Path) -> list[str]:
    """Fits for the report; the figure goes into `folder`, too."""
    found = scaling(study, results)
    if not found:
        return []
    fewest = min(len(set(one.sizes)) for one in found)
    reading = (
        "Each arm at its own best setting of each size, all seeds; parameters are all that the "
        "model has. Bands and intervals (95%, delta method) are of chance between runs, not of the "
        "law being another one. "
    )
    reading += (
        "Dashed: beyond the sizes that were run; a guess."
        if fewest >= ENOUGH
        else f"{fewest} sizes cannot show whether a curve flattens: the law has no floor, and "
        "nothing is said beyond the sizes that were run."
    )
    chart = scaling_chart(found)
    save_figures({"scaling": chart}, folder)
    return [
        "<h2>Scaling</h2>",
        html_table(_columns(found)),
        f"<p>{html.escape(reading)}</p>",
        html_figure(
            figure_svg(chart.figure, "scaling"), "Held-out loss against size; a dot per run."
        ),
    ]
