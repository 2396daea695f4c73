"""A run that begins with a model from elsewhere."""

from dataclasses import replace
from pathlib import Path

import torch

from hybridnorm.data import DataConfig
from hybridnorm.model import Transformer
from hybridnorm.recipe import Recipe
from hybridnorm.train.checkpoint import save_checkpoint, training_state
from hybridnorm.train.run_dir import PLACEMENT, describe_run, model_identity
from hybridnorm.train.world import World


def write_imported(
    folder: Path, run_dir: Path, model: Transformer, tokenizer: Path | None, seq_len: int
) -> None:
    """Write a run into `folder` whose checkpoint of step 0 holds the weights of `model`.

    Args:
        run_dir: where the folder will lie.
        tokenizer: the model's, a tokenizer.json; None: it has to be put into the run before one can
            train on.

    Raises:
        HybridNormError: the folder cannot be written.
    """
    # Without one, too: text in the tokens of another tokenizer would be nonsense to the model.
    data = DataConfig(tokenizer=str(run_dir.absolute() / "tokenizer.json"))
    recipe = Recipe(model=replace(model.config, placement=PLACEMENT), data=data)
    recipe = replace(recipe, train=replace(recipe.train, seq_len=seq_len))
    world = World(torch.device("cpu"))
    describe_run(folder, recipe, model.placement, tokenizer, world.device)
    meta = {
        **model_identity(model.config, model.placement),
        "imported": True,  # weights alone: no data yet, no optimizer
        "seconds": 0.0,
        "val_loss": None,
        "skipped_steps": (0, 0),
        "hooks": {},
    }
    save_checkpoint(folder, 0, training_state(model, None), meta, world)
