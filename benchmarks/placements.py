"""The training speed of two placements, HybridNorm* and Pre-Norm, in one process, in turns.

    python benchmarks/placements.py --shape demo --dtype fp32 --compiled

Two processes of one setting can differ by a sixth, which is more than two placements do.
"""

import argparse
import statistics
from types import SimpleNamespace

from contenders import SHAPES
from peers import hybridnorm
from peers.worker import Training

from hybridnorm.recipe.config import TrainConfig
from hybridnorm.train.process_setup import set_up_process


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--placements", nargs=2, default=["hybridnorm-star", "pre-norm"])
    parser.add_argument("--dtype", choices=hybridnorm.DTYPES, default="fp32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--allocator", choices=("keep", "system"), default="keep")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="timed steps per turn")
    options = parser.parse_args()
    set_up_process(TrainConfig(allocator=options.allocator))
    common = vars(options) | {"shape": SHAPES[options.shape]}
    trainings = [
        Training(hybridnorm, SimpleNamespace(**common, variant=name)) for name in options.placements
    ]
    for training in trainings:
        training.turn(options.steps)  # compile
    ratios = []
    for number in range(options.rounds):
        order = -1 if number % 2 else 1
        seconds = [training.turn(options.steps)["seconds"] for training in trainings[::order]]
        ours, baseline = seconds[::order]
        ratios.append(baseline / ours)
    ours, baseline = options.placements
    print(
        f"{SHAPES[options.shape]}; {options.dtype}, {'compiled' if options.compiled else 'eager'}, "
        f"allocator {options.allocator}: {ours} trains {statistics.median(ratios):.2f} times as "
        f"fast as {baseline} ({min(ratios):.2f}-{max(ratios):.2f}, {options.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
