"""`hybridnorm diagnose`: probes on a recipe, a run or a study, and the page of what they found."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hybridnorm.data import open_data
from hybridnorm.diagnose.catalogue import named_probes, quick_probes
from hybridnorm.diagnose.hook import FOLDER, Probing, recorded_probes, table_path
from hybridnorm.diagnose.page import nonfinite_from, write_page, write_tables
from hybridnorm.diagnose.table import Arms, Table, read_table
from hybridnorm.errors import HybridNormError
from hybridnorm.files import write_whole
from hybridnorm.placements import Placement, placement, placement_from_dict
from hybridnorm.recipe import Recipe, dump_recipe, load_recipe, run_name
from hybridnorm.terminal import Screen
from hybridnorm.train import (
    Trainer,
    World,
    build_model,
    check_identity,
    find_checkpoint,
    first_nonfinite,
    load_checkpoint,
    open_world,
    resolve_auto,
    set_threads,
    show_problems,
    training_state,
    with_vocabulary,
)


@dataclass(frozen=True)
class _Target:
    """What is diagnosed: a recipe at initialization, or a run at a checkpoint."""

    title: str
    recipe: Recipe
    placement: Placement
    out: Path
    checkpoint: Path | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """A line for each damaged checkpoint that was passed over."""


def diagnose(
    target: str,
    overrides: Mapping[str, object],
    probes: Sequence[str],
    *,
    checkpoint: str = "last",
    out: Path | None = None,
) -> None:
    """Measure `target`, write the tables and diagnose.html; every rank calls it.

    Args:
        target: a recipe, the directory of a run, or the folder of a study.
        overrides: dotted recipe fields.
        probes: their names; none: all that need no training of their own.

    Raises:
        HybridNormError: bad input, no checkpoint, too little memory, or what is not finite.
    """
    names = [probe.name for probe in named_probes(probes)]
    folder = Path(target)
    if (folder / "runs").is_dir():
        _gather(folder, names, out or folder / FOLDER)
    else:
        if folder.is_dir():
            chosen = _run(folder, overrides, checkpoint, out)
        else:
            chosen = _initialization(target, overrides, out)
        with open_world(chosen.recipe.train.device, chosen.recipe.parallel) as world:
            _measure(world, chosen, names or quick_probes())


def _initialization(name: str, overrides: Mapping[str, object], out: Path | None) -> _Target:
    recipe = load_recipe(name, overrides).in_steps()
    found = placement(recipe.model.placement)
    title = f"{found.title or found.name} at initialization"
    return _Target(title, recipe, found, out or Path(FOLDER) / run_name(name, recipe))


def _run(folder: Path, overrides: Mapping[str, object], which: str, out: Path | None) -> _Target:
    if not (folder / "recipe.toml").exists():
        raise HybridNormError(f"{folder}: neither a run (no recipe.toml) nor a study (no runs/)")
    path, meta, problems = find_checkpoint(folder, which)
    recipe = load_recipe(folder / "recipe.toml", overrides).in_steps()
    found = placement_from_dict(meta["placement"])
    when = f"after step {meta['step']}" if meta["step"] else "as it was imported"
    title = f"{folder.name} {when}"
    return _Target(title, recipe, found, out or folder / FOLDER, path, meta, problems)


def _measure(world: World, target: _Target, names: Sequence[str]) -> None:
    console = Screen(quiet=not world.is_main)
    show_problems(target.problems, console)
    data = world.on_main(lambda: open_data(target.recipe.data, console=console))
    recipe = with_vocabulary(target.recipe, data.tokenizer)
    set_threads(recipe.train.threads)
    recipe = replace(recipe, train=replace(recipe.train, compile="off"))
    recipe, _ = world.on_main(
        lambda: resolve_auto(recipe, target.placement, world.device, world.size)
    )

    def start(change: Callable[[Recipe], Recipe]) -> Trainer:
        changed = change(recipe)
        model = build_model(changed, target.placement, world)
        return Trainer(changed, model, data, target.out, world)

    trainer = start(lambda recipe: recipe)
    if (path := target.checkpoint) is not None:
        check_identity(target.meta, trainer.identity, path)
        load_checkpoint(path, training_state(trainer.model, None), world)
        trainer.step = target.meta["step"]
    hook = Probing(named_probes(names), start)
    trainer.rehearse(hook)
    _check_finite(trainer, hook.tables)
    if world.is_main:
        tables = {name: _with_recorded(target, name, table) for name, table in hook.tables.items()}
        write_tables(tables, target.out)
        write_whole(target.out / "recipe.toml", dump_recipe(recipe))
        about = _about(target, recipe)
        arms: dict[str, Arms] = {name: {"": [table]} for name, table in tables.items() if table}
        page = write_page(target.title, about, arms, target.out)
        console.print(f"page: {page}")


def _with_recorded(target: _Target, name: str, measured: Table) -> Table:
    """With what the run recorded at other steps."""
    if target.checkpoint is None:
        return measured
    path = table_path(target.checkpoint.parent.parent, name)
    recorded = read_table(path) if path.exists() else []
    now = {row.step for row in measured}
    return sorted([*(row for row in recorded if row.step not in now), *measured])


def _check_finite(trainer: Trainer, tables: Mapping[str, Table]) -> None:
    """Raise `HybridNormError` naming where numbers first are not finite; all ranks call it."""
    if not any(nonfinite_from(tables[name]) for name in quick_probes() if name in tables):
        return
    batch, _ = next(trainer.held_out_batches(1))
    found = trainer.world.gather(lambda: first_nonfinite(trainer.model, batch))
    place = next(filter(None, found), "the gradients")
    place = re.sub(r"blocks\.(\d+)\.", lambda name: f"block {int(name[1]) + 1}, ", place)
    raise HybridNormError(
        f"not everything is finite, first {place}: the weights are ruined, or overflow this dtype; "
        "name an earlier --checkpoint, or --train.dtype fp32"
    )


def _gather(folder: Path, names: Sequence[str], out: Path) -> None:
    """The page of what the runs of a study recorded, seeds together."""
    found = recorded_probes(folder / "runs", names)
    if not found:
        raise HybridNormError(
            f"{folder}: its runs recorded no probes; set diagnose.probes in the study, such as "
            "--diagnose.probes gradients-ffn"
        )
    about = [
        "What the runs recorded, arm beside arm: the mean over the seeds, in a band from the "
        "lowest to the highest."
    ]
    page = write_page(f"{folder.name}: probes", about, found, out)
    Screen().print(f"page: {page}")


def _about(target: _Target, recipe: Recipe) -> list[str]:
    model, train = recipe.model, recipe.train
    when = "its initial weights" if target.checkpoint is None else f"{target.checkpoint.name}"
    return [
        f"{target.placement.title or target.placement.name}: {model.n_layers} blocks, d_model "
        f"{model.d_model}, seed {recipe.seed}, {train.dtype}; {when}.",
        f"Gradients are those of the next step's batch ({train.batch_size} sequences of "
        f"{train.seq_len} tokens), before clipping; all else is measured on at most "
        f"{recipe.diagnose.sequences} held-out sequences. A step is named by the number of the "
        "step that would follow. Layers are blocks, from 1; of the stream, 0 is the embedding.",
    ]
