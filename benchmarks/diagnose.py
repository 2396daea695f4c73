"""What probes cost along a run: seconds of a measurement beside those of a step.

    python benchmarks/diagnose.py --recipe demo --threads 1

Trains with each of the probes (those that need no training of their own) as a hook of its own, and
once with all of them in one; the first measurement warms up. A share is that of one measurement
in 100 steps, the default rhythm.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from hybridnorm.diagnose.catalogue import named_probes, quick_probes
from hybridnorm.diagnose.hook import Recording
from hybridnorm.recipe import load_recipe
from hybridnorm.train import State, set_up_process, train
from hybridnorm.train.hooks import Hook

EVERY = 100


class Clocked(Recording):
    """Notes the seconds of each measurement."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(named_probes(names))
        self.seconds: list[float] = []

    def after_backward(self, state: State) -> None:
        """What is hooked before costs next to nothing, and is left out."""
        start = time.perf_counter()
        super().after_backward(state)
        if self.is_due(state):
            self.seconds.append(time.perf_counter() - start)


class Steps(Hook):
    """Notes the seconds of each step without a measurement."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def before_forward(self, state: State) -> None:
        self.start = time.perf_counter()

    def after_step(self, state: State) -> None:
        if not state.recipe.diagnose.is_due(state.step):
            self.seconds.append(time.perf_counter() - self.start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--preset", help="a preset of the model, in place of the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=4, help="measurements that count")
    options = parser.parse_args()
    fields: dict[str, object] = {
        "train.steps": 5 * (options.rounds + 1),
        "train.threads": options.threads,
        "train.dtype": options.dtype,
        "train.compile": "off",
        "schedule.warmup_steps": 0,
        "train.eval_every": 10**6,
        "train.checkpoint_every": 10**6,
    }
    if options.preset:
        fields["model.preset"] = options.preset
    recipe = load_recipe(options.recipe, fields)
    recipe = replace(recipe, diagnose=replace(recipe.diagnose, every=5, at=()))
    set_up_process(recipe.train)
    steps = Steps()
    clocks = {name: Clocked([name]) for name in quick_probes()}
    clocks["all of them"] = Clocked(quick_probes())
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "run", hooks=[steps, *clocks.values()])
    step = statistics.median(steps.seconds)
    model = options.preset or options.recipe
    print(f"{model}, {options.dtype}, {options.threads} threads: {step:.3f} s per step")
    for name, clock in clocks.items():
        seconds = statistics.median(clock.seconds[1:])
        share = seconds / (EVERY * step)
        print(
            f"{name:<22} {seconds:8.3f} s {seconds / step:7.2f} steps {share:8.2%} at 1 in {EVERY}"
        )


if __name__ == "__main__":
    main()
