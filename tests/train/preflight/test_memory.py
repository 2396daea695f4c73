"""The memory estimate against PyTorch's own account of every live tensor of a training step."""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import placement
from hybridnorm.recipe.config import OptimizerConfig, ParallelConfig, Recipe, TrainConfig
from hybridnorm.train.optim.decay_groups import decay_groups
from hybridnorm.train.preflight.memory import memory_estimate

TOLERANCE = 0.1
SHAPES = {
    "deep, gated": ModelConfig(
        d_model=64, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=160, vocab_size=256
    ),
    "wide head, gelu, untied": ModelConfig(
        d_model=96,
        n_layers=4,
        n_heads=4,
        d_ff=256,
        vocab_size=2048,
        activation="gelu",
        tie_embeddings=False,
        placement="pre-norm",
    ),
    "experts": ModelConfig(
        d_model=64,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        d_ff=96,
        n_experts=8,
        n_shared_experts=1,
        vocab_size=256,
        moe_every=2,
    ),
}
PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.hybridnorm.grouped_linear.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def save_products(context: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_blocks(model: Transformer, mode: str) -> None:
    """Activation checkpointing by PyTorch alone."""
    kwargs: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, save_products)
    if mode != "none":
        for block in model.blocks:
            block.forward = partial(checkpoint, block.forward, **kwargs)


def measured_peak(recipe: Recipe, micro_batch_size: int) -> dict[str, int]:
    """Bytes by kind at the peak of two micro-batches, once there is optimizer state."""
    config = recipe.model
    model = Transformer(config)
    model.dtype = torch.bfloat16 if recipe.train.dtype == "bf16" else torch.float32
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(config.vocab_size or 0, (micro_batch_size, recipe.train.seq_len))
    model.loss(ids, ids).backward()
    optimizer.step()
    optimizer.zero_grad()
    checkpoint_blocks(model, recipe.parallel.activation_checkpointing)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, ids)
    with tracker:
        for _ in range(2):
            model.loss(ids, ids).backward()
            tracker.reset_mod_stats()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    return {getattr(kind, "name", kind): size for kind, size in peak.items()}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_the_estimate_is_near_the_measured_peak(
    config: ModelConfig,
    dtype: Literal["fp32", "bf16"],
    mode: Literal["none", "selective", "full"],
) -> None:
    recipe = Recipe(
        model=config,
        train=TrainConfig(seq_len=64, dtype=dtype),
        parallel=ParallelConfig(activation_checkpointing=mode),
    )
    estimate = memory_estimate(recipe, placement(config.placement), micro_batch_size=4)
    peak = measured_peak(recipe, 4)
    assert peak["PARAM"] == estimate.weights
    assert peak["OPT"] == pytest.approx(estimate.optimizer, rel=0.001)  # and a step count each
    # The tracker does not know a gradient that the forward pass computes for one.
    held = estimate.gradients + estimate.activations + estimate.working
    assert peak["GRAD"] + peak["ACT"] + peak["TEMP"] == pytest.approx(held, rel=TOLERANCE)
    assert peak["Total"] == pytest.approx(estimate.total, rel=TOLERANCE)


def test_what_sharding_tensor_parallelism_and_muon_save() -> None:
    config = replace(SHAPES["wide head, gelu, untied"], n_kv_heads=4)
    recipe = Recipe(model=config)

    def estimate(recipe: Recipe, shard: int = 1) -> Any:
        return memory_estimate(recipe, placement(config.placement), shard=shard, micro_batch_size=2)

    alone, sharded = estimate(recipe), estimate(recipe, shard=4)
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(sharded, part) == getattr(alone, part) // 4
    assert sharded.activations == alone.activations
    split = estimate(replace(recipe, parallel=ParallelConfig(tensor=2)))
    matrices = sum(p.numel() for n, p in Transformer(config).named_parameters() if "proj" in n)
    assert alone.weights - split.weights == 4 * matrices // 2
    assert split.activations < alone.activations
    muon = estimate(replace(recipe, optimizer=OptimizerConfig(name="muon")))
    assert alone.optimizer - muon.optimizer == 4 * matrices


def test_muon_saves_nothing_on_experts() -> None:
    recipe = Recipe(model=SHAPES["experts"], optimizer=OptimizerConfig(name="muon"))
    estimate = memory_estimate(recipe, placement("pre-norm"), micro_batch_size=2)
    groups = decay_groups(Transformer(SHAPES["experts"], placement("pre-norm")), recipe.optimizer)
    values = {"muon": 1, "adamw": 2}
    assert estimate.optimizer == 4 * sum(
        values[group.optimizer] * parameter.numel()
        for group in groups
        for parameter in group.members.values()
    )
