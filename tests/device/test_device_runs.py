"""Whole runs on the device: like those of the CPU, alike again, killed, and under torchrun."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch

from hybridnorm.placements import placement
from hybridnorm.recipe.load import load_recipe
from hybridnorm.train.auto import resolve_auto
from hybridnorm.train.report.metrics import read_metrics
from hybridnorm.train.run import train
from runs import last_step, losses

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

CUDA = torch.cuda.is_available()
STEPS = 60
FIRST = 20  # steps before rounding has grown
# dtype and compilation; compiling is slow on a CPU
FORMS = [("fp32", "off"), ("bf16", "on" if CUDA else "off")]
Run = Callable[..., Path]
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def tiny_fields(corpus: Path) -> dict[str, object]:
    return {
        "data.source": str(corpus),
        "data.tokenizer": "byte",
        "data.cache": str(corpus / "prepared"),
        "model.placement": "hybridnorm",  # one kind of block to compile
        "model.d_model": 64,
        "model.n_layers": 2,
        "model.d_ff": 128,
        "train.steps": STEPS,
        "train.batch_size": 4,
        "train.seq_len": 64,
        "train.eval_every": STEPS,
        "train.eval_sequences": 8,
        "train.checkpoint_every": 10,
        "train.log_every": 1,
        "schedule.warmup_steps": 5,
    }


@pytest.fixture(scope="module")
def run(tiny_fields: Mapping[str, object], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The directory of a run in this process; each is trained once, unless `again`."""

    @cache
    def finished(device: str, dtype: str, compiles: str, again: bool = False) -> Path:
        run_dir = tmp_path_factory.mktemp("runs") / "run"
        form = {"train.device": device, "train.dtype": dtype, "train.compile": compiles}
        train(load_recipe("demo", {**tiny_fields, **form}), run_dir)
        assert len(losses(run_dir)) == STEPS
        return run_dir

    return finished


def command(fields: Mapping[str, object], form: tuple[str, str], run_dir: Path) -> list[str]:
    """`hybridnorm train` with these settings, after the name of the interpreter."""
    chosen = {"train.dtype": form[0], "train.compile": form[1]}
    words = [("--" + name.replace("_", "-"), str(v)) for name, v in {**fields, **chosen}.items()]
    flat = [word for pair in words for word in pair]
    return ["-m", "hybridnorm", "train", "demo", "--run-dir", str(run_dir), *flat]


def environment() -> dict[str, str]:
    """The loopback interface is there on a machine without a network, too."""
    loopback = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    return {**os.environ, "OMP_NUM_THREADS": "1", **(loopback if sys.platform == "linux" else {})}


def difference(found: Path, expected: Path, steps: int = STEPS) -> float:
    """The largest between the losses of two runs."""
    pairs = zip(losses(found)[:steps], losses(expected)[:steps], strict=True)
    return max(abs(a - b) for a, b in pairs)


@pytest.mark.parametrize(
    ("dtype", "compiles", "tolerance"),
    [
        pytest.param("fp32", "off", 1e-3, marks=pytest.mark.skipif(not CUDA, reason="the same")),
        pytest.param("fp32", "on", 1e-3, marks=pytest.mark.skipif(not CUDA, reason="slow there")),
        ("bf16", "off", 5e-2),
        pytest.param("bf16", "on", 5e-2, marks=pytest.mark.skipif(not CUDA, reason="slow there")),
    ],
)
def test_a_run_has_the_losses_of_the_cpu_in_float32(
    dtype: str,
    compiles: str,
    tolerance: float,
    run: Run,
    device: torch.device,
    record_property: Record,
) -> None:
    expected, found = run("cpu", "fp32", "off"), run(device.type, dtype, compiles)
    largest = difference(found, expected, FIRST)
    record_property("largest_difference", largest)
    assert losses(expected)[-1] < losses(expected)[0] - 1, "nothing is learned"
    assert 0 < largest < tolerance
    ends = [read_metrics(path).evaluations[-1]["val_loss"] for path in (found, expected)]
    assert ends[0] == pytest.approx(ends[1], abs=5e-2)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_a_run_is_the_same_again(
    form: tuple[str, str], run: Run, device: torch.device, record_property: Record
) -> None:
    first, second = run(device.type, *form), run(device.type, *form, again=True)
    largest = difference(first, second, FIRST)
    record_property("largest_difference", largest)
    record_property("largest_difference_of_all_steps", difference(first, second))
    assert largest < 1e-3 if CUDA else largest == 0


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_a_killed_run_has_the_losses_it_would_have_had(
    form: tuple[str, str],
    tiny_fields: Mapping[str, object],
    run: Run,
    device: torch.device,
    tmp_path: Path,
    record_property: Record,
) -> None:
    run_dir, log = tmp_path / "killed", tmp_path / "log"
    words = [*command(tiny_fields, form, run_dir), "--train.device", device.type]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, env=environment()
        )
        try:
            while last_step(run_dir) < 15:
                assert process.poll() is None, log.read_text()
                time.sleep(0.001)
        finally:
            process.kill()
            process.wait()
    killed_at = last_step(run_dir)
    assert killed_at < STEPS, "it was too fast to be killed"
    fields = {**tiny_fields, "train.device": device.type}
    fields |= {"train.dtype": form[0], "train.compile": form[1]}
    train(load_recipe("demo", fields), run_dir, resume=True)
    (resumed,) = (row for row in read_metrics(run_dir).events if row["event"] == "resumed")
    assert 10 <= resumed["step"] <= killed_at
    largest = difference(run_dir, run(device.type, *form))
    record_property("largest_difference", largest)
    record_property("killed_at", killed_at)
    assert largest < 1e-3 if CUDA else largest == 0


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_fsdp_on_one_rank_has_the_losses_of_a_plain_process(
    form: tuple[str, str],
    tiny_fields: Mapping[str, object],
    run: Run,
    device: torch.device,
    tmp_path: Path,
    record_property: Record,
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    words = [*command(tiny_fields, form, tmp_path / "run"), "--train.device", device.type]
    result = subprocess.run(
        [sys.executable, *torchrun, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert result.returncode == 0, result.stderr[-4000:]
    largest = difference(tmp_path / "run", run(device.type, *form), FIRST)
    record_property("largest_difference", largest)
    assert largest < {"fp32": 1e-5, "bf16": 2e-2}[form[0]]


@pytest.mark.parametrize(("steps", "compiled"), [(1, "off"), (10**9, "on")])
def test_what_is_chosen_for_the_device(
    steps: int,
    compiled: str,
    tiny_fields: Mapping[str, object],
    device: torch.device,
    record_property: Record,
) -> None:
    fields = {**tiny_fields, "model.vocab_size": 257, "train.steps": steps}
    recipe = load_recipe("demo", {**fields, "schedule.warmup_steps": 0})
    assert (recipe.train.dtype, recipe.train.compile) == ("auto", "auto")
    chosen, reasons = resolve_auto(recipe, placement(recipe.model.placement), device)
    record_property("reasons", "; ".join(reasons))
    assert len(reasons) == 2
    if CUDA:  # tensor cores have bfloat16 since Ampere
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        assert chosen.train.dtype == ("bf16" if ampere else "fp32")
    assert chosen.train.dtype in ("bf16", "fp32")
    assert chosen.train.compile == compiled
