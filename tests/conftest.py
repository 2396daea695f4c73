import contextlib
import io
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from hybridnorm.cli import main

torch.set_num_threads(1)
# In the background a shell ignores Ctrl-C, and so would the processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
Cli = Callable[..., subprocess.CompletedProcess[str]]

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left alone with one at the end."""
    long = ["test_ranks.py", "test_chaos.py", "test_run.py", "test_study.py"]
    items.sort(key=lambda item: long.index(item.path.name) if item.path.name in long else len(long))


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


@pytest.fixture(scope="session")
def tiny(corpus: Path) -> list[str]:
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


def hybridnorm_here(*args: object) -> subprocess.CompletedProcess[str]:
    """The command line in this process: no seconds for the import of torch.

    Only for verbs that need no process of their own: signals and ranks do.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code = 0
    with (
        mock.patch.object(sys, "argv", ["hybridnorm", *map(str, args)]),
        mock.patch.dict(os.environ, COLUMNS="200"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:  # as Python itself ends
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=err)
    out.seek(0), err.seek(0)
    return subprocess.CompletedProcess(args, code, out.read(), err.read())


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`hybridnorm` with these arguments, in this process."""
    return hybridnorm_here


@pytest.fixture(scope="session")
def own_process() -> Cli:
    """`hybridnorm` with these arguments, as users start it."""
    return hybridnorm
