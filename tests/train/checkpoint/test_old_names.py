import re
from pathlib import Path

import torch

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.recipe.config import OptimizerConfig
from hybridnorm.train.checkpoint.storage import load_checkpoint, save_checkpoint, training_state
from hybridnorm.train.optim.build import build_optimizer
from hybridnorm.train.optim.state import materialize
from hybridnorm.train.world import World


def test_checkpoints_load_that_call_head_norms_otherwise(tmp_path: Path) -> None:
    """`q_norm.weight` was `q_norm.norm.weight`, in the optimizer's state as well."""
    config = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, vocab_size=10)
    saved, loaded = Transformer(config), Transformer(config, seed=1)
    optimizers = [build_optimizer(model, OptimizerConfig()) for model in (saved, loaded)]
    for optimizer in optimizers:
        materialize(optimizer)
    torch.nn.init.normal_(saved.blocks[0].attention.branch.v_norm.weight)
    state = training_state(saved, optimizers[0])
    renamed = {re.sub(r"\b([qkv]_norm)\.", r"\1.norm.", name): x for name, x in state.items()}
    assert len(renamed.keys() - state.keys()) == 3 * 4  # weight, two moments, step
    world = World(torch.device("cpu"))
    path = save_checkpoint(tmp_path, 1, renamed, {}, world)
    found = training_state(loaded, optimizers[1])
    load_checkpoint(path, found, world)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
