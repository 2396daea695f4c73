"""The memory estimate against what the allocator of a GPU hands out."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.parallel import parallelize
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import placement
from hybridnorm.recipe.config import Recipe, TrainConfig
from hybridnorm.train.optim.build import build_optimizer
from hybridnorm.train.preflight.memory import memory_estimate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

# 62M parameters
CONFIG = ModelConfig(d_model=640, n_layers=12, n_heads=10, n_kv_heads=5, d_ff=1792, vocab_size=8192)
BATCH, LENGTH = 8, 1024


def measured_peak(recipe: Recipe, compiled: bool) -> int:
    """Bytes at the peak of a step of two micro-batches, once there is optimizer state."""
    gc.collect()
    torch.cuda.empty_cache()
    ids = torch.randint(8192, (BATCH, LENGTH), device="cuda")
    (torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum().item()  # workspaces
    before = torch.cuda.memory_allocated()
    model = Transformer(recipe.model).to("cuda")
    model.dtype = torch.bfloat16
    parallelize(model, None, compile_blocks=compiled)
    optimizer = build_optimizer(model, recipe.optimizer)
    for step in range(2):
        if step == 1:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            (model.loss(ids, ids) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("compiled", [False, True])
def test_the_estimate_is_near_the_peak(
    compiled: bool, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    if device.type != "cuda":
        pytest.skip("tests/train/preflight/test_memory.py measures on the CPU")
    recipe = Recipe(model=CONFIG, train=TrainConfig(seq_len=LENGTH, dtype="bf16"))
    chosen = placement(CONFIG.placement)
    estimate = memory_estimate(recipe, chosen, micro_batch_size=BATCH, device="cuda")
    assert estimate.activations > estimate.total / 2
    ratio = measured_peak(recipe, compiled) / estimate.total
    record_property("measured_over_estimate", f"{ratio:.3f} of {estimate.total / 2**20:.0f} MiB")
    assert ratio < 1.15
    assert compiled or ratio > 0.85
