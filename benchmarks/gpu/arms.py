"""The models that the GPU benchmarks train: ours, and the same shapes in `transformers`."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hybridnorm.model.config import ModelConfig, preset
from hybridnorm.model.parallel import parallelize
from hybridnorm.model.transformer import Transformer
from hybridnorm.recipe.config import OptimizerConfig, TrainConfig
from hybridnorm.train.batches import Batch
from hybridnorm.train.objective import objective
from hybridnorm.train.optim.build import build_optimizer
from hybridnorm.train.optim.optimizers import Optimizers, step_unless
from hybridnorm.train.world import World

Loss = Callable[[Tensor, Tensor], Tensor]
PLACEMENTS = ("pre-norm", "hybridnorm", "hybridnorm-star")


@dataclass(frozen=True)
class Shape:
    """A model, and the tokens of one optimizer step, in micro-batches as large as fit."""

    config: ModelConfig
    seq: int
    batch: int
    largest: int
    """Sequences in the first micro-batch that is tried."""
    largest_of_peers: int
    """The same for `transformers`, which holds the logits of all tokens at a time."""

    @property
    def tokens(self) -> int:
        return self.batch * self.seq


# The paper's model with experts has 16 layers and takes 110 GB for weights and optimizer alone.
_MOE = replace(preset("MoE-1B-7B"), n_layers=4)
SHAPES = {
    "151M": Shape(preset("151M"), 4096, 16, 16, 16),
    "550M": Shape(preset("550M"), 4096, 16, 16, 8),
    "1.2B": Shape(preset("1.2B"), 4096, 16, 8, 4),
    "MoE": Shape(_MOE, 4096, 16, 8, 4),
}
_TINY = ModelConfig(d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=128, vocab_size=515)
TINY = {
    "tiny": Shape(_TINY, 64, 4, 4, 2),
    "tiny MoE": Shape(replace(_TINY, n_kv_heads=None, n_experts=4), 64, 4, 4, 2),
}


@dataclass(frozen=True)
class Arm:
    """One model in one setting."""

    name: str
    build: Callable[[Shape, str], tuple[nn.Module, Loss]]
    is_peer: bool = True


class Training:
    """A model with its optimizer, trained on random tokens: forward, backward, clip, AdamW."""

    def __init__(self, arm: Arm, shape: Shape, micro: int, device: str) -> None:
        self.shape, self.micro = shape, micro
        self.model, self.loss = arm.build(shape, device)
        self.optimizer = _optimizer(self.model)
        vocab_size = shape.config.vocab_size
        assert vocab_size is not None
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocab_size, (shape.batch, shape.seq + 1), generator=generator)
        ids = ids.to(device)
        self.ids, self.targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step(self) -> None:
        """One optimizer step; the host does not wait for the device."""
        n_micro = self.shape.batch // self.micro
        for ids, targets in zip(
            self.ids.split(self.micro), self.targets.split(self.micro), strict=True
        ):
            (self.loss(ids, targets) / n_micro).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        step_unless(self.optimizer, ~torch.isfinite(norm))
        self.optimizer.zero_grad()


def _optimizer(model: nn.Module) -> Optimizers:
    if isinstance(model, Transformer):
        return build_optimizer(model, OptimizerConfig(lr=1e-4))
    return Optimizers([torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)])


def ours(placement: str) -> Arm:
    """Compiled block by block, bfloat16 over float32 weights, as `hybridnorm train` runs it."""

    def build(shape: Shape, device: str) -> tuple[nn.Module, Loss]:
        with torch.device("meta"):
            model = Transformer(replace(shape.config, placement=placement))
        model.dtype = torch.bfloat16
        parallelize(model, None, compile_blocks=True)
        model.to_empty(device=device)
        draw(model)
        train, world = TrainConfig(), World(torch.device(device))
        return model, lambda ids, y: objective(model, Batch(ids, y, None), train, world).total

    return Arm(placement, build, is_peer=False)


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Weights drawn on the device: for speed alone, and in no time."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 0.02)
        else:
            parameter.fill_(1.0)


def llama(shape: Shape, device: str) -> tuple[nn.Module, Loss]:
    """`transformers`' Llama under autocast, as one compiled graph."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        model = LlamaForCausalLM(
            LlamaConfig(**llama_shape(shape), rope_theta=shape.config.rope_theta)
        )
    return model.train(), _autocast(torch.compile(_objective(model)), device)


def olmoe(experts: str, *, low_weights: bool, compiled: bool = False) -> Arm:
    """`transformers`' OLMoE with one of its implementations of experts."""

    def build(shape: Shape, device: str) -> tuple[nn.Module, Loss]:
        from transformers import OlmoeConfig, OlmoeForCausalLM

        config = OlmoeConfig(
            **llama_shape(shape),
            num_experts=shape.config.n_experts,
            num_experts_per_tok=shape.config.top_k,
            output_router_logits=True,
            experts_implementation=experts,
        )
        with torch.device(device):
            model = OlmoeForCausalLM(config).train()
        loss = _objective(model)
        if compiled:
            loss = torch.compile(loss)
        return (model.bfloat16(), loss) if low_weights else (model, _autocast(loss, device))

    weights = "bf16 weights" if low_weights else "autocast"
    how = ", compiled" if compiled else ""
    return Arm(f"transformers OLMoE, {experts}, {weights}{how}", build)


def llama_shape(shape: Shape) -> dict[str, Any]:
    """The shape as `transformers` spells it."""
    config = shape.config
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": shape.seq,
        "attn_implementation": "sdpa",
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _objective(model: Any) -> Loss:
    return lambda ids, targets: model(input_ids=ids, labels=targets, shift_labels=targets).loss


def _autocast(loss: Loss, device: str) -> Loss:
    def under(ids: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return loss(ids, targets)

    return under


def arms(shape: Shape) -> list[Arm]:
    """All that take turns on one shape."""
    if not shape.config.n_experts:
        return [*map(ours, PLACEMENTS), Arm("transformers Llama", llama)]
    return [
        ours("pre-norm-qk"),
        ours("hybridnorm-star"),
        olmoe("grouped_mm", low_weights=False),
        olmoe("grouped_mm", low_weights=True),
        olmoe("grouped_mm", low_weights=True, compiled=True),
        olmoe("eager", low_weights=False),
    ]


def fitting(arm: Arm, shape: Shape, device: str) -> Training:
    """A training that has done a step, with the largest micro-batches that fit.

    Raises:
        torch.OutOfMemoryError: one sequence does not fit.
    """
    micro = shape.largest_of_peers if arm.is_peer else shape.largest
    while True:
        free(device)
        try:
            return _started(arm, shape, micro, device)
        except torch.OutOfMemoryError:
            if micro == 1:
                raise
        torch.compiler.reset()  # else the next size would be compiled for any
        micro //= 2


def _started(arm: Arm, shape: Shape, micro: int, device: str) -> Training:
    training = Training(arm, shape, micro, device)
    training.step()
    synchronize(device)
    return training


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def free(device: str) -> None:
    """What the last model left, before the next one is built."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
