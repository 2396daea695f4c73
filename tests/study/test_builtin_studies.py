"""The built-in studies run, and the paper's recipes have the paper's numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from hybridnorm.model import parameter_counts, preset
from hybridnorm.placements import placement
from hybridnorm.recipe import builtin, load_recipe
from hybridnorm.study import load_study
from hybridnorm.study.plan import Study
from hybridnorm.train import train
from hybridnorm.train.report import read_metrics

STUDIES = sorted(builtin("studies"))
TINY = {
    "data.prepared": (),
    "data.tokenizer": "byte",
    "train.steps": 2,
    "train.batch_size": 1,
    "train.seq_len": 16,
    "train.eval_every": 2,
    "train.eval_sequences": 2,
    "train.checkpoint_every": 2,
    "train.compile": "off",
    "train.dtype": "fp32",
    "schedule.warmup_steps": 1,
    "diagnose.probes": (),
}
PAPER = {"positions", "init", "depth", "placements", "first-block", "norm-kind", "scaling"}
PAPER |= {"moe", "learning-rate"}


def tokens_of(study: Study) -> set[int]:
    trains = [run.recipe.train for run in study.runs]
    return {train.steps * train.batch_size * train.seq_len for train in trains}


@pytest.mark.parametrize("name", sorted(PAPER))
def test_arms_have_one_budget_their_own_rate_and_seeds(name: str) -> None:
    study = load_study(name)
    assert len(study.grid["seed"]) >= 3 and len(study.grid["optimizer.lr"]) >= 2
    assert len(tokens_of(study)) == 1
    assert all(r.recipe.schedule.warmup_steps * 10 == r.recipe.train.steps for r in study.runs)
    assert study.note and max(tokens_of(study)) < 1_354_685  # what the corpus has


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_every_study_trains(name: str, tmp_path: Path, corpus: Path) -> None:
    study = load_study(name, TINY | {"data.source": str(corpus), "data.cache": str(tmp_path)})
    for arm in study.arms:
        run = next(run for run in study.runs if run.values[study.compare] == arm)
        train(run.recipe, tmp_path / run.name)
        assert read_metrics(tmp_path / run.name).status == "finished"


# Of paper.md, B.2 and B.3: parameters, tokens.
SIZES = {
    "paper-151M": (151.4e6, 200e9),
    "paper-285M": (285.2e6, 200e9),
    "paper-550M": (550.5e6, 400e9),
    "paper-1.2B": (1.277e9, 1000e9),
    "paper-7B": (7.3e9, 150e9),
    "paper-moe-1B-7B": (6.92e9, 500e9),
}


@pytest.mark.parametrize("name", SIZES)
def test_papers_recipes_have_the_papers_numbers(name: str) -> None:
    recipe, (parameters, tokens) = load_recipe(name).in_steps(), SIZES[name]
    model, experts = recipe.model, recipe.model.n_experts > 0
    counts = parameter_counts(model, placement(model.placement))
    assert counts.total == pytest.approx(parameters, rel=0.01)
    train, optimizer, schedule = recipe.train, recipe.optimizer, recipe.schedule
    assert (train.batch_size, train.seq_len, train.dtype) == (1024, 4096, "bf16")
    assert train.steps == -(-int(tokens) // (1024 * 4096))
    assert schedule.name == "cosine" and schedule.warmup_steps == (2500 if experts else 2000)
    assert optimizer.lr == (4e-4 if experts else 3e-4)
    assert optimizer.lr * schedule.final_lr_fraction == pytest.approx(5e-5 if experts else 3e-5)
    assert (optimizer.name, optimizer.betas, optimizer.eps) == ("adamw", (0.9, 0.95), 1e-8)
    assert (optimizer.weight_decay, optimizer.grad_clip) == (0.1, 1.0)
    assert (optimizer.decay_norms, optimizer.decay_embeddings) == (True, experts)
    assert model.rope_theta == (1e4 if experts else 5e5) and model.activation == "swiglu"
    assert placement(model.placement).init == "megatron" and model.init == "published"
    assert model.sigma == pytest.approx((2.5 * model.d_model) ** -0.5) and model.norm_eps == 1e-5
    if experts:
        assert (train.load_balance_loss, train.router_z_loss) == (0.01, 0.001)
        assert counts.active == pytest.approx(1.28e9, rel=0.01)


def test_small_sizes_are_those_of_the_paper_in_proportion() -> None:
    """Blocks halved, widths a twenty-fourth; the two depths have about as many parameters."""
    for small, name in {"small": "550M", "small-deep": "543M-deep", "small-1.2B": "1.2B"}.items():
        ours, papers = preset(small), preset(name)
        assert ours.n_layers == papers.n_layers // 2
        assert ours.d_model == pytest.approx(papers.d_model / 24, rel=0.13)
        assert ours.d_ff == pytest.approx(papers.d_ff / 24, rel=0.02)
        assert ours.n_heads == 4 * ours.kv_heads
    flat, deep = (
        parameter_counts(replace(preset(name), vocab_size=4096), placement("hybridnorm")).total
        for name in ("small", "small-deep")
    )
    assert deep == pytest.approx(flat, rel=0.05)
