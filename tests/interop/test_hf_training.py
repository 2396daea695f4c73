"""Fresh models, and models trained on, by what people use: Trainer and PEFT."""

import copy
import logging
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from exports import EXPERTS, IDS, SHAPE, exported, gap, model
from hybridnorm.errors import HybridNormError
from hybridnorm.interop.huggingface import HybridNormConfig, HybridNormForCausalLM
from hybridnorm.interop.huggingface.tokenizer import write_tokenizer
from hybridnorm.interop.huggingface.weights import sources
from hybridnorm.model import scheme, standard_deviation
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer

WIDE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
OURS = ModelConfig(
    d_model=128, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=256, vocab_size=512,
    tie_embeddings=False,
)  # fmt: skip


def test_registered_without_remote_code(tmp_path: Path) -> None:
    config = HybridNormConfig(placement="hybridnorm-star", **WIDE)
    fresh = AutoModelForCausalLM.from_config(config)
    assert isinstance(fresh, HybridNormForCausalLM)
    fresh.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), HybridNormConfig)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(fresh(IDS).logits, again(IDS).logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(base(IDS).last_hidden_state, again.model(IDS).last_hidden_state)
    for name in ("modeling_hybridnorm.py", "norms_hybridnorm.py", "configuration_hybridnorm.py"):
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("experts", [False, True])
@pytest.mark.parametrize("name", ["hybridnorm-star", "deepnorm", "subln", "dssn", "gemma", "derf"])
def test_fresh_models_are_initialized_as_ours(name: str, experts: bool) -> None:
    """Norms, scales and biases exactly; matrices by their standard deviation and cut-off."""
    theirs_too = {"num_experts": 8, "moe_intermediate_size": 64} if experts else {}
    ours_too = {"n_experts": 8, "d_expert": 64} if experts else {}
    set_seed(0)
    config = HybridNormConfig(placement=name, tie_word_embeddings=False, **WIDE, **theirs_too)
    fresh = dict(HybridNormForCausalLM(config).named_parameters())
    shape = ModelConfig(**{**vars(OURS), "placement": name, **ours_too})
    ours = Transformer(shape)
    for ours_name, (source, half) in sources(ours, {}).items():
        wanted = ours.get_parameter(ours_name)
        found = fresh[source] if half is None else fresh[source].chunk(2, dim=1)[half]
        if wanted.ndim == 1:
            assert torch.equal(found, wanted), source
            continue
        std = standard_deviation(shape, scheme(shape, ours.placement), ours_name)
        assert abs(found.std() / std / 0.9866 - 1) < 0.05, source  # of a cut-off at 3
        assert found.abs().max() <= 3 * std * (1 + 1e-6)


def test_loading_draws_nothing_anew(tmp_path: Path) -> None:
    theirs = exported(model("subln", **EXPERTS), tmp_path / "run")
    theirs.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_names_are_checked() -> None:
    with pytest.raises(HybridNormError, match="did you mean 'hybridnorm'"):
        HybridNormConfig(placement="hybridnrom", **WIDE)


@pytest.fixture
def quiet_accelerate() -> Iterator[None]:
    pytest.importorskip("accelerate")
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class Texts(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The same texts at every step, in order."""

    def __init__(self, count: int, length: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(256, (count, length + 1), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class InOrder(Trainer):
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        folder, per_device_train_batch_size=4, max_grad_norm=1.0, logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, **options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("experts", [{}, EXPERTS], ids=["dense", "experts"])
def test_trainer_takes_the_steps_that_we_take(
    experts: dict[str, Any], tmp_path: Path, quiet_accelerate: None
) -> None:
    """20 steps from the same weights: the same losses and the same weights."""
    ours, steps, data = model(**experts), 20, Texts(80)
    theirs = exported(copy.deepcopy(ours), tmp_path).train()
    if experts:
        theirs.config.output_router_logits = True
        theirs.config.router_aux_loss_coef = theirs.config.router_z_loss_coef = 0.0
    options = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(theirs.parameters(), **options)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = InOrder(
        theirs,
        arguments(tmp_path / "out", max_steps=steps),
        train_dataset=data,
        optimizers=(optimizer, constant),
    )
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]

    adamw = torch.optim.AdamW(ours.parameters(), **options)
    for step in range(steps):
        ids = data.ids[4 * step : 4 * step + 4]
        loss = ours.loss(ids[:, :-1], ids[:, 1:])
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        adamw.step()
        assert abs(logged[step] - loss.item()) < 1e-5
    found = dict(theirs.named_parameters())
    for name, (source, half) in sources(ours, {}).items():
        wanted = ours.get_parameter(name)
        weight = found[source] if half is None else found[source].chunk(2, dim=1)[half]
        assert gap(weight, wanted[: len(weight)]) < 1e-5, name


@pytest.mark.filterwarnings("ignore")
def test_trainer_trains_from_scratch(tmp_path: Path, quiet_accelerate: None) -> None:
    config = HybridNormConfig(placement="hybridnorm-star", **{**WIDE, "num_hidden_layers": 2})
    fresh = HybridNormForCausalLM(config)
    data = Texts(8)
    trainer = Trainer(
        fresh, arguments(tmp_path / "out", max_steps=30, learning_rate=3e-3), train_dataset=data
    )
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged[-1] < logged[0] - 1
    trainer.save_model(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(IDS).logits, fresh.eval()(IDS).logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["hybridnorm-star", "peri-ln"])
def test_lora_attaches_trains_and_merges(name: str, tmp_path: Path, quiet_accelerate: None) -> None:
    peft = pytest.importorskip("peft")
    theirs = exported(model(name), tmp_path).train()
    before = theirs(IDS).logits.detach()
    adapted = peft.get_peft_model(
        theirs, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    parts = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, p in adapted.named_parameters()
             if p.requires_grad}  # fmt: skip
    assert parts == {f"{m}_proj" for m in ("q", "k", "v", "o", "gate", "up", "down")}
    assert torch.equal(adapted(IDS).logits, before)
    trainer = Trainer(
        adapted, arguments(tmp_path / "out", max_steps=10, learning_rate=1e-2),
        train_dataset=Texts(8),
    )  # fmt: skip
    trainer.train()
    trained = adapted.eval()(IDS).logits.detach()
    assert gap(trained, before) > 1e-2
    merged = adapted.merge_and_unload()
    assert gap(merged(IDS).logits, trained) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert gap(again(IDS).logits, trained) < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_lora_of_experts(tmp_path: Path, quiet_accelerate: None) -> None:
    peft = pytest.importorskip("peft")
    theirs = exported(model(**EXPERTS), tmp_path).train()
    before = theirs(IDS).logits.detach()
    adapted = peft.get_peft_model(
        theirs,
        peft.LoraConfig(
            r=4,
            target_modules=["q_proj"],
            target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        ),
    )
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any("experts" in name for name in trainable)
    adapted(IDS, labels=IDS).loss.backward()
    assert torch.allclose(adapted(IDS).logits, before, atol=1e-6)
    assert SHAPE["n_layers"] == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [(), ("--lora",)], ids=["whole", "lora"])
def test_the_example(
    options: tuple[str, ...], corpus: Path, tmp_path: Path, quiet_accelerate: None
) -> None:
    for package in ("accelerate", "peft"):
        pytest.importorskip(package)
    theirs = exported(model(), tmp_path / "run")
    theirs.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "run", tmp_path / "model", 32)
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "finetune.py"))["main"]
    text = corpus / "text.jsonl"
    main(
        [
            str(tmp_path / "model"),
            str(text),
            "--out",
            str(tmp_path / "out"),
            *options,
            "--steps",
            "5",
        ]
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert gap(again(IDS).logits, theirs(IDS).logits) > 1e-3
    assert (tmp_path / "out" / "tokenizer.json").is_file()
