"""What a run says before step 1, and when it warns."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hybridnorm.model.config import PRESETS, preset
from hybridnorm.placements import Placement, placement, strategies
from hybridnorm.recipe.config import Recipe
from hybridnorm.recipe.load import builtin, load_recipe
from hybridnorm.strict_toml import to_table
from hybridnorm.terminal import Screen
from hybridnorm.train.preflight.misfits import Mix, misfits
from hybridnorm.train.preflight.overview import Preflight, preflight

PLENTY: Mix = [("text", 1.0, 10**13)]
# Table 10 of the paper at the shortest length it publishes (200B tokens).
PUBLISHED = {
    "train.batch_size": 1024,
    "train.seq_len": 4096,
    "train.tokens": 200_000_000_000,
    "optimizer.lr": 3e-4,
    "schedule.warmup_tokens": 8_388_608_000,
}
# HybridNorm written with post-norms, and named by somebody else.
MINE = """
attention = { q_norm = "rms", k_norm = "rms", v_norm = "rms", post_norm = "rms" }
"""


def recipe(size: str = "550M", **overrides: object) -> Recipe:
    """The published recipe at one of the paper's sizes."""
    shape = {f"model.{name}": value for name, value in to_table(preset(size)).items()}
    dotted = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_recipe("demo", {**shape, **PUBLISHED, **dotted}).in_steps()


@pytest.fixture
def mine(tmp_path: Path) -> Placement:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return placement(path)


@pytest.mark.parametrize("name", sorted(strategies()))
def test_the_published_recipe_fits_every_placement(name: str) -> None:
    assert misfits(recipe(), placement(name), PLENTY) == []


@pytest.mark.parametrize("size", sorted(PRESETS.keys() - {"demo", "demo-deep"}))
def test_the_published_recipe_fits_every_published_size(size: str) -> None:
    chosen = recipe(size)
    assert misfits(chosen, placement(chosen.model.placement), PLENTY) == []


@pytest.mark.parametrize("name", ["pre-norm", "post-norm", "hybridnorm", "hybridnorm-star"])
@pytest.mark.parametrize("builtin_recipe", sorted(builtin()))
def test_builtin_recipes_fit(builtin_recipe: str, name: str) -> None:
    chosen = load_recipe(builtin_recipe, {"model.vocab_size": 4096}).in_steps()
    assert misfits(chosen, placement(name), PLENTY) == []


@pytest.mark.parametrize(
    ("name", "overrides", "warning"),
    [
        ("hybridnorm", {"model__init": "normal"}, "needs megatron"),
        ("hybridnorm-star", {"model__init": "depth-scaled"}, "perplexity 20.40 with depth-scaled"),
        ("deepnorm", {"model__init": "normal"}, "DeepNorm is published with deepnorm"),
        ("lns", {"model__init": "depth-scaled"}, "not to be combined"),
        ("hybridnorm", {"size": "1.2B", "optimizer__lr": 1e-3}, "stable up to 4.0e-04"),
        ("qkv-post", {"size": "7B", "optimizer__lr": 4e-4}, "stable up to 3.0e-04"),
        ("hybridnorm", {"schedule__warmup_tokens": 10**9}, "want 2,000 or more"),
        ("post-norm", {"train__tokens": 10**9, "schedule__warmup_tokens": 0}, "want 11 or more"),
        ("pre-norm", {"train__load_balance_loss": 0.02}, "the model has no experts; it has no"),
        ("pre-norm", {"train__router_z_loss": 0.0}, "train.router_z_loss: the model has no"),
        ("pre-norm", {"train__keep_every": 10**6}, "train.keep_every: no checkpoint is of such"),
        (
            "pre-norm",
            {"optimizer__decay_norms": False, "optimizer__weight_decay": 0.0},
            "optimizer.decay_norms: weight_decay is 0; it has no effect",
        ),
        (
            "pre-norm",
            {"optimizer__decay_embeddings": True, "optimizer__weight_decay": 0.0},
            "optimizer.decay_embeddings: weight_decay is 0; it has no effect",
        ),
        (
            "pre-norm",
            {"schedule__warmup_tokens": PUBLISHED["train.tokens"]},
            "schedule.name cosine: the warm-up takes all steps",
        ),
    ],
)
def test_what_does_not_fit_is_one_warning(
    name: str, overrides: dict[str, Any], warning: str
) -> None:
    [found] = misfits(recipe(**overrides), placement(name), PLENTY)
    assert warning in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("pre-norm", {"size": "1.2B", "optimizer__lr": 1e-3}),
        ("pre-norm", {"schedule__warmup_tokens": 0}),
        ("hybridnorm-scaled", {"size": "1.2B", "optimizer__lr": 1e-3}),
        ("hybridnorm", {"size": "demo", "model__vocab_size": 4096, "optimizer__lr": 5e-3}),
        ("hybridnorm", {"optimizer__name": "torch.optim.SGD", "optimizer__lr": 0.1}),
    ],
)
def test_what_hurts_other_placements_widths_or_optimizers_only_is_no_warning(
    name: str, overrides: dict[str, Any]
) -> None:
    assert misfits(recipe(**overrides), placement(name), PLENTY) == []


def test_a_users_placement_is_judged_by_what_it_does(mine: Placement) -> None:
    found = misfits(recipe("1.2B", optimizer__lr=1e-3, schedule__warmup_tokens=0), mine, PLENTY)
    assert [line.split()[0] for line in found] == [
        "model.init",  # it names none, so normal is in force
        "optimizer.lr",
        "schedule.warmup_steps",
    ]


def test_what_a_placement_says_in_vain_is_in_the_preflight(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('overrides = [{ layers = "blocks 99", attention.input_norm = "rms" }]')
    [found] = misfits(recipe(), placement(path), PLENTY)
    assert found == "placement overrides[0].layers: there is no block 99 among 16"


def test_an_initialization_with_its_own_deviation_is_named() -> None:
    found = misfits(recipe(model__init="tiny", model__init_std=0.1), placement("pre-norm"), PLENTY)
    assert "model.init_std: init tiny has its own; it has no effect" in found


def test_repeated_data_is_named() -> None:
    mix = [("web", 3.0, 10**12), ("books", 1.0, 10**10)]
    [found] = misfits(recipe(), placement("pre-norm"), mix)
    assert found.startswith("data books: 5.0 epochs")  # a quarter of 200B tokens over 10B


def printed(checked: Preflight) -> str:
    out = io.StringIO()
    checked.print(Screen(file=out, width=100))
    return out.getvalue()


def test_the_numbers_of_a_run_on_several_ranks() -> None:
    chosen = recipe(
        train__micro_batch_size=8, parallel__replicate=2, parallel__tensor=2, train__dtype="bf16"
    )
    found = preflight(chosen, placement("hybridnorm"), PLENTY, world_size=32)
    assert found.rows["batch"] == (
        "1,024 sequences of 4,096 = 4,194,304 tokens; per rank 8 x 8 sequences"
    )
    assert found.rows["layout"].startswith("replicate 2 x shard 8 x tensor 2; bf16")
    assert found.rows["length"].startswith("47,684 steps, 200B tokens, 363")
    assert found.rows["parameters"] == "551M (396M without embeddings)"
    assert found.rows["placement"] == "HybridNorm, 16 norms on the stream of 16 blocks"
    assert found.rows["data"] == "text: 100.0%, 10T tokens, 0.02 epochs"


def test_one_is_no_plural() -> None:
    chosen = recipe("demo", model__vocab_size=64, model__n_layers=1, train__batch_size=1)
    found = preflight(chosen, placement("qkv-post"), PLENTY).rows
    assert found["placement"].endswith(", 1 norm on the stream of 1 block")
    assert found["batch"] == "1 sequence of 4,096 = 4,096 tokens; per rank 1 x 1 sequence"


def test_experts_are_shown_with_what_a_token_uses() -> None:
    chosen = recipe("MoE-1B-7B", model__n_shared_experts=1, model__moe_every=2)
    rows = preflight(chosen, placement("hybridnorm-star"), PLENTY).rows
    assert "8 of 64 and 1 shared experts of width 1024 in one of 2 blocks" in rows["model"]
    rows = preflight(recipe("MoE-1B-7B"), placement("hybridnorm-star"), PLENTY).rows
    assert rows["parameters"] == "6.92B, 1.28B active (6.71B without embeddings)"


def test_it_is_one_screen_also_for_many_sources() -> None:
    mix = [(f"source-{i}", 1.0, 10**12) for i in range(40)]
    text = printed(preflight(recipe(), placement("hybridnorm"), mix))
    assert len(text.splitlines()) <= 24
    assert "source-0: 2.5%" in text and "and 34 more" in text


def test_warnings_follow_the_table() -> None:
    chosen = recipe()
    wrong = replace(chosen, model=replace(chosen.model, init="normal"))
    lines = printed(preflight(wrong, placement("hybridnorm"), PLENTY)).splitlines()
    assert lines[0].startswith("placement")
    assert lines[-1].startswith("warning: model.init normal: HybridNorm needs megatron")
