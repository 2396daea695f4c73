"""`hybridnorm generate`: a prompt and its continuation by the model of a run."""

from pathlib import Path

import torch
from rich.console import Console

from hybridnorm.data import load_tokenizer
from hybridnorm.model import generate
from hybridnorm.train.run_dir import load_run, show_problems


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
    model, problems = load_run(run_dir, checkpoint)
    show_problems(problems, Console(stderr=True))
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
