"""`hybridnorm advise`: a study that fits a budget of time, and what it recommends. No torch."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from hybridnorm.errors import HybridNormError
from hybridnorm.files import write_whole
from hybridnorm.placements import placement
from hybridnorm.recipe import Recipe, dump_recipe, load_recipe
from hybridnorm.study.folder import recipe_file, run_dir
from hybridnorm.study.jobs import run_all
from hybridnorm.study.plan import PLACEMENT, RATE, SEED, Study, load_study, study_of
from hybridnorm.study.rates import edge
from hybridnorm.study.results import Arm, arms, beside, read_result, read_results
from hybridnorm.study.run import prepare_data, run_study
from hybridnorm.study.statistics import LEVEL, holm, pairs_to_resolve
from hybridnorm.study.tables import interval
from hybridnorm.terminal import Screen
from hybridnorm.text import count

_ARMS = "pre-norm", "hybridnorm-star", "post-norm", "hybridnorm", "hybridnorm-scaled", "peri-ln"
"""In the order of what is known of them; the recipe's own comes first."""
_FACTORS = 1.0, 2.0, 0.5, 4.0, 0.25
"""Of the recipe's learning rate, in the order in which they are worth trying."""
_PLANS = (6, 5), (6, 3), (5, 3), (4, 3), (3, 3), (2, 3)
"""Arms and rates, the best first; each with three seeds."""
_SEEDS, _MOST_SEEDS = 3, 10
_TRIAL, _FEWEST = 20, 100  # steps


def advise(
    name: str,
    overrides: Mapping[str, object],
    folder: Path,
    *,
    minutes: float,
    jobs: int,
    command: str,
) -> None:
    """Run a study of the recipe called `name` that fits the budget, and say what it recommends.

    A folder with a plan goes on with that.

    Raises:
        HybridNormError: as `run_study` does, or too little time.
    """
    console, recipe = Screen(), load_recipe(name, overrides).in_steps()
    recorded = folder / "study.toml"
    if recorded.exists():
        study = load_study(recorded)
        if _model_of(study.runs[0].recipe) != _model_of(recipe):
            raise HybridNormError(
                f"{folder}: holds the advice for another recipe; name another --dir"
            )
        console.print(f"going on with the plan in {folder}, whatever --minutes says")
    else:
        smallest = _study(name, overrides, *_PLANS[-1], _SEEDS)
        prepare_data(smallest, console)
        study = fitting(name, overrides, _pace(smallest, jobs, console), 60 * minutes * jobs)
    steps = study.runs[0].recipe.train.steps
    sizes = ", ".join(f"{len(values)} x {field}" for field, values in study.grid.items())
    console.print(f"plan: {sizes}; {count(len(study.runs), 'run')} of {count(steps, 'step')}")
    run_study(study, folder, jobs=jobs, command=command)
    for line in advice(study, folder, recipe):
        console.print(line)


class Pace(NamedTuple):
    """Seconds of runs that share the machine with as many as it takes at a time."""

    start: float
    """Of a run, besides its steps."""
    step: float
    """With its share of the evaluations."""


def fitting(name: str, overrides: Mapping[str, object], pace: Pace, seconds: float) -> Study:
    """The largest study of a recipe whose runs take `seconds` one after another.

    Too little time for two arms, three rates and three seeds makes the runs shorter.

    Raises:
        HybridNormError: too little time for runs of 100 steps.
    """
    steps = load_recipe(name, overrides).in_steps().train.steps
    for n_arms, n_rates in _PLANS:
        fits = int(seconds / (pace.start + steps * pace.step)) // (n_arms * n_rates)
        if fits >= _SEEDS:
            return _study(name, overrides, n_arms, n_rates, min(_MOST_SEEDS, fits))
    runs = n_arms * n_rates * _SEEDS
    steps = int((seconds / runs - pace.start) / pace.step)
    if steps < _FEWEST:
        needed = runs * (pace.start + _FEWEST * pace.step) / seconds
        raise HybridNormError(
            f"minutes: {count(runs, 'run')} of {_FEWEST} steps, the fewest that are worth it, take "
            f"{needed:.1f} times as long; name more, or make the model smaller"
        )
    return _study(
        name, {**overrides, **_shortened(name, overrides, steps)}, n_arms, n_rates, _SEEDS
    )


def advice(study: Study, folder: Path, recipe: Recipe) -> list[str]:
    """What the finished study recommends and why, in sentences; writes it as advised.toml.

    Args:
        recipe: what was asked about, with all of its steps.
    """
    found = arms(study, read_results(study, folder))
    whole = [arm for arm in found if len(arm.losses) == len(arm.best)]
    ranked = sorted((arm for arm in whole or found if arm.val_loss is not None), key=_loss)
    if not ranked:
        return ["No run has finished: there is no advice."]
    best = ranked[0]
    rate = best.settings[RATE]
    model = replace(recipe.model, placement=str(best.value))
    optimizer = replace(recipe.optimizer, lr=rate)
    advised = folder / "advised.toml"
    write_whole(advised, dump_recipe(replace(recipe, model=model, optimizer=optimizer)))
    return [
        f"Train with {best.value} at learning rate {rate:g}: hybridnorm train {advised}",
        *_confidence(best, ranked[1:]),
        *_doubts(study, recipe, found),
    ]


def _study(
    name: str, overrides: Mapping[str, object], n_arms: int, n_rates: int, seeds: int
) -> Study:
    recipe = load_recipe(name, overrides)
    own = recipe.model.placement
    known = [arm for arm in _ARMS if placement(arm) != placement(own)]
    rates = sorted(float(f"{recipe.optimizer.lr * factor:.3g}") for factor in _FACTORS[:n_rates])
    grid = {PLACEMENT: [own, *known][:n_arms], RATE: rates, SEED: list(range(seeds))}
    path = str(Path(name).resolve()) if name.endswith(".toml") else name
    table = {
        "title": f"Which placement and learning rate for {Path(name).stem}?",
        "recipe": path,
        "baseline": own,
        "correct": "holm",
        # Advice rests on the held-out loss alone.
        "set": {k: v for k, v in overrides.items() if k not in grid} | {"evaluate.tasks": []},
        "grid": grid,
    }
    return study_of(Path.cwd() / f"{Path(name).stem}-advice.toml", table)


def _model_of(recipe: Recipe) -> tuple[object, ...]:
    """What no run of a plan varies."""
    model, optimizer = replace(recipe.model, placement=""), replace(recipe.optimizer, lr=1.0)
    return model, optimizer, recipe.data, recipe.train.batch_size, recipe.train.seq_len


def _shortened(name: str, overrides: Mapping[str, object], steps: int) -> dict[str, Any]:
    """Fields of a run of fewer steps, its schedule in proportion."""
    recipe = load_recipe(name, overrides).in_steps()
    schedule, part = recipe.schedule, steps / recipe.train.steps
    fields = {
        "train.steps": steps,
        "train.eval_every": max(1, steps // 4),
        "train.checkpoint_every": steps,
        "schedule.warmup_steps": round(schedule.warmup_steps * part),
    }
    if schedule.decay_steps is not None:
        fields["schedule.decay_steps"] = max(1, round(schedule.decay_steps * part))
    unset = {"train.tokens": "None", "schedule.warmup_tokens": "None"}
    return {**unset, "schedule.decay_tokens": "None", **fields}


def _pace(study: Study, jobs: int, console: Console) -> Pace:
    """Measured with short runs."""
    short = {
        "schedule.decay_steps": None,
        "schedule.warmup_steps": 1,
        "train.steps": _TRIAL,
        "train.eval_every": _TRIAL,
        "train.checkpoint_every": _TRIAL,
    }
    trials = [
        replace(run.changed("trial", short), name=f"trial {number}")
        for number, run in enumerate(study.runs[:jobs], start=1)
    ]
    console.print(f"how fast is it here: {_TRIAL} steps, {jobs} at a time")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for run in trials:
            write_whole(recipe_file(folder, run), dump_recipe(run.recipe))
        began = time.monotonic()
        crashes = run_all(trials, folder, jobs, console)
        wall = time.monotonic() - began
        rows = [read_result(run, run_dir(folder, run)).row() for run in trials]
    if crashes:
        raise HybridNormError(next(iter(crashes.values())))
    seconds = max(row["seconds"] for row in rows)
    train = study.runs[0].recipe.train
    # An evaluation is a forward pass, a third of a step's work for each sequence.
    evaluation = train.eval_sequences / train.batch_size / 3 / train.eval_every
    return Pace(max(0.0, wall - seconds), seconds / _TRIAL * (1 + evaluation))


def _confidence(best: Arm, others: Sequence[Arm]) -> Iterator[str]:
    """How far each other arm is behind, over the seeds that both have."""
    found = [(arm, c) for arm in others if (c := beside(best, arm).comparison)]
    p_values = holm([c.paired.p if c.paired else 1.0 for _, c in found])
    for (arm, c), p in zip(found, p_values, strict=True):
        line = f"{best.value} beside {arm.value}: {interval(c, p)} nats per token, {c.n} seeds"
        if p >= 1 - LEVEL and c.deviation:
            needed = pairs_to_resolve(c.mean, c.deviation)
            line += f"; not told apart, which would take about {needed} seeds" if needed else ""
        yield line
    if not found:
        yield "Confidence: none, as no other arm finished its runs."
    elif all(p < 1 - LEVEL for p in p_values):
        yield "Confidence: each of these is behind by more than seeds explain."
    else:
        yield "Confidence: low between those not told apart; take the one that you know better."


def _doubts(study: Study, recipe: Recipe, found: Sequence[Arm]) -> Iterator[str]:
    """What would change the answer."""
    steps, asked = study.runs[0].recipe.train.steps, recipe.train.steps
    if steps < asked:
        yield (
            f"Runs had {steps:,} of {asked:,} steps: longer ones may want another placement, and "
            "mostly want a lower rate. More --minutes make them longer."
        )
    if at_edge := [f"{arm.value} (the {side})" for arm in found if (side := edge(arm))]:
        yield (
            f"At the last rate that was tried are best: {', '.join(at_edge)}. Better ones may lie "
            "beyond."
        )
    if lost := [str(arm.value) for arm in found if len(arm.losses) < len(arm.best)]:
        yield f"Not all runs of {', '.join(lost)} finished, at any rate."
    yield "It is about this model, this text and this budget; another size may want another answer."


def _loss(arm: Arm) -> float:
    assert arm.val_loss is not None
    return arm.val_loss
