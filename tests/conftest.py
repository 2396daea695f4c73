import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

WORDS = (
    "the",
    "a",
    "norm",
    "block",
    "stream",
    "residual",
    "model",
    "loss",
    "grows",
    "falls",
    "deep",
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small generated documents, the same on every machine."""
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    lines = [
        '{"text": "' + " ".join(words.choices(WORDS, k=words.randint(20, 60))) + '."}'
        for _ in range(400)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> list[str]:
    """Overrides that make a run take a second."""
    return [
        *("--data.source", str(corpus)),
        *("--data.tokenizer", "byte"),
        *("--data.cache", str(corpus / "prepared")),
        *("--model.d-model", "32"),
        *("--model.n-layers", "2"),
        *("--model.d-ff", "64"),
        *("--train.dtype", "fp32"),  # the same on every machine
        *("--train.steps", "20"),
        *("--train.batch-size", "4"),
        *("--train.seq-len", "32"),
        *("--train.eval-every", "10"),
        *("--train.eval-sequences", "8"),
        *("--train.checkpoint-every", "5"),
        *("--schedule.warmup-steps", "2"),
    ]


def hybridnorm(*args: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hybridnorm", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


@pytest.fixture
def cli() -> object:
    return hybridnorm
