"""A run that continues from saved optimizer state takes the steps it would have taken."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.recipe.config import OptimizerConfig
from hybridnorm.train.checkpoint import storage as checkpoint
from hybridnorm.train.optim.build import build_optimizer
from hybridnorm.train.optim.optimizers import Optimizers
from hybridnorm.train.optim.state import materialize, optimizer_state, restore
from hybridnorm.train.world import World

CONFIG = ModelConfig(d_model=32, n_layers=2, d_ff=64, vocab_size=50)
IDS = torch.arange(40).view(2, 20)


class Odd(torch.optim.Optimizer):
    """Keeps every kind of state there is, and a step depends on all of it."""

    def __init__(self, params: Any, lr: float, weight_decay: float, flag: bool = True) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "flag": flag})
        self.state["shared"] = {"scale": torch.ones(())}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.state["shared"]["scale"] *= 0.9
        count = torch.zeros(1)
        for group in self.param_groups:
            group.setdefault("rate", 0)
            group["rate"] = group["rate"] * 0.5 + 0.3
            group.setdefault("count", count)  # one tensor in all groups
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("step", 0)
                state.setdefault("none", None)
                state.setdefault("sums", [0.0, torch.zeros_like(p)])
                state.setdefault("transposed", torch.zeros_like(p.t() if p.ndim == 2 else p).t())
                state["step"] += 1
                state["sums"][0] += p.grad.mean().item()
                state["sums"][1] += p.grad
                state["transposed"] += p.grad
                scale = group["rate"] * group["count"] + self.state["shared"]["scale"]
                update = state["sums"][0] + state["sums"][1] + state["transposed"]
                p -= group["lr"] * scale * update / state["step"]
        self.param_groups[0]["count"] += 1


OPTIMIZERS = [
    OptimizerConfig(lr=1e-2),
    OptimizerConfig(name="muon", lr=1e-2),
    OptimizerConfig(name="torch.optim.SGD", lr=1e-1, options=("momentum=0.9",)),
    OptimizerConfig(name="torch.optim.Adafactor", lr=1e-2),
    OptimizerConfig(name="torch.optim.NAdam", lr=1e-2),
    OptimizerConfig(name=f"{__name__}.Odd", lr=1e-3),
]


def advance(model: Transformer, optimizer: Optimizers) -> float:
    loss = model.loss(IDS, IDS)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: config.name.rpartition(".")[2])
def test_training_continues_bitwise_from_a_checkpoint(
    config: OptimizerConfig, tmp_path: Path
) -> None:
    model = Transformer(CONFIG)
    optimizer = build_optimizer(model, config)
    first = [advance(model, optimizer) for _ in range(3)]
    state = checkpoint.training_state(model, optimizer)
    path = checkpoint.save_checkpoint(tmp_path, 3, state, {}, World(torch.device("cpu")))

    other = Transformer(CONFIG, seed=1)
    other_optimizer = build_optimizer(other, config)
    materialize(other_optimizer)
    loaded = checkpoint.training_state(other, other_optimizer)
    assert loaded.keys() == state.keys()
    checkpoint.load_checkpoint(path, loaded)
    restore(other, other_optimizer, loaded)
    last = [advance(model, optimizer) for _ in range(3)]
    assert [advance(other, other_optimizer) for _ in range(3)] == last
    assert last[-1] < first[0]


@pytest.mark.parametrize("config", OPTIMIZERS, ids=lambda config: config.name.rpartition(".")[2])
def test_materialize_changes_neither_weights_nor_learning_rates(config: OptimizerConfig) -> None:
    model = Transformer(CONFIG)
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, config)
    materialize(optimizer)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {config.lr}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_changed_setting_survives_the_loading_of_an_old_state() -> None:
    model = Transformer(CONFIG)
    name = f"{__name__}.Odd"
    old = build_optimizer(model, OptimizerConfig(name=name))
    materialize(old)
    state = {key: value.clone() for key, value in optimizer_state(model, old).items()}
    new = build_optimizer(model, OptimizerConfig(name=name, lr=1.0, options=("flag=false",)))
    materialize(new)
    restore(model, new, state)
    assert {(group["lr"], group["flag"]) for group in new.param_groups} == {(1.0, False)}
    assert {group["rate"] for group in new.param_groups} == {0.3}
