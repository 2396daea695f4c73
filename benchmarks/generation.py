"""Speed of greedy generation with a key/value cache beside other libraries.

    python benchmarks/environments.py            # once: the peers' virtual environments
    python benchmarks/generation.py --rounds 7

Every library runs its own `generate` on the same shape, in its own process and environment, and
they take turns in rounds; ratios are taken within a round. In bfloat16 the peers' weights are
bfloat16 as well. OLMo-core is left out: its cache needs flash-attn, and so a GPU.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from contenders import PEERS, SHAPES, Arm
from environments import DEFAULT as ENVIRONMENTS
from interleave import FailedError, Worker
from report import markdown, place, save

from hybridnorm.train.environment import environment

PROMPT, NEW = 32, 128
BATCHES = (1, 16)
DTYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class Generator(Arm):
    cache: str = "dynamic"
    batch: int = 1

    @property
    def setting(self) -> str:
        words = [self.dtype, "compiled" if self.compiled else "eager"]
        return ", ".join(words + [f"{self.cache} cache"] * (self.peer == "transformers Llama"))

    def __str__(self) -> str:
        return f"{super().__str__()}, batch {self.batch}"


def generators(dtype: str, batch: int) -> list[Generator]:
    names = ("hybridnorm-star", "pre-norm", "transformers Llama", "litgpt", "x-transformers")
    eager = [Generator(name, dtype, batch=batch) for name in names]
    llama = [
        Generator("transformers Llama", dtype, compiled, cache="static", batch=batch)
        for compiled in (False, True)
    ]
    return [*eager, *llama, Generator("litgpt", dtype, True, batch=batch)]


def start(arm: Generator, options: argparse.Namespace) -> Worker | None:
    """A worker that has generated once; None, and a line, for what does not run."""
    setup = arm.setup(SHAPES["256"], options.device, task="generate", prompt=PROMPT, new=NEW)
    try:
        worker = Worker(arm, setup, options.environments, options.out / "logs")
        worker.turn(1)
    except FailedError as error:
        print(f"{arm}: {error}", flush=True)
        return None
    print(f"{arm}: ready", flush=True)
    return worker


def race(batch: int, options: argparse.Namespace) -> dict[Generator, list[dict]]:
    """The turns of every generator, by round; every second round in reverse order."""
    arms = [arm for dtype in options.dtypes for arm in generators(dtype, batch)]
    workers = [worker for arm in arms if (worker := start(arm, options)) is not None]
    turns: dict[Generator, list[dict]] = defaultdict(list)
    for number in range(options.rounds):
        print(f"batch {batch}, round {number + 1} of {options.rounds}", flush=True)
        for worker in workers[:: -1 if number % 2 else 1]:
            turns[worker.arm].append(worker.turn(options.repeats))
    for worker in workers:
        worker.close()
    return turns


def table(batch: int, turns: dict[Generator, list[dict]]) -> str:
    """Fastest first; the ratios are those of our fastest setting."""
    seconds = {arm: [turn["seconds"] for turn in found] for arm, found in turns.items()}
    order = sorted(seconds, key=lambda arm: statistics.median(seconds[arm]))
    reference = next(arm for arm in order if PEERS[arm.peer].module == "hybridnorm")
    rows = [
        [
            "model",
            "setting",
            "tokens/s",
            "range",
            f"{reference.peer}, {reference.setting} is",
            "range",
            "peak MB",
        ]
    ]
    for arm in order:
        speeds = [batch * NEW / s for s in seconds[arm]]
        ratios = [a / b for a, b in zip(seconds[arm], seconds[reference], strict=True)]
        row = [f"**{arm.peer}**" if arm == reference else arm.peer, arm.setting]
        row += [f"{statistics.median(speeds):,.0f}", f"{min(speeds):,.0f}-{max(speeds):,.0f}"]
        row += [f"{statistics.median(ratios):.2f}x", f"{min(ratios):.2f}-{max(ratios):.2f}"]
        rows.append([*row, f"{max(turn['peak'] for turn in turns[arm]) / 1e6:,.0f}"])
    return f"Batch {batch}:\n\n{markdown(rows, left=2)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=2, help="timed generations per turn")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS)
    parser.add_argument("--out", type=Path, default=Path("build/throughput"))
    options = parser.parse_args()
    found = {batch: race(batch, options) for batch in BATCHES}
    if not all(found.values()):
        sys.exit("nothing runs; the lines above say why")
    about = environment(torch.device(options.device))
    text = (
        f"{SHAPES['256']}; prompt {PROMPT}, {NEW} new tokens; {options.rounds} rounds of "
        f"{options.repeats}; {place(about)}."
    )
    text = "\n\n".join([text, *(table(batch, turns) for batch, turns in found.items())]) + "\n"
    rows = [vars(arm) | {"turns": t} for turns in found.values() for arm, t in turns.items()]
    save(options.out, "generation", text, {"environment": about, "rounds": rows})
    print(text)


if __name__ == "__main__":
    main()
