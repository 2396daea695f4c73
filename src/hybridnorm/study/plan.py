"""A study: a recipe, what is set for all runs, and a grid of what varies. No torch.

title = "..."
recipe = "demo"                    # a built-in recipe or a .toml file
compare = "model.placement"        # the field whose values are compared
baseline = "pre-norm"              # the value the others are compared with
[set]                              # dotted recipe fields, the same in all runs; "None" unsets one
"train.steps" = 200
[grid]                             # dotted recipe fields, every combination is a run
"model.placement" = ["pre-norm", "hybridnorm"]
"seed" = [0, 1, 2]
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError, naming, nearest
from hybridnorm.placements import Placement, placement
from hybridnorm.recipe import Recipe, load_recipe, read_toml
from hybridnorm.strict_toml import build


@dataclass(frozen=True, kw_only=True)
class _File:
    recipe: str = "demo"
    title: str = ""
    compare: str = "model.placement"


@dataclass(frozen=True)
class Run:
    """One run of a study: where it is in the grid, and its full recipe."""

    name: str
    values: Mapping[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class Study:
    """The runs of a study and how they are compared."""

    name: str
    title: str
    recipe: str
    compare: str
    baseline: Any
    common: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    runs: list[Run] = field(default_factory=list)

    def to_table(self) -> dict[str, Any]:
        """The study as a file of its own, overrides included."""
        head = {"title": self.title, "recipe": self.recipe, "compare": self.compare}
        grid = {name: ["None" if v is None else v for v in vs] for name, vs in self.grid.items()}
        common = {name: "None" if v is None else v for name, v in self.common.items()}
        tables = {"set": common, "grid": grid}
        return {**head, "baseline": self.baseline, **tables}

    @property
    def arms(self) -> list[Any]:
        """The compared values, in the order of the grid."""
        return self.grid[self.compare]

    @property
    def placements(self) -> dict[str, Placement]:
        """The placements of the runs, by what the grid or the recipe calls them."""
        return {
            str(run.values.get("model.placement", run.recipe.model.placement)): placement(
                run.recipe.model.placement
            )
            for run in self.runs
        }


def load_study(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Study:
    """A built-in study or a .toml file; `overrides` (dotted recipe fields) go to every run.

    An override of a field of the grid replaces its values; a list of values makes a field part of
    the grid. An array is given as a tuple.

    Raises:
        HybridNormError: an unknown name, or a broken field; it is named, and its file.
    """
    table = read_toml(name_or_path, "studies")
    with naming(name_or_path):
        study = _study(Path(name_or_path).stem, table, {})
    return _study(study.name, table, overrides) if overrides else study


def _study(name: str, table: Mapping[str, Any], overrides: Mapping[str, object]) -> Study:
    grid, common = (_table(table.get(part, {}), part) for part in ("grid", "set"))
    apart = {"grid", "set", "baseline"}
    file = build(_File, {key: value for key, value in table.items() if key not in apart})
    for dotted, value in overrides.items():
        if dotted in grid or isinstance(value, list):
            common.pop(dotted, None)
            grid[dotted] = value if isinstance(value, list) else [_plain(value)]
        else:
            common[dotted] = _plain(value)
    _check_lists(grid)
    if file.compare not in grid:
        raise HybridNormError(
            f"compare: {file.compare!r} is not in the grid; {nearest(file.compare, grid)}"
        )
    baseline = table.get("baseline", grid[file.compare][0])
    if baseline not in grid[file.compare]:
        hint = nearest(str(baseline), map(str, grid[file.compare]))
        raise HybridNormError(f"baseline: {baseline!r} is not compared; {hint}")
    runs = _runs(file.recipe, common, grid)
    recipe = str(Path(file.recipe).resolve()) if file.recipe.endswith(".toml") else file.recipe
    title = file.title or name
    return Study(name, title, recipe, file.compare, baseline, common, grid, runs)


def _runs(recipe: str, common: Mapping[str, Any], grid: Mapping[str, list[Any]]) -> list[Run]:
    runs: dict[str, Run] = {}
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        full = load_recipe(recipe, {**common, **values}).in_steps()
        placement(full.model.placement)  # an unknown one fails now, not in a run
        run = Run(_run_name(values), values, full)
        if run.name in runs:
            raise HybridNormError(
                f"grid: two runs would be called {run.name!r}; rename or drop one"
            )
        runs[run.name] = run
    return list(runs.values())


def _plain(value: object) -> object:
    """As a study's file has it."""
    return list(value) if isinstance(value, tuple) else value


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise HybridNormError(f"{where}: expected a table of dotted recipe fields, got {value!r}")
    return dict(value)


def _check_lists(grid: Mapping[str, object]) -> None:
    if not grid:
        raise HybridNormError("grid: a study needs a [grid] of dotted recipe fields")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise HybridNormError(f"grid.{name}: expected a non-empty array, got {values!r}")


def _run_name(values: Mapping[str, Any]) -> str:
    """ "hybridnorm-seed0-lr0.003": readable, and the same for the same values."""
    parts = []
    for dotted, value in values.items():
        name = dotted.rpartition(".")[2]
        shown = {"placement": Path(str(value)).stem, "preset": str(value)}
        text = shown.get(name, f"{name}{value}")
        parts.append(re.sub(r"[^\w.+-]", "_", text.replace("*", "star")))
    return "-".join(parts)
