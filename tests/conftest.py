import random
import signal
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from command_line import Cli, in_own_process, in_process

torch.set_num_threads(1)
# In the background a shell ignores Ctrl-C, and so would the processes that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A machine that is busy with other things is no failure.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

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


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut text into units of a few kilobytes, as large inputs are into larger ones."""
    monkeypatch.setattr("hybridnorm.data.prepare.inputs._SMALLEST", 8000)
    monkeypatch.setattr("hybridnorm.data.prepare.inputs._LARGEST", 8000)


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
        *("--train.log-every", "1"),
        *("--train.eval-every", "10"),
        *("--train.eval-sequences", "8"),
        *("--train.checkpoint-every", "5"),
        *("--schedule.warmup-steps", "2"),
    ]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """`hybridnorm` with these arguments, in this process."""
    return in_process


@pytest.fixture(scope="session")
def own_process() -> Cli:
    """`hybridnorm` with these arguments, as users start it."""
    return in_own_process


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: list[str], cli: Cli) -> Path:
    """A run of two steps, in a folder that would be markup."""
    run_dir = tmp_path_factory.mktemp("run") / "r[/x]"
    result = cli("train", "demo", *tiny, "--train.steps", "2", "--run-dir", run_dir)
    assert result.returncode == 0, result.stderr
    assert str(run_dir) in result.stdout
    return run_dir
