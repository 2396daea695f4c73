"""What a study's folder holds before the first run, so that it can be continued, moved or copied.

study.toml           the study as one more study; its files are here, too:
base.toml            the recipe that it starts from, unless that is a built-in one
placements/          the placement files that it names
recipes/RUN.toml     the full recipe of each run
command.txt          what was typed
crashes.json         why runs did not come to their end, in the newest call
"""

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_json, read_text, write_whole
from hybridnorm.recipe import Recipe, dump_recipe, load_recipe, read_toml
from hybridnorm.study.plan import COPIES, PLACEMENT, Run, Study


def recipe_file(folder: Path, run: Run) -> Path:
    """Where a run's full recipe is."""
    return folder / "recipes" / f"{run.name}.toml"


def run_dir(folder: Path, run: Run) -> Path:
    """Where a run writes what it comes to."""
    return folder / "runs" / run.name


def is_started(folder: Path, run: Run) -> bool:
    """Whether a run's directory is a run; one without a recipe is free."""
    return (run_dir(folder, run) / "recipe.toml").exists()


def recorded_recipe(folder: Path, runs: Iterable[Run]) -> Recipe | None:
    """The recipe of a run that an earlier call has started."""
    paths = (recipe_file(folder, run) for run in runs if is_started(folder, run))
    return next((load_recipe(path) for path in paths if path.exists()), None)


def environments(folder: Path, runs: Iterable[Run]) -> dict[str, list[Any]]:
    """What the runs were made by: every value that a field of environment.json has in one of them.

    A run without it, or with a damaged one, is left out: its numbers are what they are.
    """
    found: dict[str, list[Any]] = {}
    for run in runs:
        with contextlib.suppress(HybridNormError):
            for name, value in read_json(run_dir(folder, run) / "environment.json").items():
                if value not in found.setdefault(name, []):
                    found[name].append(value)
    return found


def write_crashes(folder: Path, crashes: Mapping[str, str]) -> None:
    """Keep why runs crashed, by name."""
    write_whole(folder / "crashes.json", json.dumps(crashes, indent=1) + "\n")


def read_crashes(folder: Path) -> dict[str, str]:
    """What `write_crashes` kept.

    Raises:
        HybridNormError: the file is damaged.
    """
    path = folder / "crashes.json"
    return {name: str(why) for name, why in read_json(path).items()} if path.exists() else {}


def claim(study: Study, folder: Path, command: str) -> None:
    """Write all of it, the recipes first; an unfinished start is a new one.

    Raises:
        HybridNormError: a run that has started has another recipe or placement, or other arms were
            to be compared or otherwise, or the folder cannot be written.
    """
    files: dict[Path, str] = {}
    _check_declared(study, folder)
    for run in study.runs:
        for path, text in _files(folder, run).items():
            if is_started(folder, run) and path.exists() and read_text(path) != text:
                raise HybridNormError(
                    f"{path}: this folder holds the run with another {path.parent.name[:-1]}; "
                    "name another --dir"
                )
            files[path] = text
    files |= _study_files(study, folder)
    files[folder / "command.txt"] = command + "\n"
    for path, text in files.items():
        write_whole(path, text)


def _check_declared(study: Study, folder: Path) -> None:
    """Raise `HybridNormError` if other comparisons, or fewer, are made than before the runs."""
    path = folder / "study.toml"
    if not path.exists() or not any(folder.glob("runs/*/recipe.toml")):
        return
    before, now = read_toml(str(path)), study.to_table()
    for name in ("compare", "baseline", "correct", "within"):
        if (was := before.get(name, now[name])) != now[name]:
            raise HybridNormError(
                f"{path}: {name} was {was!r} when the runs started; what is compared, and how, is "
                "declared before them; name another --dir"
            )
    arms = now["grid"][study.compare]
    if gone := [arm for arm in before["grid"].get(study.compare, []) if arm not in arms]:
        raise HybridNormError(
            f"{path}: {gone[0]} was compared when the runs started, and p values count it; keep "
            "it, or name another --dir"
        )


def _files(folder: Path, run: Run) -> dict[Path, str]:
    """A run's recipe and, where it has one, its placement file."""
    name, recipe = run.recipe.model.placement, run.recipe
    files = {}
    if name.endswith(".toml"):
        copy = Path(COPIES) / Path(name).name
        files[folder / copy] = read_text(Path(name))
        recipe = replace(recipe, model=replace(recipe.model, placement=f"../{copy}"))
    return {recipe_file(folder, run): dump_recipe(recipe), **files}


def _study_files(study: Study, folder: Path) -> dict[Path, str]:
    table, files = study.to_table(), {}
    if study.recipe.endswith(".toml"):
        files[folder / "base.toml"] = tomli_w.dumps(read_toml(study.recipe))
        table["recipe"] = "base.toml"
        if PLACEMENT not in study.grid:  # the recipe's own lies beside the recipe, not here
            table["set"].setdefault(PLACEMENT, study.runs[0].recipe.model.placement)
    return {**files, folder / "study.toml": tomli_w.dumps(table)}
