"""`hybridnorm generate`: a prompt and its continuation by the model of a run."""

from pathlib import Path

import torch

from hybridnorm.data import load_tokenizer
from hybridnorm.errors import HybridNormError
from hybridnorm.model import SamplingConfig, generate
from hybridnorm.recipe import load_recipe
from hybridnorm.terminal import Screen
from hybridnorm.train.run_dir import load_run, show_problems


def generate_text(
    run_dir: Path, prompt: str, sampling: SamplingConfig, *, checkpoint: str = "last"
) -> str:
    """The prompt and its continuation by the model of a run.

    Raises:
        HybridNormError: not a run, or a damaged checkpoint or one of a run that has diverged.
    """
    screen = Screen(stderr=True)
    model, problems = load_run(run_dir, checkpoint)
    show_problems(problems, screen)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise HybridNormError(
            f"{run_dir}: the checkpoint holds weights that are not finite; "
            "name an earlier one with --checkpoint"
        )
    tokenizer = load_tokenizer(run_dir)
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_document]
    trained = load_recipe(run_dir / "recipe.toml").train.seq_len
    if len(ids) > trained:
        screen.print(
            f"warning: the prompt has {len(ids):,} tokens, the model was trained on {trained:,} "
            "at a time: expect worse text",
            style="yellow",
        )
    tokens = generate(
        model,
        torch.tensor([ids]),
        sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        end_of_document=tokenizer.end_of_document,
    )
    return tokenizer.decode(tokens[0].tolist())
