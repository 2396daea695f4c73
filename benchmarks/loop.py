"""What the training loop costs beside its arithmetic, and how long a run takes to its first step.

    python benchmarks/loop.py --rounds 5

Runs the demo recipe by the command line's own way, with a clock around forward, backward, clipping
and optimizer; the rest of a step is the loop: data, logging, progress. Evaluations and checkpoints
are left out. Then starts `hybridnorm train demo` as a process and waits for its first step, once
with an empty compile cache and once with the one that this left, eager and compiled.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hybridnorm.recipe import load_recipe
from hybridnorm.train import set_up_process, train
from hybridnorm.train.hooks import Hook, Row, State
from hybridnorm.train.report import read_metrics

STEPS = 60


def share_of_the_loop(folder: Path) -> float:
    """Seconds of a logged step that are not arithmetic, as a share."""
    quiet = {"train.eval_every": 10**6, "train.checkpoint_every": 10**6, "train.steps": STEPS}
    train(load_recipe("demo", quiet | {"train.hooks": ["loop.Clock"]}), folder)
    rows = read_metrics(folder).train
    first, last = rows[0], rows[-1]  # the first step warms up
    arithmetic = last["arithmetic_seconds"] - first["arithmetic_seconds"]
    return float(1 - arithmetic / (last["seconds"] - first["seconds"]))


class Clock(Hook):
    """Adds the seconds in forward, backward, clipping and optimizer since the start."""

    def __init__(self) -> None:
        self.spent = 0.0

    def before_forward(self, state: State) -> None:
        self.started = time.perf_counter()

    def after_step(self, state: State) -> None:
        self.spent += time.perf_counter() - self.started

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        row["arithmetic_seconds"] = self.spent


def seconds_to_first_step(folder: Path, cache: Path, compiled: str) -> float:
    start = time.perf_counter()
    run = folder / f"run-{start}"
    command = [sys.executable, "-m", "hybridnorm", "train", "demo", "--run-dir", str(run)]
    command += ["--train.compile", compiled]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
        )
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and '"loss"' in metrics.read_text()):
            if process.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = range(parser.parse_args().rounds)
    set_up_process(load_recipe("demo").train)
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shares = [share_of_the_loop(folder / f"loop-{n}") for n in rounds]
        table = Table("to the first step of the demo recipe, seconds", "median", "range")
        kinds = {"eager": "off", "compiled": "on", "default": "auto"}
        for kind, compiled in kinds.items():
            cold = [seconds_to_first_step(folder, folder / f"{kind}-{n}", compiled) for n in rounds]
            warm = [seconds_to_first_step(folder, folder / f"{kind}-{n}", compiled) for n in rounds]
            for state, seconds in (("cold", cold), ("warm", warm)):
                span = f"{min(seconds):.1f}-{max(seconds):.1f}"
                table.add_row(f"{kind}, {state}", f"{statistics.median(seconds):.1f}", span)
    loop = f"{statistics.median(shares):.2%} of a step (range {min(shares):.2%}-{max(shares):.2%})"
    console.print(f"outside forward, backward, clipping and optimizer: {loop}")
    console.print(table)


if __name__ == "__main__":
    main()
