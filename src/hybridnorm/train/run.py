"""`hybridnorm train` and `hybridnorm generate`: from a recipe to a run directory, and back."""

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from hybridnorm.data.prepare import prepare
from hybridnorm.data.tokenizer import load_tokenizer
from hybridnorm.errors import HybridNormError
from hybridnorm.model.generate import generate
from hybridnorm.model.initialization import initialize, scheme
from hybridnorm.model.transformer import Transformer
from hybridnorm.placement import Placement, placement
from hybridnorm.train.checkpoint import list_checkpoints
from hybridnorm.train.config import Recipe
from hybridnorm.train.metrics import MetricsWriter
from hybridnorm.train.rundir import check_run_dir, describe_run, load_run
from hybridnorm.train.trainer import Trainer


def train(recipe: Recipe, run_dir: Path, *, resume: bool = False) -> None:
    """Train one model into `run_dir`.

    Raises:
        HybridNormError: bad input, a loss that is not finite, or a disk that cannot be written.
    """
    console = Console()
    recipe = recipe.in_steps()
    check_run_dir(run_dir, resume=resume)
    device = pick_device(recipe.train.device)
    chosen = placement(recipe.model.placement)
    data = prepare(recipe.data, console=console)
    recipe = with_vocabulary(recipe, data.tokenizer)
    model = build_model(recipe, chosen, device)
    trainer = Trainer(recipe, model, data, run_dir, device)
    resuming = resume and bool(list_checkpoints(run_dir))
    problems = trainer.resume() if resuming else []
    describe_run(run_dir, recipe, chosen, data.tokenizer, device)
    for problem in problems:
        console.print(f"passed over: {problem}", style="yellow", soft_wrap=True)
    console.print(
        f"{run_dir}: {chosen.title or chosen.name}, "
        f"{model.num_parameters():,} parameters, init {scheme(model.config, chosen)}, "
        f"{recipe.train.steps:,} steps of {recipe.train.batch_size * recipe.train.seq_len:,} tokens"
        f" on {device.type}, {recipe.train.dtype}",
        highlight=False,
        soft_wrap=True,
    )
    metrics = MetricsWriter(run_dir)
    try:
        event = "resumed" if resuming else "started"
        metrics.write(event=event, step=trainer.step, parameters=model.num_parameters())
        trainer.run(metrics, console)
    finally:
        metrics.close()
    if trainer.step < recipe.train.steps:
        console.print(f"stopped at step {trainer.step}; continue with --resume", highlight=False)


def generate_text(
    run_dir: Path,
    prompt: str,
    *,
    checkpoint: str = "last",
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """The prompt and its continuation by the model of a run.

    Raises:
        HybridNormError: not a run, a damaged checkpoint, or a bad sampling setting.
    """
    model, _ = load_run(run_dir, checkpoint)
    tokenizer = load_tokenizer(run_dir)
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_document]
    tokens = generate(
        model,
        torch.tensor([ids]),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        end_of_document=tokenizer.end_of_document,
    )
    return tokenizer.decode(tokens[0].tolist())


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto takes CUDA where there is one.

    Raises:
        HybridNormError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise HybridNormError(f"train.device: {name!r} is not available here; try cpu") from None
    return device


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


def build_model(recipe: Recipe, placement: Placement, device: torch.device) -> Transformer:
    """The recipe's model with its initial weights, by way of the meta device."""
    with torch.device("meta"):
        model = Transformer(recipe.model, placement)
    model.to_empty(device=device)
    initialize(model, recipe.seed)
    model.dtype = torch.bfloat16 if recipe.train.dtype == "bf16" else torch.float32
    if recipe.train.compile:
        for block in model.blocks:
            block.compile()
    return model
