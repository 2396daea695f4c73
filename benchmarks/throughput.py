"""Training speed beside other libraries, each in the fastest setting it has on this machine.

    python benchmarks/environments.py            # once: the peers' virtual environments
    python benchmarks/throughput.py --shape 256 --rounds 7
    python benchmarks/throughput.py --shape 151M --device cuda
    python benchmarks/throughput.py --shape demo --check

All train the same shape on the same random tokens: forward, backward, clipping, fused AdamW. First
every peer runs alone in all its settings; the fastest then stay alive, each in its own process and
environment, and take turns in rounds. Ratios are taken within a round. `--check` trains 20 steps
in every setting of hybridnorm and compares the losses with those of float32, eager.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from contenders import DEFAULT, PEERS, SHAPES, Arm, Shape, settings
from environments import DEFAULT as ENVIRONMENTS
from interleave import FailedError, Worker, available_memory, gemm
from report import Results, write

OURS = ("hybridnorm-star", "pre-norm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Nats, over 20 steps from equal weights on equal tokens: what rounding adds up to, with a margin.
TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2}
TRIALS = 3  # turns of a setting alone, of which the best counts: noise only makes slower
MEMORY_SHARE = 0.85  # of what is free; the rest is for this process and for chance


class Stable:
    """Starts workers for one shape."""

    def __init__(self, shape: Shape, options: argparse.Namespace) -> None:
        self.shape, self.options = shape, options

    def start(self, arm: Arm) -> Worker:
        options = self.options
        setup = arm.setup(self.shape, options.device, task="train")
        return Worker(arm, setup, options.environments, options.out / "logs")


def qualify(stable: Stable, peers: Sequence[str], steps: int) -> dict[Arm, dict]:
    """The best turn of every setting alone: what the worker said, or `{"error": ...}`."""
    found: dict[Arm, dict] = {}
    dtypes = stable.options.dtypes
    for arm in [arm for name in peers for arm in settings(PEERS[name], dtypes)]:
        try:
            worker = stable.start(arm)
            turns = [worker.turn(steps) for _ in range(TRIALS)]
            found[arm] = min(turns, key=lambda turn: turn["seconds"])
            found[arm]["parameters"] = worker.parameters
            worker.close()
            said = f"{stable.shape.tokens / found[arm]['seconds']:,.0f} tokens/s"
        except FailedError as error:
            found[arm] = {"error": str(error)}
            said = str(error)
        print(f"{arm}: {said}", flush=True)
    return found


def finalists(found: dict[Arm, dict], device: str) -> list[Arm]:
    """The fastest settings of every peer, as many as fit into memory side by side.

    The fastest of each dtype, every setting of ours, and the fastest of all with the C library told
    to keep its memory; else only the last and the same without; else only the fastest of all.
    """
    ran = {arm: turn for arm, turn in found.items() if "error" not in turn}

    def fastest(peer: str, *dtypes: str) -> Arm:
        mine = [arm for arm in ran if arm.peer == peer and arm.dtype in dtypes]
        return min(mine, key=lambda arm: ran[arm]["seconds"])

    peers = list(dict.fromkeys(arm.peer for arm in ran))
    dtypes = [dtype for dtype in DTYPES if dtype in {arm.dtype for arm in ran}]
    best = [fastest(peer, *DTYPES) for peer in peers]
    each = [fastest(peer, dtype) for peer in peers for dtype in dtypes]
    kept = [] if device == "cuda" else [replace(arm, kept=True) for arm in best]
    ours = [arm for arm in ran if arm.peer in OURS and arm not in each]
    own = [DEFAULT] if OURS[0] in peers else []
    room = MEMORY_SHARE * available_memory(device)
    for chosen in (each + ours + kept, best + kept, kept or best):
        turns = [ran[replace(arm, kept=False)] for arm in chosen]
        turns += turns[:1] * len(own)  # of our default only the size matters here
        idle = sum(turn["idle"] for turn in turns)
        if idle + max(turn["peak"] - turn["idle"] for turn in turns) < room:
            break
    return own + chosen


def race(stable: Stable, arms: Sequence[Arm], results: Results) -> None:
    """Rounds of turns; every second one in reverse order, so that a drift cancels."""
    options = stable.options
    workers = [stable.start(arm) for arm in arms]
    for worker in workers:
        worker.turn(1)  # compile
        results.parameters[worker.arm] = worker.parameters
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", flush=True)
        for dtype in DTYPES:
            results.gemm[dtype].append(gemm(stable.shape, DTYPES[dtype], options.device))
        for worker in workers[:: -1 if number % 2 else 1]:
            results.turns[worker.arm].append(worker.turn(options.steps))
    for worker in workers:
        worker.close()


def check(stable: Stable) -> bool:
    """Whether the losses of all our settings are those of float32, eager, within tolerance."""
    fine = True
    for name in OURS:
        reference, *others = settings(PEERS[name])
        expected = losses(stable, reference)
        first, last = expected[0], expected[-1]
        print(f"{reference}: from {first:.4f} to {last:.4f} nats in {len(expected)} steps")
        for arm in others + [DEFAULT] * (name == DEFAULT.peer):
            worst = max(abs(a - b) for a, b in zip(losses(stable, arm), expected, strict=True))
            tolerance = TOLERANCES["fp32" if arm.dtype == "fp32" else "bf16"]
            fine &= worst <= tolerance
            verdict = "" if worst <= tolerance else ": exceeded"
            print(f"{arm}: differs by {worst:.1e}, tolerance {tolerance:.0e}{verdict}", flush=True)
    return fine


def losses(stable: Stable, arm: Arm, steps: int = 20) -> list[float]:
    worker = stable.start(arm)
    found = worker.turn(steps - 1)["losses"]
    worker.close()
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="256")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="timed steps per turn")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--out", type=Path, default=Path("build/throughput"))
    parser.add_argument("--check", action="store_true", help="compare losses, time nothing")
    options = parser.parse_args()
    if options.shape == "151M" and options.device != "cuda":
        parser.error("--shape 151M needs --device cuda")
    return options


def main() -> None:
    options = parse()
    shape = SHAPES[options.shape]
    stable = Stable(shape, options)
    try:
        if options.check:
            sys.exit(not check(stable))
        found = qualify(stable, options.peers, options.steps)
        if all("error" in turn for turn in found.values()):
            sys.exit("no peer runs; the lines above say why")
        arms = finalists(found, options.device)
        results = Results(shape, options.device, options.steps, found, arms)
        race(stable, arms, results)
    except FailedError as error:
        sys.exit(str(error))
    print(write(results, options.out, f"throughput-{options.shape}"))


if __name__ == "__main__":
    main()
