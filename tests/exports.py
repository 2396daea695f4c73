"""Models for the tests of exports: every weight away from where it started."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybridnorm.data.tokenizer import ByteTokenizer
from hybridnorm.interop.huggingface.export import OURS, to_transformers
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import strategies
from hybridnorm.recipe import Recipe
from hybridnorm.train.trained import Trained

GRAMMAR = ("kv-pre", "pre-qkvc-post")
PLACEMENTS = [*strategies(), *GRAMMAR]
# Odd sizes: a vocabulary that is padded, three blocks, heads in groups.
SHAPE: dict[str, Any] = {
    "d_model": 48,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 2,
    "d_ff": 72,
    "vocab_size": 259,
}
EXPERTS = {"n_experts": 8, "top_k": 3, "d_expert": 24, "moe_every": 2, "n_shared_experts": 1}
EXPERTS |= {"tie_embeddings": False}
IDS = torch.randint(259, (2, 21), generator=torch.Generator().manual_seed(0))


def model(placement: str = "hybridnorm-star", **shape: Any) -> Transformer:
    """A model of ours with no weight left at its initial value."""
    made = Transformer(ModelConfig(placement=placement, **{**SHAPE, **shape}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1 or not parameter.any():
                noise = torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator)
                parameter.add_(noise)
    return made


def trained(made: Transformer, folder: Path) -> Trained:
    """The model as if a run in `folder` had come to it."""
    folder.mkdir(exist_ok=True)
    ByteTokenizer().save(folder)
    return Trained(folder, made, Recipe(), 0, None, [])


def exported(made: Transformer, folder: Path, architecture: str = OURS, **options: Any) -> Any:
    """The model as one of `transformers`, in evaluation mode."""
    dtype = options.get("dtype", torch.float32)
    return to_transformers(trained(made, folder), architecture, dtype).eval()


@torch.no_grad()
def gap(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of `expected`."""
    wide = expected.double()
    return ((actual.double() - wide).norm() / wide.norm()).item()
