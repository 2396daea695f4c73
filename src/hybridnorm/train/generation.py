"""`hybridnorm generate`: a prompt and its continuation by the model of a run."""

from pathlib import Path

import torch

from hybridnorm.data import load_tokenizer
from hybridnorm.errors import HybridNormError
from hybridnorm.model import SamplingConfig, generate
from hybridnorm.terminal import Screen
from hybridnorm.train.run_dir import show_problems
from hybridnorm.train.trained import load_trained


def generate_text(
    run_dir: Path, prompt: str, sampling: SamplingConfig, *, checkpoint: str = "last"
) -> str:
    """The prompt and its continuation by the model of a run.

    Raises:
        HybridNormError: not a run, or a damaged checkpoint or one of a run that has diverged.
    """
    screen = Screen(stderr=True)
    trained = load_trained(run_dir, checkpoint)
    show_problems(trained.problems, screen)
    if not all(weight.isfinite().all() for weight in trained.model.parameters()):
        raise HybridNormError(
            f"{run_dir}: the checkpoint holds weights that are not finite; "
            "name an earlier one with --checkpoint"
        )
    tokenizer = load_tokenizer(run_dir)
    ids = tokenizer.encode(prompt) or [tokenizer.end_of_document]
    seq_len = trained.recipe.train.seq_len
    if len(ids) > seq_len:
        screen.print(
            f"warning: the prompt has {len(ids):,} tokens, the model was trained on {seq_len:,} "
            "at a time: expect worse text",
            style="yellow",
        )
    tokens = generate(
        trained.model,
        torch.tensor([ids]),
        sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        end_of_document=tokenizer.end_of_document,
    )
    return tokenizer.decode(tokens[0].tolist())
