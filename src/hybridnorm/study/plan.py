"""A study: a recipe, what is set for all runs, and a grid of what varies. No torch.

title = "..."
note = "..."                       # what readers of the report should know
recipe = "demo"                    # a built-in recipe or a .toml file
compare = "model.placement"        # the field whose values are compared
baseline = "pre-norm"              # the value the others are compared with
correct = "none"                   # or "holm": p values for the number of arms
extend = false                     # more learning rates where the best is the last one tried
floor = false                      # runs of equal things, for what chance alone does
within = ["model.preset"]          # fields of the grid whose values are compared within, not across
[set]                              # dotted recipe fields, the same in all runs; "None" unsets one
train.steps = 200
[grid]                             # dotted recipe fields, every combination is a run
model.placement = ["pre-norm", "hybridnorm", "mine.toml"]
seed = [0, 1, 2]

Files that it names, a recipe or placements, lie beside it.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from hybridnorm.errors import HybridNormError, naming, nearest
from hybridnorm.placements import Placement, placement
from hybridnorm.recipe import Recipe, keep_choices, load_recipe, read_toml
from hybridnorm.strict_toml import build

PLACEMENT, RATE, SEED = "model.placement", "optimizer.lr", "seed"
GRID, EXTENSION, FLOOR = "grid", "extension", "floor"  # parts of a study
COPIES = "placements"  # beside a study in its own folder: the placement files that it names
_LONGEST = 200  # bytes of a run's name: file systems take 255, of longer names around it, too


@dataclass(frozen=True, kw_only=True)
class _File:
    """What a study's file declares, besides its grid."""

    recipe: str = "demo"
    title: str = ""
    note: str = ""
    compare: str = PLACEMENT
    correct: Literal["none", "holm"] = "none"
    extend: bool = False
    floor: bool = False
    within: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One run of a study: where it is in the grid, its full recipe, and its placement."""

    name: str
    values: Mapping[str, Any]
    recipe: Recipe
    placement: Placement
    part: str = GRID
    """Of the study: what its file names, more learning rates, or runs for the noise floor."""

    def same_as(self, other: "Run") -> bool:
        """Whether the two train the same thing, whatever their placements are called."""
        return _content(self) == _content(other)

    def changed(self, part: str, changes: Mapping[str, Any]) -> "Run":
        """This run with other values of dotted fields, in another part of the study."""
        recipe = self.recipe
        for dotted, value in changes.items():
            section, _, name = dotted.rpartition(".")
            inner = replace(getattr(recipe, section), **{name: value}) if section else value
            recipe = replace(recipe, **{section or name: inner})
        found = placement(changes[PLACEMENT]) if PLACEMENT in changes else self.placement
        values = {**self.values, **changes}
        name = _run_name(values)
        # Only what is no arm may share its values with one.
        return Run(f"{FLOOR}-{name}" if part == FLOOR else name, values, recipe, found, part)


@dataclass(frozen=True, kw_only=True)
class Study(_File):
    """The runs of a study and how they are compared. Arrays are tuples."""

    name: str
    baseline: Any
    common: Mapping[str, Any]
    grid: Mapping[str, list[Any]]
    runs: list[Run] = field(default_factory=list)

    def to_table(self) -> dict[str, Any]:
        """The study as a file of its own, overrides included."""
        return {
            **{one.name: getattr(self, one.name) for one in fields(_File)},
            "within": list(self.within),
            "baseline": _written(self.baseline),
            "set": {name: _written(value) for name, value in self.common.items()},
            "grid": {name: [_written(v) for v in values] for name, values in self.grid.items()},
        }

    def with_choices_of(self, recorded: Recipe) -> "Study":
        """The study whose runs all have the dtype and the compilation of a run of it."""
        runs = [replace(run, recipe=keep_choices(run.recipe, recorded)) for run in self.runs]
        return replace(self, runs=runs)

    @property
    def arms(self) -> list[Any]:
        """The compared values, in the order of the grid."""
        return self.grid[self.compare]

    @property
    def placements(self) -> dict[str, Placement]:
        """The placements of the runs, by what the grid or the recipe calls them."""
        return {
            str(run.values.get(PLACEMENT, run.recipe.model.placement)): run.placement
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
        study = _study(Path(name_or_path), table, {})
    return _study(Path(name_or_path), table, overrides) if overrides else study


def study_of(path: Path, table: Mapping[str, Any]) -> Study:
    """The study whose file is `table`, as if it were at `path`."""
    return _study(path, table, {})


def _study(path: Path, table: Mapping[str, Any], overrides: Mapping[str, object]) -> Study:
    grid, common = (_fields(table.get(part, {}), part) for part in ("grid", "set"))
    others = {"grid", "set", "baseline"}
    file = build(_File, {key: value for key, value in table.items() if key not in others})
    if both := [name for name in grid if name in common]:
        raise HybridNormError(f"set.{both[0]}: is in the grid, too; keep one")
    for dotted, value in overrides.items():
        if dotted in grid or isinstance(value, list):
            common.pop(dotted, None)
            grid[dotted] = value if isinstance(value, list) else [value]
        else:
            common[dotted] = value
    _check_lists(grid)
    recipe = file.recipe
    if recipe.endswith(".toml"):
        recipe = str((path.parent / recipe).resolve())
    # A placement typed on the command line is looked for as every verb does it.
    beside = None if PLACEMENT in overrides else path.parent
    runs = _runs(recipe, common, grid, beside)
    if file.compare not in grid:
        raise HybridNormError(
            f"compare: {file.compare!r} is not in the grid; {nearest(file.compare, grid)}"
        )
    baseline = _frozen(table.get("baseline", grid[file.compare][0]))
    if baseline not in grid[file.compare]:
        hint = nearest(str(baseline), map(str, grid[file.compare]))
        raise HybridNormError(f"baseline: {baseline!r} is not compared; {hint}")
    for apart in file.within:
        if apart not in grid or apart in (file.compare, "seed"):
            hint = nearest(apart, [name for name in grid if name not in (file.compare, "seed")])
            raise HybridNormError(f"within: {apart!r} is no setting of the grid; {hint}")
    name = _file_name(path.stem)
    if file.extend and (file.compare == RATE or len(grid.get(RATE, [])) < 2):
        raise HybridNormError(
            f"extend: needs two or more values of {RATE} in the grid of a study that compares "
            "something else"
        )
    file = replace(file, title=file.title or name, recipe=recipe)
    return Study(**vars(file), name=name, baseline=baseline, common=common, grid=grid, runs=runs)


def _runs(
    recipe: str, common: Mapping[str, Any], grid: Mapping[str, list[Any]], beside: Path | None
) -> list[Run]:
    runs: dict[str, Run] = {}
    same: dict[tuple[Recipe, Placement], str] = {}
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        full = _recipe(recipe, {**common, **values}, beside)
        run = Run(_run_name(values), values, full, placement(full.model.placement))
        # A file system may take capitals for small letters.
        if runs.setdefault(run.name.casefold(), run) is not run:
            raise HybridNormError(
                f"grid: two runs would be called {run.name!r}; rename or drop one"
            )
        if (other := same.setdefault(_content(run), run.name)) != run.name:
            raise HybridNormError(
                f"grid: {other} and {run.name} are the same run: what differs in the grid is set "
                "for all of them, or means the same; drop one"
            )
    return list(runs.values())


def _content(run: Run) -> tuple[Recipe, Placement]:
    """What determines the run: its recipe, and its placement whatever that is called."""
    model = replace(run.recipe.model, placement="")
    return replace(run.recipe, model=model), run.placement


def _recipe(name: str, settings: dict[str, Any], beside: Path | None) -> Recipe:
    """The full recipe of a run; a placement file is looked for in the folder `beside` first."""
    given = settings.get(PLACEMENT)
    if beside is not None and isinstance(given, str) and given.endswith(".toml"):
        places = beside / given, beside / COPIES / Path(given).name
        found = [str(place.resolve()) for place in places if place.is_file()]
        settings[PLACEMENT] = (found or [given])[0]
    return load_recipe(name, settings).in_steps()


def _fields(table: object, where: str) -> dict[str, Any]:
    """Values by dotted field; `model.d_ff = 64` and `"model.d_ff" = 64` are the same."""
    if not isinstance(table, Mapping):
        raise HybridNormError(f"{where}: expected a table of dotted recipe fields, got {table!r}")
    found: dict[str, Any] = {}
    for dotted, value in _leaves(table):
        if dotted in found:
            raise HybridNormError(f"{where}.{dotted}: is there twice; keep one")
        found[dotted] = value
    return found


def _leaves(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield path + name, [_frozen(v) for v in value] if isinstance(value, list) else value


def _frozen(value: object) -> object:
    """An array as a tuple, as the command line gives it: values of a grid are compared."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _written(value: object) -> object:
    """As a study's file has it."""
    return "None" if value is None else value


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
    return _file_name("-".join(parts))


def _file_name(text: str) -> str:
    """The text as a name in a folder: neither hidden nor the way up, and not too long."""
    name = re.sub(r"^\.+", "_", text).encode(errors="replace")
    if len(name) > _LONGEST:
        digest = hashlib.sha256(name).hexdigest()[:8].encode()
        name = name[: _LONGEST - 9] + b"-" + digest
    return name.decode(errors="ignore")
