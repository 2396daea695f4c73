"""A recipe: everything that determines a training run, as TOML files and overrides. No torch."""

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, get_origin

import tomli_w

from hybridnorm import files
from hybridnorm.errors import HybridNormError, naming, nearest
from hybridnorm.model import preset
from hybridnorm.recipe.config import Recipe
from hybridnorm.recipe.fields import ModelFields, RecipeFields
from hybridnorm.strict_toml import build, check_field, from_annotation, to_table


def builtin(folder: str = "") -> dict[str, Traversable]:
    """The built-in recipes (or, with `folder` "studies", studies) by name."""
    room = resources.files("hybridnorm.recipe") / "builtin" / folder
    found = [entry for entry in room.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry for entry in found}


def read_toml(name_or_path: str | Path, folder: str = "") -> dict[str, Any]:
    """The table of a `.toml` file, or of a built-in recipe or study.

    Raises:
        HybridNormError: no such file or name, or not TOML.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        return files.read_toml(Path(text))
    known = builtin(folder)
    if text not in known:
        kind = "study" if folder else "recipe"
        hint = nearest(text, known)
        raise HybridNormError(f"{kind}: unknown name {text!r}; {hint}; or name a .toml file")
    return files.read_toml(known[text])


def run_name(name_or_path: str | Path, recipe: Recipe) -> str:
    """What a run of `recipe`, loaded by that name, is called where nobody names it."""
    return f"{Path(name_or_path).stem}-{Path(recipe.model.placement).stem}-seed{recipe.seed}"


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """A recipe by built-in name or path, with dotted overrides such as `{"model.d_model": 64}`.

    `[model] preset = "151M"` starts from one of the presets, and an override of `model.preset`
    from another in its place. Either way fields of the model that the file or an override names
    win over the preset: only what nobody names is taken from it. The recipe that is returned has
    all fields and no preset.

    A relative placement file is looked for beside the recipe. An override of an array may be its
    one value.

    Raises:
        HybridNormError: an unknown name, or a field that is unknown, ill-typed or invalid; the
            file is named where it is to blame.
    """
    recipe = load_fields(name_or_path, overrides).recipe()
    given = Path(recipe.model.placement)
    beside = Path(name_or_path).parent / given
    if given.suffix != ".toml" or not beside.is_file():
        return recipe
    if "model.placement" in (overrides or {}) and given.is_file() and not given.samefile(beside):
        raise HybridNormError(
            f"model.placement: {given} is here and beside {name_or_path}; give its full path"
        )
    return replace(recipe, model=replace(recipe.model, placement=str(beside)))


def load_fields(
    name_or_path: str | Path, overrides: Mapping[str, object] | None = None
) -> RecipeFields:
    """As `load_recipe`, with the name of the preset; for the help."""
    table = read_toml(name_or_path)
    with naming(name_or_path):
        recipe = _fields(table)
    if overrides:
        for dotted, value in overrides.items():
            _assign(table, dotted, value)
        recipe = _fields(table)
        if "data.source" in overrides and recipe.data.prepared and "data.prepared" not in overrides:
            raise HybridNormError(
                "data.source: is not read where data.prepared names prepared sets; add "
                "--data.prepared None, or prepare it and name its folder there"
            )
    return recipe


def _fields(table: Mapping[str, Any]) -> RecipeFields:
    model = table.get("model", {})
    if isinstance(model, Mapping) and "preset" in model:
        name = from_annotation(ModelFields, "preset", model["preset"], "model.preset")
        try:
            shape = {} if name is None else to_table(preset(str(name)))
        except HybridNormError as error:
            raise HybridNormError(f"model.{error}") from None
        table = {**table, "model": {**shape, **model}}
    return build(RecipeFields, table)


def dump_recipe(recipe: Recipe) -> str:
    """The full recipe as TOML; reading it again gives an equal recipe."""
    return tomli_w.dumps(to_table(recipe))


def _assign(table: dict[str, Any], dotted: str, value: object) -> None:
    *path, name = dotted.split(".")
    cls: Any = RecipeFields
    for part in path:
        check_field(part, cls, dotted)
        cls = cls.__dataclass_fields__[part].type
        table = table.setdefault(part, {})
        if not is_dataclass(cls):
            raise HybridNormError(f"{dotted}: unknown field; {part} has none")
        if not isinstance(table, dict):
            raise HybridNormError(f"{part}: expected a table, got {table!r}")
    check_field(name, cls, dotted)
    is_array = get_origin(cls.__dataclass_fields__[name].type) is tuple
    table[name] = [value] if is_array and not isinstance(value, list | tuple) else value
