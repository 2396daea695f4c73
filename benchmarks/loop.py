"""What the training loop costs beside its arithmetic, and how long a run takes to its first step.

    python benchmarks/loop.py --rounds 5

Runs the demo recipe by the command line's own way, with a clock around forward, backward, clipping
and optimizer; the rest of a step is the loop: data, logging, progress. Evaluations and checkpoints
are left out. Then starts `hybridnorm train demo` as a process and waits for its first step, once
with an empty compile cache and once with the one that this left, eager and compiled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from hybridnorm.recipe.load import load_recipe
from hybridnorm.train.process_setup import set_up_process

STEPS = 60


def share_of_the_loop(folder: Path) -> float:
    """Seconds of a logged step that are not arithmetic, as a share."""
    from hybridnorm.train import trainer
    from hybridnorm.train.run import train

    spent = 0.0
    in_steps: list[float] = []

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent += time.perf_counter() - start

        return timed

    report = trainer.Trainer._report

    def reported(self: Any, *args: Any) -> float:
        now = report(self, *args)
        in_steps.append(spent)
        return now

    quiet = {"train.eval_every": 10**6, "train.checkpoint_every": 10**6, "train.steps": STEPS}
    with (
        mock.patch.object(trainer, "objective", clocked(trainer.objective)),
        mock.patch("torch.Tensor.backward", clocked(trainer.Tensor.backward)),
        mock.patch.object(trainer, "_clip", clocked(trainer._clip)),
        mock.patch.object(trainer, "step_unless", clocked(trainer.step_unless)),
        mock.patch.object(trainer.Trainer, "_report", reported),
    ):
        train(load_recipe("demo", quiet), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows if "loss" in row]
    # The first step warms up.
    return 1 - (in_steps[-1] - in_steps[0]) / (seconds[-1] - seconds[0])


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
