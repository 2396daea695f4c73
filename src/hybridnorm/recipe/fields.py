"""What may be named in a recipe file or on the command line: a recipe's fields and `preset`."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from hybridnorm.model import ModelConfig
from hybridnorm.recipe.config import Recipe


@dataclass(frozen=True, kw_only=True)
class ModelFields(ModelConfig):
    """A decoder-only transformer."""

    preset: str | None = None
    """Shape to start from: demo, demo-deep, demo-moe; a size of the paper: 151M, 285M, 550M,
    543M-deep, 1.2B, 1.2B-released, 7B, MoE-1B-7B; or what stands for one on a CPU: small-151M,
    small-285M, small, small-deep, small-1.2B. Other fields of the model win over it, whether
    the recipe's file or the command line sets them."""


@dataclass(frozen=True, kw_only=True)
class RecipeFields(Recipe):
    """A recipe as it is written; `recipe` is what it comes to."""

    model: ModelFields = field(default_factory=ModelFields)

    def recipe(self) -> Recipe:
        """The same without the name of the preset, whose fields are filled in already."""
        model = ModelConfig(**{f.name: getattr(self.model, f.name) for f in fields(ModelConfig)})
        return Recipe(**{f.name: getattr(self, f.name) for f in fields(Recipe)} | {"model": model})


def field_types(cls: type, prefix: str = "") -> dict[str, Any]:
    """The annotation of every field by its dotted name, such as `optimizer.lr`."""
    found: dict[str, Any] = {}
    for name, annotation in get_type_hints(cls).items():
        if is_dataclass(annotation):
            found |= field_types(annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found[prefix + name] = annotation
    return found
