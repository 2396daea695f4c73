import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.recipe.config import OptimizerConfig
from hybridnorm.recipe.load import load_recipe
from hybridnorm.train.optim.build import build_optimizer
from hybridnorm.train.optim.decay_groups import decay_groups, decay_table
from hybridnorm.train.optim.optimizers import Optimizers, step_unless
from hybridnorm.train.optim.state import optimizer_state

CONFIG = ModelConfig(
    d_model=32, n_layers=2, d_ff=64, vocab_size=50, tie_embeddings=False, placement="hybridnorm"
)
IDS = torch.arange(40).view(2, 20)
SGD = "torch.optim.SGD"


def backward(model: Transformer) -> None:
    model.zero_grad()
    model.loss(IDS, IDS).backward()


def weight_decays(model: Transformer, config: OptimizerConfig) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    return {names[p]: group["weight_decay"] for group in groups for p in group["params"]}


def test_decay_groups_of_the_paper() -> None:
    """Dense models: everything but the embedding is decayed by 0.1, norms included."""
    model = Transformer(CONFIG)
    decays = weight_decays(model, OptimizerConfig())
    assert decays.keys() == dict(model.named_parameters()).keys()
    assert {name for name, decay in decays.items() if decay == 0} == {"embedding.weight"}
    assert set(decays.values()) == {0.0, 0.1}


def test_gains_are_left_alone_by_what_they_norm() -> None:
    model = Transformer(replace(CONFIG, placement="hybridnorm-star-7b"))
    config = OptimizerConfig(undecayed_gains=("stream", "heads"))
    decays = weight_decays(model, config)
    alone = {name for name, decay in decays.items() if decay == 0} - {"embedding.weight"}
    # The first block carries the raw stream: its norms are of branch inputs.
    first = [f"blocks.0.{norm}" for norm in ("attention.input_norm", "feed_forward.input_norm")]
    assert not alone & {f"{norm}.weight" for norm in (*first, "final_norm")}
    heads = {n for n in decays if n.endswith(("q_norm.weight", "k_norm.weight", "v_norm.weight"))}
    stream = {n for n in decays if n.endswith("feed_forward.input_norm.weight")}
    assert alone == heads | stream - {"blocks.0.feed_forward.input_norm.weight"}


@pytest.mark.parametrize("name", ["adamw", "muon", SGD])
def test_the_other_decay_groups(name: str) -> None:
    model = Transformer(replace(CONFIG, placement="peri-ln"))
    config = OptimizerConfig(name=name, decay_norms=False, decay_embeddings=True)
    decays = weight_decays(model, config)
    vectors = {name for name, p in model.named_parameters() if p.ndim < 2}
    assert {name for name, decay in decays.items() if decay == 0} == vectors != set()


def test_the_printed_groups_are_those_of_the_optimizer() -> None:
    model, config = Transformer(CONFIG), OptimizerConfig(name="muon")
    console = Console(width=160)
    with console.capture() as capture:
        console.print(decay_table(decay_groups(model, config)))
    printed = {}
    for line in capture.get().splitlines()[1:]:
        name, optimizer, decay, tensors, parameters, *_ = re.split(r"\s{2,}", line.strip())
        printed[name] = (optimizer, decay, int(tensors), int(parameters.replace(",", "")))
    assert printed == {
        "embedding": ("adamw", "0", 1, 128 * 32),
        "head": ("adamw", "0.1", 1, 128 * 32),
        "matrices": ("muon", "0.1", 2 * 7, 2 * (4 * 32 * 32 + 3 * 32 * 64)),
        "vectors": ("adamw", "0.1", 9, 2 * (32 + 3 * 8) + 32),
    }
    assert sum(row[3] for row in printed.values()) == model.num_parameters()


def test_muon_is_torchs_for_the_matrices_of_blocks_and_adamw_for_the_rest() -> None:
    ours, plain = Transformer(CONFIG), Transformer(CONFIG)
    optimizer = build_optimizer(ours, OptimizerConfig(name="muon", lr=1e-2, momentum=0.9))
    matrices = [p for n, p in plain.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    embedding = plain.embedding.weight
    rest = [p for p in plain.parameters() if all(p is not q for q in [*matrices, embedding])]
    pair = [
        torch.optim.Muon(matrices, 1e-2, 0.1, 0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": rest, "weight_decay": 0.1}, {"params": [embedding], "weight_decay": 0.0}],
            lr=1e-2,
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]
    for step in range(4):
        lr = 1e-2 / (step + 1)
        for group in [*optimizer.param_groups, *(g for o in pair for g in o.param_groups)]:
            group["lr"] = lr
        backward(ours)
        backward(plain)
        optimizer.step()
        for member in pair:
            member.step()
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
    )


def test_muons_updates_are_as_large_as_adamws() -> None:
    """Root mean square 0.2 of the learning rate (Moonlight, arXiv 2502.16982, section 2.2)."""
    model = Transformer(CONFIG)
    before = copy.deepcopy(model.state_dict())
    config = OptimizerConfig(name="muon", lr=1e-2, weight_decay=0.0)
    optimizer = build_optimizer(model, config)
    backward(model)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            size = (parameter - before[name]).square().mean().sqrt() / 1e-2
            assert 0.1 < size < 0.3, name


def test_an_optimizer_by_import_path_gets_its_options() -> None:
    ours, plain = Transformer(CONFIG), Transformer(CONFIG)
    config = OptimizerConfig(
        name=SGD, lr=0.1, weight_decay=0.0, options=("momentum=0.9", "nesterov=true")
    )
    optimizer = build_optimizer(ours, config)
    sgd = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, nesterov=True)
    for _ in range(3):
        backward(ours)
        backward(plain)
        optimizer.step()
        sgd.step()
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "name: unknown name 'adam'; did you mean 'adamw'?; or name a class"),
        ({"name": "nowhere.Lion"}, "name: cannot import nowhere.Lion: No module named 'nowhere'"),
        (
            {"name": "torch.optim.Lion"},
            "name: cannot import torch.optim.Lion: module",
        ),
        ({"name": "torch.nn.Linear"}, "name: torch.nn.Linear is no optimizer class"),
        ({"name": "torch.optim.LBFGS"}, "weight_decay: torch.optim.LBFGS has none; set it to 0"),
        (
            {"name": "torch.optim.LBFGS", "weight_decay": 0.0},
            "name: torch.optim.LBFGS cannot be used here: LBFGS doesn't support",
        ),
        (
            {"name": "torch.optim.SparseAdam", "weight_decay": 0.0},
            "name: torch.optim.SparseAdam cannot be used here: SparseAdam does not support dense",
        ),
        ({"name": "torch.optim.Muon"}, "cannot be used here: Muon only supports 2D parameters"),
        (
            {"name": SGD, "options": ("momentun=0.9",)},
            "options: torch.optim.SGD takes no 'momentun'; did you mean 'momentum'?",
        ),
        ({"name": SGD, "options": ("lr=1",)}, "options: set optimizer.lr instead of lr"),
        ({"name": SGD, "options": ("momentum",)}, "options: 'momentum' is not name=value with"),
        ({"name": SGD, "options": ("mode=fast",)}, "options: 'mode=fast' is not name=value with"),
        ({"name": SGD, "options": ("a=1\nb=2",)}, r"options: 'a=1\nb=2' is not name=value"),
        ({"name": SGD, "options": ("momentum=1", "momentum=2")}, "momentum is given twice"),
        ({"name": SGD, "options": ("momentum=nan",)}, "options: momentum must be finite, got nan"),
        ({"name": SGD, "options": ("momentum=-1",)}, "here: Invalid momentum value: -1"),
        (
            {"name": SGD, "momentum": 0.5},
            "momentum: has no effect with torch.optim.SGD; leave it out",
        ),
        ({"name": SGD, "betas": (0.9, 0.9)}, "betas: has no effect with torch.optim.SGD"),
        ({"momentum": 0.5}, "momentum: has no effect with adamw; leave it out"),
        ({"options": ("amsgrad=true",)}, "options: has no effect with adamw; leave it out"),
        ({"name": "muon", "options": ("ns_steps=3",)}, "options: has no effect with muon"),
    ],
)
def test_what_cannot_work_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HybridNormError) as caught:
        build_optimizer(Transformer(CONFIG), OptimizerConfig(**fields))
    text = str(caught.value)
    assert message in text and "\n" not in text


class Evaluating(torch.optim.SGD):
    """As the schedule-free optimizers, which evaluate at other weights than they train."""

    def eval(self) -> None: ...


class Late(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            late = "first" not in self.state[parameter]
            self.state[parameter]["first" if late else "second"] = torch.ones(1)


class Untold(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        self.state[self.param_groups[0]["params"][0]]["history"] = {1, 2}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Evaluating, "it wants other weights for evaluation"),
        (Late, "its state is incomplete after the first step"),
        (Untold, "its state holds a set (optimizer.weight.history), which no checkpoint can hold"),
    ],
)
def test_what_a_checkpoint_could_not_continue_fails_before_the_run(cls: type, message: str) -> None:
    config = OptimizerConfig(name=f"{__name__}.{cls.__name__}")
    with pytest.raises(HybridNormError, match=re.escape(message)):
        build_optimizer(Transformer(CONFIG), config)


def documented() -> list[str]:
    text = (Path(__file__).parents[3] / "docs" / "optimizers.md").read_text(encoding="utf-8")
    return re.findall(r"```toml\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("text", documented())
def test_the_recipes_of_the_documentation_work(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    build_optimizer(Transformer(CONFIG), load_recipe(tmp_path / "recipe.toml").in_steps().optimizer)


def snapshot(model: Transformer, optimizer: Optimizers) -> dict[str, torch.Tensor]:
    state = {**model.state_dict(), **optimizer_state(model, optimizer)}
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(lr=1e-2),
        OptimizerConfig(name="muon", lr=1e-2),
        OptimizerConfig(name=SGD, options=("momentum=0.9",)),
        OptimizerConfig(name=SGD, options=("momentum=0.9", "fused=true")),
    ],
    ids=["adamw", "muon", "sgd", "fused-sgd"],
)
def test_a_skipped_step_changes_no_bit(config: OptimizerConfig, boolean: bool) -> None:
    models = Transformer(CONFIG), Transformer(CONFIG)
    skipping, plain = (build_optimizer(model, config) for model in models)
    go, skip = torch.tensor([0.0, 1.0]).to(torch.bool if boolean else torch.float32)
    for turn in range(4):
        if turn in (0, 2):  # the very first step, and one with moments
            before = snapshot(models[0], skipping)
            for parameter in models[0].parameters():
                parameter.grad = torch.full_like(parameter, float("nan"))
            step_unless(skipping, skip)
            after = snapshot(models[0], skipping)
            assert all(torch.equal(after[name], value) for name, value in before.items())
        backward(models[0])
        step_unless(skipping, go)
        backward(models[1])
        plain.step()
    a, b = (snapshot(m, o) for m, o in zip(models, (skipping, plain), strict=True))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(models[0].head_weight(), Transformer(CONFIG).head_weight())
