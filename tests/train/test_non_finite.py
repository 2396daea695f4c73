"""Steps whose gradient is not finite, in the loop itself."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from hybridnorm.data.prepare.folder import open_data
from hybridnorm.model.transformer import Losses
from hybridnorm.placements import placement
from hybridnorm.recipe.config import Recipe
from hybridnorm.recipe.load import load_recipe
from hybridnorm.train.batches import Batch
from hybridnorm.train.loop import Trainer
from hybridnorm.train.non_finite import first_nonfinite
from hybridnorm.train.report.hooks import MetricsFile
from hybridnorm.train.report.metrics import read_metrics
from hybridnorm.train.run import build_model, with_vocabulary
from hybridnorm.train.world import World

ALONE = World(torch.device("cpu"))
QUIET = Console(quiet=True)


@pytest.fixture
def recipe(corpus: Path) -> Recipe:
    fields = {
        "data.source": str(corpus),
        "data.tokenizer": "byte",
        "data.cache": str(corpus / "prepared"),
        "model.d_model": 32,
        "model.n_layers": 2,
        "model.d_ff": 64,
        "train.steps": 8,
        "train.batch_size": 4,
        "train.seq_len": 32,
        "train.log_every": 3,
        "schedule.warmup_steps": 2,
    }
    return load_recipe("demo", fields)


def make_trainer(recipe: Recipe, run_dir: Path) -> Trainer:
    data = open_data(recipe.data, console=QUIET)
    whole = with_vocabulary(recipe, data.tokenizer)
    model = build_model(whole, placement(whole.model.placement), ALONE)
    run_dir.mkdir()
    return Trainer(whole, model, data, run_dir, ALONE)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_a_step_that_is_not_finite_is_skipped_counted_and_touches_nothing(
    recipe: Recipe, tmp_path: Path
) -> None:
    trainer = make_trainer(recipe, tmp_path / "run")
    before: list[dict[str, torch.Tensor]] = []
    whole = trainer.model.losses

    def poisoned(*batch: torch.Tensor, z_weight: float) -> Losses:
        before.append(weights(trainer))
        losses = whole(*batch, z_weight=z_weight)
        factor = float("nan") if len(before) == 4 else 1.0
        return losses._replace(total=losses.total * factor)

    trainer.model.losses = poisoned  # type: ignore[method-assign]
    trainer.run([MetricsFile(tmp_path / "run")], print)
    changed = [
        any(not torch.equal(after[name], earlier[name]) for name in earlier)
        for earlier, after in itertools.pairwise(before[:8])
    ]
    assert changed == [True, True, True, False, True, True, True]
    metrics = read_metrics(tmp_path / "run")
    assert metrics.events[-1]["skipped_steps"] == 1
    assert [row["skipped_steps"] for row in metrics.train] == [0, 1, 1]
    assert trainer.guard.in_row == 0


@pytest.mark.parametrize("where", ["weight", "output", "nowhere"])
def test_the_first_place_in_the_forward_pass_is_named(
    where: str, recipe: Recipe, tmp_path: Path
) -> None:
    trainer = make_trainer(recipe, tmp_path / "run")
    batch: Batch = next(trainer.batches.step(0))
    block = trainer.model.blocks[1]
    if where == "weight":
        block.feed_forward.branch.up_proj.weight.data[0, 0] = float("inf")
        expected = "the weight blocks.1.feed_forward.branch.up_proj.weight"
    elif where == "output":
        down = block.feed_forward.branch.down_proj
        down.register_forward_hook(lambda module, inputs, output: output * float("nan"))
        expected = "the output of blocks.1.feed_forward.branch.down_proj"
    else:
        expected = ""
    assert first_nonfinite(trainer.model, batch) == expected


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.equal.default,
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("n_experts", [0, 4])
def test_a_training_step_never_waits_for_the_device(
    n_experts: int, recipe: Recipe, tmp_path: Path
) -> None:
    busy = replace(
        recipe,
        model=replace(recipe.model, n_experts=n_experts),
        train=replace(recipe.train, z_loss=1e-4, micro_batch_size=2),
    )
    trainer = make_trainer(busy, tmp_path / "run")
    with Reads() as reads:
        trainer.train_step()
        assert reads.count == 0
        trainer.log.read()
        float(torch.ones(()))
        assert reads.count > 0, "the count must see a reading"


def test_a_router_whose_logits_overflow_is_named(recipe: Recipe, tmp_path: Path) -> None:
    mixture = replace(recipe, model=replace(recipe.model, n_experts=4))
    trainer = make_trainer(mixture, tmp_path / "run")
    trainer.model.blocks[1].feed_forward.branch.router.weight.data.fill_(3e38)
    found = first_nonfinite(trainer.model, next(trainer.batches.step(0)))
    assert found == "the output of blocks.1.feed_forward.branch.router"
