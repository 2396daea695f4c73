"""What is decided for a run, and what is left as somebody said it."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from hybridnorm.placements import placement
from hybridnorm.recipe.config import Recipe, keep_choices
from hybridnorm.recipe.load import load_recipe
from hybridnorm.train import auto as choices
from hybridnorm.train.auto import resolve_auto, set_threads

CPU = torch.device("cpu")


def recipe(**train: Any) -> Recipe:
    overrides = {f"train.{name}": value for name, value in train.items()}
    fixed = {"model.vocab_size": 4096, "train.batch_size": 16}
    return load_recipe("demo", {**fixed, **overrides}).in_steps()


def settled(given: Recipe, name: str = "pre-norm") -> Recipe:
    return resolve_auto(given, placement(name), CPU)[0]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, float]:
    """Seconds of a product of 2.1 GFLOP, as if measured."""
    seconds = {torch.float32: 0.02, torch.bfloat16: 0.01}
    monkeypatch.setattr(
        choices, "_seconds", lambda size, dtype, device: seconds[dtype] * (size / 1024) ** 3
    )
    monkeypatch.setattr(choices.shutil, "which", lambda name: f"/usr/bin/{name}")
    return seconds


def test_bf16_where_its_products_are_faster(products: dict[torch.dtype, float]) -> None:
    assert settled(recipe()).train.dtype == "bf16"
    products[torch.bfloat16] = 0.03
    assert settled(recipe()).train.dtype == "fp32"


def test_a_slow_dtype_is_not_measured_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of 2.1 GFLOP in bf16 takes 2.5 s on a CPU that has none of its instructions."""
    spent = []

    def seconds(size: int, dtype: torch.dtype, device: object) -> float:
        spent.append({torch.float32: 0.015, torch.bfloat16: 2.5}[dtype] * (size / 1024) ** 3)
        return spent[-1]

    monkeypatch.setattr(choices, "_seconds", seconds)
    given = recipe()
    found, reasons = resolve_auto(given, placement("pre-norm"), CPU)
    assert found.train.dtype == "fp32"
    assert reasons[0] == "fp32: products run 0.006 times as fast in bf16 as in fp32 here"
    assert sum(spent) < 0.5


def test_long_runs_are_compiled(products: dict[torch.dtype, float]) -> None:
    """A demo step is 17 GFLOP: 0.13 s, where a product of 2.1 GFLOP takes 0.01 s."""
    assert settled(recipe(steps=150)).train.compile == "off"
    assert settled(recipe(steps=800)).train.compile == "off"
    assert settled(recipe(steps=1000)).train.compile == "on"
    # Two kinds of block take twice as long to compile.
    assert settled(recipe(steps=1000), "hybridnorm-star").train.compile == "off"
    assert settled(recipe(steps=2000), "hybridnorm-star").train.compile == "on"


def test_without_a_compiler_nothing_is_compiled(
    products: dict[torch.dtype, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices.shutil, "which", lambda name: None)
    assert settled(recipe(steps=10**6)).train.compile == "off"


def test_what_is_said_stays_and_needs_no_reason(products: dict[torch.dtype, float]) -> None:
    said = recipe(dtype="fp32", compile="off", steps=10**6)
    assert resolve_auto(said, placement("pre-norm"), CPU) == (said, [])


def test_a_resumed_run_keeps_its_choices() -> None:
    before = recipe(dtype="bf16", compile="on")
    assert keep_choices(recipe(), before).train == before.train
    assert keep_choices(recipe(dtype="fp32"), before).train == replace(before.train, dtype="fp32")


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "cores", lambda: 8)
    used: list[int] = []
    monkeypatch.setattr(choices.torch, "set_num_threads", used.append)
    set_threads(None)  # a process alone: as torch has it
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's word
    set_threads(None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # somebody's
    set_threads(None)
    set_threads(5)
    assert used == [4, 5]


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_is_kept_for_the_next_step() -> None:
    script = """
import resource, sys
from hybridnorm.recipe.config import TrainConfig
from hybridnorm.train.process_setup import set_up_process
set_up_process(TrainConfig(allocator=sys.argv[1]))
import torch
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(60):  # the first may leave gaps that are a little too small
    before = faults()
    torch.ones(2**23)
print(faults() - before)
"""

    def faults_of_a_step(allocator: str) -> int:
        command = [sys.executable, "-c", script, allocator]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(run.stdout)

    pages = 4 * 2**23 // 4096
    assert faults_of_a_step("keep") < pages / 100
    assert faults_of_a_step("system") >= pages / 512  # huge pages, or small ones
