"""A small model with what probes find in it, and its stream step by step."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybridnorm.diagnose.catalogue import named_probes
from hybridnorm.diagnose.hook import Probing
from hybridnorm.diagnose.table import Table
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.layers import rope
from hybridnorm.model.transformer import Transformer
from hybridnorm.recipe.config import DiagnoseConfig, Recipe, TrainConfig
from hybridnorm.train.batches import Batch
from hybridnorm.train.hooks import State
from hybridnorm.train.world import World

IDS = torch.randint(0, 50, (3, 13), generator=torch.Generator().manual_seed(0))
BATCH = Batch(IDS[:, :-1], IDS[:, 1:], None)


def small(name: str, **fields: object) -> Transformer:
    """A model with gains that are not 1, and streams of different sizes."""
    model = Transformer(
        ModelConfig(
            placement=name, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=24,
            vocab_size=50, vocab_multiple_of=1, init_std=0.2, **fields,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.empty_like(parameter).uniform_(-0.3, 0.3)
    return model


def diagnosed(model: Transformer, *probes: str, batch: Batch = BATCH) -> dict[str, Table]:
    """What the probes find, as in a step of a run on `batch`, which is the held-out text too."""
    recipe = Recipe(
        model=model.config,
        train=TrainConfig(batch_size=4, seq_len=12),
        diagnose=DiagnoseConfig(probes=probes),
    )
    world = World(torch.device("cpu"))
    state = State(recipe, model, world, Path(), 0, lambda limit: iter([(batch, 2)]))
    hook = Probing(named_probes(probes))
    hook.start(state)
    hook.before_forward(state)
    model.losses(*batch).total.backward()
    hook.after_backward(state)
    return hook.tables


def values(table: Table, name: str, sublayer: str = "") -> list[float]:
    rows = [row for row in table if (row.name, row.sublayer) == (name, sublayer)]
    assert {row.step for row in rows} == {1}
    return [row.value for row in sorted(rows)]


def close(expected: object) -> object:
    return pytest.approx(torch.as_tensor(expected).tolist(), rel=1e-4, abs=1e-6)


def streams(model: Transformer, ids: Tensor) -> list[Tensor]:
    """The embedding and what leaves every block, block by block."""
    x = model.embed_norm(model.embed_scale(model.embedding(ids)))
    found = [x]
    for block in model.blocks:
        x, _ = block(x, rope(torch.arange(ids.shape[1]), 4, model.config.rope_theta))
        found.append(x)
    return found


def states(model: Transformer) -> Iterator[list[Tensor]]:
    """Of each of the two sequences that count, the states `(seq, d_model)`."""
    with torch.no_grad():
        for row in BATCH.input_ids[:2]:
            yield [h[0] for h in streams(model, row[None])]


def sublayers(model: Transformer, row: Tensor) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Layer, name, stream in, contribution, stream out by the four lines of the vocabulary."""
    rotation = rope(torch.arange(len(row)), 4, model.config.rope_theta)
    x = model.embed_norm(model.embed_scale(model.embedding(row[None])))
    for layer, block in enumerate(model.blocks, start=1):
        x_block = x
        for name in ("attention", "feed_forward"):
            part = getattr(block, name)
            n = part.input_norm(x)
            inputs = {"rope": rotation} if name == "attention" else {}
            b = part.branch_scale(part.output_norm(part.branch(part.input_scale(n), **inputs)))
            r = {"raw": x, "normed": n, "block_input": x_block}.get(part.skip, x + x_block)
            out = part.post_norm(part.skip_scale(r) + b)
            yield layer, name, x, b, out
            x = out
