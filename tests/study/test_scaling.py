"""Laws fitted to losses that follow one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

from hybridnorm.errors import HybridNormError
from hybridnorm.study import load_study
from hybridnorm.study.growth import completed
from hybridnorm.study.parts import parts
from hybridnorm.study.plan import EXTENSION
from hybridnorm.study.report import write_results
from hybridnorm.study.results import read_results
from hybridnorm.study.scaling import Scaling, fit, scaling, scaling_chart
from studies import fake_run

SIZES = np.repeat([1e5, 3e5, 1e6, 3e6, 1e7], 3)


def law(x: object, floor: float, scale: float, alpha: float) -> np.ndarray:
    return floor + scale * (np.asarray(x) / 1e6) ** -alpha


def test_the_law_is_found_and_its_band_covers_it() -> None:
    rng, true = np.random.default_rng(0), (2.0, 1.5, 0.3)
    inside = np.zeros(3)
    for _ in range(1000):
        found = fit(SIZES, law(SIZES, *true) + rng.normal(0, 0.005, len(SIZES)))
        assert found is not None and found.extrapolates
        x = np.array([2e5, 2e6, 2e7])
        middle, half = found.at(x)
        inside += np.abs(middle - law(x, *true)) < half
    assert np.all(inside > 930) and np.all(inside < 970)


def test_it_is_the_least_squares_fit_of_scipy() -> None:
    noise = np.random.default_rng(1).normal(0, 0.01, len(SIZES))
    y = law(SIZES, 2.0, 1.5, 0.3) + noise
    theirs, covariance = optimize.curve_fit(law, SIZES, y, p0=(1, 1, 0.5))
    ours = fit(SIZES, y)
    assert ours is not None
    assert (ours.floor, ours.alpha) == pytest.approx((theirs[0], theirs[2]), rel=1e-4)
    low, high = ours.interval
    half = 2.178813 * np.sqrt(covariance[2, 2])  # t of 12 degrees
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)


def test_few_sizes_have_no_floor_and_say_nothing_beyond_them() -> None:
    few = SIZES[:9]
    found = fit(few, law(few, 0.0, 3.0, 0.2))
    assert found is not None and not found.extrapolates
    assert (found.floor, found.alpha) == (0.0, pytest.approx(0.2, abs=1e-6))
    found.at([1e5, 1e6])
    with pytest.raises(ValueError, match="3 sizes"):
        found.at(1e7)
    assert fit([1e5, 1e5, 1e5], [1, 2, 3]) is None and fit([1e5, 1e6], [2, 1]) is None


@pytest.mark.parametrize("losses", [[3.0, 3.0, 3.0, 3.0], [3.0, 2.9, 2.7, 2.2]])
def test_a_curve_without_an_exponent_is_not_extrapolated(losses: list[float]) -> None:
    found = fit(np.repeat([1e5, 2e5, 4e5, 8e5], 2), np.repeat(losses, 2) + [0, 1e-3] * 4)
    assert found is not None and not found.extrapolates and not found.determined
    one = Scaling("pre-norm", "parameters", [1e5, 8e5], [3.0, 3.0], found)
    assert len(scaling_chart([one]).figure.axes[0].lines) == 1  # the runs, and no law


STUDY = """
within = ["model.n_layers"]
[grid]
model.n_layers = [1, 2, 4, 8]
model.placement = ["pre-norm", "hybridnorm"]
optimizer.lr = [1e-3, 2e-3]
seed = [0, 1, 2]
"""


def test_sizes_of_a_study_are_parts_and_points_of_a_law(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY)
    study = load_study(path)
    for run in study.runs:
        size = 1000 * run.recipe.model.n_layers
        loss = law(size * 1e3, 2.0, 1.0, 0.5) + 0.001 * run.recipe.seed + run.recipe.optimizer.lr
        fake_run(tmp_path, run.name, [9.0, float(loss)], parameters=size)
    results = read_results(study, tmp_path)
    found = parts(study, results)
    assert [part.name for part in found] == [f"model.n_layers {n}" for n in (1, 2, 4, 8)]
    assert [len(part.results) for part in found] == [12] * 4
    laws = scaling(study, results)
    assert [(one.arm, one.axis) for one in laws] == [
        ("pre-norm", "parameters"),
        ("hybridnorm", "parameters"),
    ]
    for one in laws:
        assert len(one.sizes) == 12 and one.law is not None
        assert one.law.alpha == pytest.approx(0.5, abs=0.02)
    grown, _ = completed(replace(study, extend=True), tmp_path)
    added = [run for run in grown.runs if run.part == EXTENSION]  # the lowest rate was the best
    assert len(added) == 24 and {run.values["optimizer.lr"] for run in added} == {5e-4}
    page = write_results(study, tmp_path, results).read_text()
    assert "<h2>model.n_layers 8</h2>" in page and "<h2>Scaling</h2>" in page
    assert (tmp_path / "figures" / "scaling.svg").exists()
    assert (tmp_path / "figures" / "model.n_layers_8_final-loss.svg").exists()


def test_what_is_compared_within_is_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY.replace('within = ["model.n_layers"]', 'within = ["model.n_layer"]'))
    with pytest.raises(HybridNormError, match=r"within: .* did you mean 'model.n_layers'"):
        load_study(path)
