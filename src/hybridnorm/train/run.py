"""`hybridnorm train`: from a recipe to a run directory, step by step."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from hybridnorm.data import (
    Mixture,
    Prepared,
    check_lengths,
    load_tokenizer,
    open_data,
    verify,
)
from hybridnorm.errors import HybridNormError
from hybridnorm.model import Transformer, parallelize
from hybridnorm.placements import Placement, placement
from hybridnorm.recipe import Recipe, keep_choices, load_recipe
from hybridnorm.terminal import Screen
from hybridnorm.train.auto import resolve_auto, set_threads
from hybridnorm.train.checkpoint import list_checkpoints
from hybridnorm.train.hooks import Hook, imported_hooks
from hybridnorm.train.loop import Trainer
from hybridnorm.train.optim import decay_groups, decay_table
from hybridnorm.train.preflight import check_memory, preflight
from hybridnorm.train.report import check_installed, reporting_hooks
from hybridnorm.train.run_dir import (
    anchored,
    changes,
    check_run_dir,
    describe_run,
    owned,
    show_problems,
)
from hybridnorm.train.world import World, open_world


def train(
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    force: bool = False,
    hooks: Sequence[Hook] = (),
) -> int:
    """Train one model into `run_dir`, on all ranks that torchrun started.

    Args:
        resume: continue the run there from its newest checkpoint.
        force: start even where the estimated memory exceeds what is free.
        hooks: what watches the run beside the recipe's own.

    Returns:
        0, or the number of the signal that stopped the run early; it is saved then.

    Raises:
        HybridNormError: bad input, too many steps that are not finite, or a disk that cannot be
            written.
    """
    recipe = anchored(recipe.in_steps())
    check_run_dir(run_dir, resume=resume)
    # What is missing should fail before any rank waits for another.
    placement(recipe.model.placement)
    check_installed(recipe.train.trackers)
    hooks = [*hooks, *imported_hooks(recipe)]
    with open_world(recipe.train.device, recipe.parallel) as world:
        return train_on(world, recipe, run_dir, resume=resume, force=force, hooks=hooks)


def train_on(
    world: World,
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    force: bool = False,
    hooks: Sequence[Hook] = (),
) -> int:
    """`train` on ranks that are joined already, watched by `hooks`; every rank calls it."""
    console = _TrainingConsole(quiet=not world.is_main)
    chosen = placement(recipe.model.placement)
    data = world.on_main(lambda: open_data(recipe.data, console=console))
    world.gather(lambda: verify(data, *world.node_share))
    check_lengths(data, recipe.train.seq_len)
    recipe = with_vocabulary(recipe, data.tokenizer)
    threads = set_threads(recipe.train.threads)
    before = anchored(load_recipe(run_dir / "recipe.toml")) if resume else recipe
    recipe = keep_choices(recipe, before)
    recipe, reasons = world.on_main(lambda: resolve_auto(recipe, chosen, world.device, world.size))
    facts = preflight(recipe, chosen, data_mix(data), world.size, world.device.type)
    facts.rows["speed"] = "\n".join([*reasons, threads])
    if not force:
        world.gather(lambda: check_memory(facts.memory, world.device))
    model = build_model(recipe, chosen, world)
    trainer = Trainer(recipe, model, data, run_dir, world)
    console.print(f"{run_dir} on {world.size} x {world.device}", style="bold")
    facts.print(console)
    console.print(decay_table(decay_groups(model, recipe.optimizer)))
    with ExitStack() as stack:
        world.on_main(lambda: stack.enter_context(owned(run_dir, resume=resume)))
        changed = changes(before, recipe) if _resumed(trainer, resume, console) else {}
        for name, (old, new) in changed.items():
            console.print(f"{name}: {new} from step {trainer.step + 1} on, {old} before")
        world.on_main(lambda: describe_run(run_dir, recipe, chosen, data.tokenizer, world.device))
        trainer.run(
            reporting_hooks(recipe, run_dir, world, console, hooks),
            lambda line: console.print(line),
            **({"changed": changed} if changed else {}),
        )
    if trainer.stopped_by:
        console.print(f"stopped at step {trainer.step}; continue with --resume")
    return trainer.stopped_by


def _resumed(trainer: Trainer, resume: bool, console: Console) -> bool:
    """Load the newest checkpoint where there is one, or else the weights to start from."""
    start = trainer.recipe.train.start
    if resume and trainer.world.on_main(lambda: bool(list_checkpoints(trainer.run_dir))):
        show_problems(trainer.resume(), console)
    elif start is not None:
        show_problems(trainer.start(Path(start)), console)
    elif resume:
        console.print(f"{trainer.run_dir}: no checkpoint yet; from step 1 on", style="yellow")
    return resume


class _TrainingConsole(Screen):
    """Where nobody reads on (`| head`), the run ends as if its terminal had gone: saved."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGHUP)


def data_mix(data: Prepared) -> list[tuple[str, float, int]]:
    """The training data as (name, weight, tokens)."""
    parts = Mixture(data, "train").parts
    return [(p.folder.name, w, p.n_tokens) for p, w in zip(parts, data.weights, strict=True)]


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
