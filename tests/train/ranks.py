"""Run by torchrun: trains several placements on one set of ranks, one launch for all.

torchrun ... tests/train/ranks.py OUT PLACEMENTS RECIPE [dotted.field=value ...]
"""

import hashlib
import json
import sys
import tomllib
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from hybridnorm.placements import placement
from hybridnorm.recipe.load import load_recipe
from hybridnorm.train.run import build_model, train_on
from hybridnorm.train.world import end_rank, open_world


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights, put together from the ranks."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        digest.update(whole.detach().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    torch.set_num_threads(1)
    out, names, recipe_path = Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
    fields = {k: v for word in sys.argv[4:] for k, v in [word.split("=", 1)]}
    overrides = {k: tomllib.loads(f"x = {v}")["x"] for k, v in fields.items()}
    recipes = {
        name: load_recipe(recipe_path, {**overrides, "model.placement": name}).in_steps()
        for name in names
    }
    prints = {}
    with open_world("cpu", recipes[names[0]].parallel) as world:
        for name, recipe in recipes.items():
            train_on(world, recipe, out / name, resume=(out / name).exists())
            whole = load_recipe(out / name / "recipe.toml")  # with the vocabulary size
            prints[name] = fingerprint(build_model(whole, placement(name), world))
        if world.is_main:
            (out / "weights.json").write_text(json.dumps(prints))


if __name__ == "__main__":
    main()
    end_rank()
