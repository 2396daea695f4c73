"""`hybridnorm generate`: what it refuses, and what it says on stderr."""

from pathlib import Path

import pytest
import torch

from command_line import Cli
from hybridnorm.train import generation


def test_text_of_ruined_weights_is_refused(
    trained: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_trained = generation.load_trained

    def ruined(*args: object) -> object:
        found = load_trained(*args)  # type: ignore[arg-type]
        with torch.no_grad():
            found.model.blocks[0].attention.branch.q_proj.weight[0, 0] = float("nan")
        return found

    monkeypatch.setattr(generation, "load_trained", ruined)
    result = cli("generate", trained, "--prompt", "a")
    assert result.returncode == 1 and not result.stdout
    assert "the checkpoint holds weights that are not finite" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--temperature nan", "temperature: must be at least 0 and below 2^127, got nan"),
        ("--temperature -1", "temperature: must be at least 0, got -1.0"),
        ("--top-k 0", "top_k: must be at least 1, got 0"),
        ("--top-p 0", "top_p: must be above 0 and at most 1, got 0.0"),
        ("--top-p inf", "top_p: must be above 0 and at most 1 and below 2^127, got inf"),
        ("--max-new-tokens 0", "max_new_tokens: must be from 1 to 1,048,576, got 0"),
        ("--seed -1", "seed: must be at least 0, got -1"),
        ("--temperature 0 --top-k 3", "top_k: has no effect where temperature 0 takes"),
    ],
)
def test_bad_settings_of_sampling_are_one_line(words: str, said: str, cli: Cli) -> None:
    result = cli("generate", "nowhere", *words.split())
    assert result.returncode == 1
    assert result.stderr.startswith(f"hybridnorm: {said}") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", ["--temperature 1e-30", "--temperature 1e18", "--top-p 1e-30"])
def test_extreme_settings_of_sampling_still_sample(words: str, trained: Path, cli: Cli) -> None:
    result = cli("generate", trained, "--prompt", "", "--max-new-tokens", "3", *words.split())
    assert result.returncode == 0, result.stderr


def test_a_prompt_longer_than_what_was_trained_on_is_warned_of(trained: Path, cli: Cli) -> None:
    result = cli("generate", trained, "--prompt", "a " * 40, "--max-new-tokens", "2")
    assert result.returncode == 0 and result.stdout.startswith("a a ")
    assert result.stderr.startswith(
        "warning: the prompt has 80 tokens, the model was trained on 32"
    )
