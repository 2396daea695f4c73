"""`hybridnorm train`: from a recipe to a run directory, step by step."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from hybridnorm.data import load_tokenizer, open_data, verify
from hybridnorm.errors import HybridNormError
from hybridnorm.model import Transformer, parallelize
from hybridnorm.placements import Placement, placement
from hybridnorm.recipe import Recipe, load_recipe
from hybridnorm.train.auto import keep_choices, resolve_auto, set_threads
from hybridnorm.train.checkpoint import list_checkpoints
from hybridnorm.train.hooks import Hook, imported_hooks
from hybridnorm.train.loop import Trainer
from hybridnorm.train.optim import decay_groups, decay_table
from hybridnorm.train.preflight import preflight
from hybridnorm.train.report import check_installed, reporting_hooks
from hybridnorm.train.run_dir import check_run_dir, describe_run, show_problems
from hybridnorm.train.world import World, open_world


def train(
    recipe: Recipe, run_dir: Path, *, resume: bool = False, hooks: Sequence[Hook] = ()
) -> None:
    """Train one model into `run_dir`, on all ranks that torchrun started, watched by `hooks`.

    Raises:
        HybridNormError: bad input, too many steps that are not finite, or a disk that cannot be
            written.
    """
    recipe = recipe.in_steps()
    check_run_dir(run_dir, resume=resume)
    # What is missing should fail before any rank waits for another.
    placement(recipe.model.placement)
    check_installed(recipe.train.trackers)
    imported_hooks(recipe)
    with open_world(recipe.train.device, recipe.parallel) as world:
        train_on(world, recipe, run_dir, resume=resume, hooks=hooks)


def train_on(
    world: World,
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
) -> None:
    """`train` on ranks that are joined already; every rank calls it."""
    console = Console(quiet=not world.is_main)
    chosen = placement(recipe.model.placement)
    data = world.on_main(lambda: open_data(recipe.data, console=console))
    world.gather(lambda: verify(data, *world.node_share))
    recipe = with_vocabulary(recipe, data.tokenizer)
    threads = set_threads(recipe.train.threads)
    if resume:
        recipe = keep_choices(recipe, load_recipe(run_dir / "recipe.toml"))
    recipe, reasons = world.on_main(lambda: resolve_auto(recipe, chosen, world.device, world.size))
    model = build_model(recipe, chosen, world)
    trainer = Trainer(recipe, model, data, run_dir, world)
    resuming = resume and world.on_main(lambda: bool(list_checkpoints(run_dir)))
    problems = trainer.resume() if resuming else []
    world.on_main(lambda: describe_run(run_dir, recipe, chosen, data.tokenizer, world.device))
    _announce(trainer, problems, [*reasons, threads], console)
    custom = [*hooks, *imported_hooks(recipe)]
    trainer.run(
        reporting_hooks(recipe, run_dir, world, console, custom),
        lambda line: console.print(line, highlight=False, soft_wrap=True),
    )
    if trainer.step < recipe.train.steps:
        console.print(f"stopped at step {trainer.step}; continue with --resume", highlight=False)


def _announce(trainer: Trainer, problems: list[str], reasons: list[str], console: Console) -> None:
    """What this run will do, before it does it."""
    show_problems(problems, console)
    recipe, model, world = trainer.recipe, trainer.model, trainer.world
    console.print(f"{trainer.run_dir} on {world.size} x {world.device}", style="bold")
    facts = preflight(recipe, model.placement, trainer.mix, world.size, world.device.type)
    facts.rows["speed"] = "\n".join(reasons)
    facts.print(console)
    console.print(decay_table(decay_groups(model, recipe.optimizer)))


def with_vocabulary(recipe: Recipe, data: Path) -> Recipe:
    """The recipe with the tokenizer's vocabulary size where it names none.

    Raises:
        HybridNormError: it names one that is too small.
    """
    needed = load_tokenizer(data).vocab_size
    given = recipe.model.vocab_size
    if given is not None and given < needed:
        raise HybridNormError(
            f"model.vocab_size: {given} is smaller than the tokenizer's {needed}; leave it out"
        )
    return replace(recipe, model=replace(recipe.model, vocab_size=given or needed))


def build_model(recipe: Recipe, placement: Placement, world: World) -> Transformer:
    """The recipe's model, laid out over the ranks, with its initial weights."""
    with torch.device("meta"):
        model = Transformer(recipe.model, placement)
    model.dtype = torch.bfloat16 if recipe.train.dtype == "bf16" else torch.float32
    parallelize(
        model,
        world.mesh,
        recompute=recipe.parallel.activation_checkpointing,
        compile_blocks=recipe.train.compile == "on",
    )
    model.to_empty(device=world.device)
    model.initialize(recipe.seed)
    return model
