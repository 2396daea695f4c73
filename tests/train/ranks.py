"""Run by torchrun: several trainings, one after the other, on one set of ranks.

torchrun ... tests/train/ranks.py JOBS
JOBS is the path of a JSON array of {"out", "placements", "recipe", "fields": {dotted: value}} and,
for runs that are continued, "resumes": the folder of runs whose newest checkpoint is forgotten.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hybridnorm.diagnose.hook import probing_hooks
from hybridnorm.placements import placement
from hybridnorm.recipe.load import load_recipe
from hybridnorm.train.checkpoint.retention import list_checkpoints
from hybridnorm.train.run import build_model, train_on
from hybridnorm.train.world import end_rank, open_world


def join_once() -> None:
    """Join the ranks; worlds opened from now on are new meshes of the same processes."""
    dist.init_process_group("gloo")
    dist.init_process_group = dist.destroy_process_group = lambda *_: None


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of all weights, put together from the ranks."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        digest.update(whole.detach().numpy().tobytes())
    return digest.hexdigest()


def copy_first_half(before: Path, out: Path) -> None:
    shutil.copytree(before, out)
    for run_dir in before.glob("*/"):
        shutil.rmtree(out / run_dir.name / "checkpoints" / list_checkpoints(run_dir)[-1].name)


def work(job: dict[str, Any]) -> None:
    """Train each of the placements into its folder below `out`, or go on with what it resumes."""
    out = Path(job["out"])
    recipes = {
        name: load_recipe(job["recipe"], {**job["fields"], "model.placement": name}).in_steps()
        for name in job["placements"]
    }
    prints = {}
    with open_world("cpu", next(iter(recipes.values())).parallel) as world:
        if "resumes" in job:
            world.on_main(lambda: copy_first_half(Path(job["resumes"]), out))
        for name, recipe in recipes.items():
            hooks = probing_hooks(recipe)
            train_on(world, recipe, out / name, resume="resumes" in job, hooks=hooks)
            whole = load_recipe(out / name / "recipe.toml")  # with the vocabulary size
            prints[name] = fingerprint(build_model(whole, placement(name), world))
        if world.is_main:
            (out / "weights.json").write_text(json.dumps(prints))


def main() -> None:
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        join_once()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        work(job)


if __name__ == "__main__":
    main()
    end_rank(0)
