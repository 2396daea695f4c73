"""Costs of reaching a loss, from curves with known crossings."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hybridnorm.study import load_study
from hybridnorm.study.currencies import (
    CURRENCIES,
    cost_to_reach,
    currency_chart,
    currency_section,
    price,
)
from hybridnorm.study.parts import parts
from hybridnorm.study.plan import Study
from hybridnorm.study.results import arms, read_results
from hybridnorm.train.report.metrics import MetricsWriter

BUDGET = 1000.0  # tokens


def study_of(folder: Path, costs: dict[str, float], lost: str = "") -> Study:
    """Runs whose loss falls as a straight line in log tokens: an arm of cost c gets anywhere with c
    times the tokens of the baseline, and its tokens cost it c times the seconds."""
    path = folder / "s.toml"
    path.write_text(f"[grid]\nmodel.placement = {list(costs)}\nseed = [0, 1, 2]")
    study = load_study(path)
    for run in study.runs:
        cost = costs[run.recipe.model.placement] * (1 + 0.01 * (run.recipe.seed - 1))
        (folder / "runs" / run.name).mkdir(parents=True)
        writer = MetricsWriter(folder / "runs" / run.name)
        writer.write(event="started", step=0, parameters=1000)
        for step in range(1, 11):
            tokens = BUDGET * step / 10
            stalls = 100 if step == 3 else 1
            speed = {"tokens_per_second": 1 / cost / stalls, "flops_per_second": 7 / cost / stalls}
            writer.write(step=step, tokens=tokens, loss=1.0, **speed)
            if run.name != lost:
                writer.write(step=step, tokens=tokens, val_loss=9 - math.log(tokens / cost))
        status = "diverged" if run.name == lost else "finished"
        writer.write(event=status, step=10)
        writer.close()
    return study


def test_ratios_are_those_of_the_curves(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"pre-norm": 1.0, "hybridnorm": 0.5, "post-norm": 1.25})
    baseline, cheap, dear = arms(study, read_results(study, tmp_path))
    for currency, ratio in {"tokens": 0.5, "FLOPs": 0.5, "seconds": 0.25}.items():
        found = price(cheap, baseline, currency)
        assert found is not None and found.interval is not None and not found.missed
        assert found.ratio == pytest.approx(ratio, rel=1e-6)
    bound = price(dear, baseline, "tokens")
    assert bound is not None and bound.interval is None
    assert (bound.ratio, bound.missed) == (pytest.approx(1.0), 3)
    assert str(bound) == "> 1.00 (not reached by 3 of 3)"
    rows = currency_chart(study, [baseline, dear]).rows
    ends = {(row["currency"], row["model.placement"]): row["mean"] for row in rows}
    for currency in CURRENCIES:  # of seeds that pay differently, too
        assert ends[currency, "pre-norm"] == pytest.approx(baseline.val_loss)
    back = price(baseline, dear, "tokens")
    assert back is not None and back.ratio == pytest.approx(0.8, rel=1e-6)


def test_the_interval_is_scipys(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"pre-norm": 1.0, "hybridnorm": 0.5})
    baseline, cheap = arms(study, read_results(study, tmp_path))
    # A ratio of seconds: half the tokens at half the price of the same seed.
    for index, result in enumerate(cheap.best):
        for row in result.metrics.train:
            row["tokens_per_second"] /= 1 + index / 10
    found = price(cheap, baseline, "seconds")
    low, high = stats.ttest_1samp(np.log([0.25, 0.275, 0.3]), 0).confidence_interval()
    assert found is not None
    assert found.interval == pytest.approx((math.exp(low), math.exp(high)), rel=1e-6)


def test_a_lost_run_is_counted(tmp_path: Path) -> None:
    costs = {"pre-norm": 1.0, "hybridnorm": 0.5}
    study = study_of(tmp_path, costs, lost="hybridnorm-seed1")
    baseline, cheap = arms(study, read_results(study, tmp_path))
    found = price(cheap, baseline, "tokens")
    assert found is not None and (found.n, found.missed, found.interval) == (3, 1, None)
    [part] = parts(study, read_results(study, tmp_path))
    page = "".join(currency_section(part, [baseline, cheap], tmp_path))
    assert "not reached by 1 of 3" in page and all(name in page for name in CURRENCIES)
    assert (tmp_path / "currencies.svg").exists()


def test_a_run_that_has_not_been_made_costs_nothing(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"pre-norm": 1.0, "hybridnorm": 0.5})
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "runs" / f"hybridnorm-seed{seed}")
    baseline, cheap = arms(study, read_results(study, tmp_path))
    found = price(cheap, baseline, "tokens")
    assert found is not None and (found.n, found.missed) == (1, 0)


def test_a_loss_is_reached_once() -> None:
    cost, losses = np.array([1.0, 4.0, 16.0]), np.array([3.0, 2.0, 2.5])
    assert cost_to_reach(2.5, cost, losses) == (pytest.approx(2.0), True)
    assert cost_to_reach(3.5, cost, losses) == (1.0, True)
    assert cost_to_reach(1.0, cost, losses) == (16.0, False)
