"""A recipe: everything that determines a training run, as TOML files and overrides. No torch."""

import tomllib
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import tomli_w

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.model.config import preset
from hybridnorm.tables import build, check_field, to_table
from hybridnorm.train.config import Recipe


def builtin(folder: str = "") -> dict[str, Traversable]:
    """The built-in recipes (or, with `folder` "studies", studies) by name."""
    room = files("hybridnorm") / "recipes" / folder
    found = [entry for entry in room.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry for entry in found}


def read_toml(name_or_path: str | Path, folder: str = "") -> dict[str, Any]:
    """The table of a `.toml` file, or of a built-in recipe or study.

    Raises:
        HybridNormError: no such file or name, or not TOML.
    """
    text = str(name_or_path)
    kind = "study" if folder else "recipe"
    if text.endswith(".toml"):
        source: Traversable = Path(text)
    else:
        known = builtin(folder)
        if text not in known:
            hint = nearest(text, known)
            raise HybridNormError(f"{kind}: unknown name {text!r}; {hint}; or name a .toml file")
        source = known[text]
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise HybridNormError(f"{kind}: cannot read {text}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HybridNormError(f"{kind}: {text} is not TOML: {error}") from None


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """A recipe by built-in name or path, with dotted overrides such as `{"model.d_model": 64}`.

    `[model] preset = "151M"` starts from one of the presets. A relative placement file is looked
    for beside the recipe.

    Raises:
        HybridNormError: an unknown name, or a field that is unknown, ill-typed or invalid.
    """
    table = read_toml(name_or_path)
    for dotted, value in (overrides or {}).items():
        _assign(table, dotted, value)
    model = table.get("model", {})
    if isinstance(model, Mapping) and "preset" in model:
        model = dict(model)
        table["model"] = {**to_table(preset(str(model.pop("preset")))), **model}
    recipe = build(Recipe, table)
    beside = Path(name_or_path).parent / recipe.model.placement
    if recipe.model.placement.endswith(".toml") and beside.is_file():
        _assign(table, "model.placement", str(beside))
        recipe = build(Recipe, table)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The full recipe as TOML; reading it again gives an equal recipe."""
    return tomli_w.dumps(to_table(recipe))


def _assign(table: dict[str, Any], dotted: str, value: object) -> None:
    *path, name = dotted.split(".")
    cls: Any = Recipe
    for part in path:
        check_field(part, cls.__dataclass_fields__, dotted)
        cls = cls.__dataclass_fields__[part].type
        table = table.setdefault(part, {})
        if not is_dataclass(cls):
            raise HybridNormError(f"{dotted}: unknown field; {part} has none")
        if not isinstance(table, dict):
            raise HybridNormError(f"{part}: expected a table, got {table!r}")
    check_field(name, cls.__dataclass_fields__, dotted)
    table[name] = value
