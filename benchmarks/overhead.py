"""What the placements of a study cost: time of a step, parameters, FLOPs, peak memory.

    python benchmarks/overhead.py placements
    python benchmarks/overhead.py placements --preset 151M --batch 8 --seq 2048 --device cuda
    python benchmarks/overhead.py demo --placements hybridnorm-star --compiled

The paper's Table 11 is a calculation; this is the measurement. All placements are in one process
and take turns, every second round in reverse order, since two processes of one setting can differ
by a sixth, which is more than two placements do. A ratio is that of a placement to the baseline
within a round; the median and the range are over rounds. Peak memory is that of a process of its
own, less what it held before.
"""

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from peers.hybridnorm import DTYPES, optimizer
from peers.worker import Training, peak_memory
from rich.console import Console
from rich.table import Table

from hybridnorm.model.config import ModelConfig, preset
from hybridnorm.model.flops import flops_per_token, norm_width, parameter_counts
from hybridnorm.model.parallel import parallelize
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import norms_of, placement
from hybridnorm.recipe.config import TrainConfig
from hybridnorm.study.plan import PLACEMENT, load_study
from hybridnorm.train.process_setup import set_up_process

VOCABULARY = 4096  # where neither preset nor recipe says one
NORM = 4  # FLOPs per feature and forward pass, as Table 11 counts: square, sum, scale, gain


def norm_flops(config: ModelConfig) -> int:
    """FLOPs of all norms per token of training, three times those of a forward pass."""
    chosen, total = placement(config.placement), 0
    for layer in range(config.n_layers):
        block = chosen.block(layer, config.n_layers)
        for spec in (block, block.attention, block.feed_forward):
            total += sum(norm_width(name, config, layer) for name in norms_of(spec))
    ends = (chosen.embed_norm, chosen.final(config.n_layers))
    return 3 * NORM * (total + config.d_model * sum(norm is not None for norm in ends))


def build(setup: SimpleNamespace):
    """As `peers.worker.Training` takes it."""
    model = Transformer(setup.config).to(setup.device)
    model.dtype = DTYPES[setup.dtype]
    parallelize(model, None, compile_blocks=setup.compiled)
    return model, model.loss


OURS = SimpleNamespace(OWN_PRECISION=True, build=build, optimizer=optimizer)


def training(setup: SimpleNamespace) -> Training:
    """A placement that trains, in the setting of all."""
    set_up_process(TrainConfig(threads=setup.threads))
    return Training(OURS, setup)


def memory(setup: SimpleNamespace) -> int:
    """Bytes at the peak of two steps, in a process of its own."""
    before = 0 if setup.device == "cuda" else peak_memory("cpu")
    training(setup).turn(1)
    return peak_memory(setup.device) - before


def in_turns(setups: list[SimpleNamespace], rounds: int, steps: int) -> list[list[float]]:
    """Seconds per step of each, round by round."""
    trainings = [training(setup) for setup in setups]
    for each in trainings:
        each.turn(steps)  # compile, warm up
    seconds: list[list[float]] = [[] for _ in trainings]
    for number in range(rounds):
        pairs = list(zip(trainings, seconds, strict=True))
        for each, mine in pairs[:: -1 if number % 2 else 1]:
            mine.append(each.turn(steps)["seconds"])
    return seconds


def table(setups: list[SimpleNamespace], seconds: list[list[float]], peaks: list[int]) -> Table:
    """A line per placement; the first is the baseline."""
    first = setups[0]
    config, shape = first.config, first.shape
    found = Table(
        title=f"d_model {config.d_model} x {config.n_layers} blocks, {shape.batch} x {shape.seq} "
        f"tokens; {first.dtype}, {'compiled' if first.compiled else 'eager'}, {first.device}, "
        f"{len(seconds[0])} rounds",
        title_justify="left",
    )
    columns = (
        "ms per step",
        "over the baseline",
        "parameters",
        "FLOPs per token",
        "norms",
        "peak MiB",
    )
    for heading in ("placement", *columns):
        found.add_column(heading, justify="left" if heading == "placement" else "right")
    for setup, mine, peak in zip(setups, seconds, peaks, strict=True):
        config, chosen = setup.config, placement(setup.config.placement)
        ratios = [a / b for a, b in zip(mine, seconds[0], strict=True)]
        flops = flops_per_token(config, shape.seq)
        found.add_row(
            config.placement,
            f"{1e3 * statistics.median(mine):.1f}",
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})",
            f"{parameter_counts(config, chosen).total:,}",
            f"{flops:,}",
            f"{norm_flops(config) / flops:.2%}",
            f"{peak / 2**20:,.0f}",
        )
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", help="a built-in study or a .toml file")
    parser.add_argument("--placements", nargs="+", help="those of the study, if not all")
    parser.add_argument("--preset", help="a size, if not the study's")
    parser.add_argument("--batch", type=int, help="sequences, if not the study's")
    parser.add_argument("--seq", type=int, help="tokens per sequence, if not the study's")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=8, help="timed steps per turn")
    parser.add_argument("--out", type=Path, help="a text file of the table")
    return parser.parse_args()


def setups_of(options: argparse.Namespace) -> list[SimpleNamespace]:
    """What is trained: the baseline first."""
    study = load_study(options.study)
    recipe = study.runs[0].recipe
    model = preset(options.preset) if options.preset else recipe.model
    vocab_size = model.vocab_size or VOCABULARY
    batch, seq = options.batch or recipe.train.batch_size, options.seq or recipe.train.seq_len
    shape = SimpleNamespace(vocab_size=vocab_size, batch=batch, seq=seq)
    baseline = str(study.baseline) if study.compare == PLACEMENT else next(iter(study.placements))
    names = [name for name in study.placements if name in (options.placements or study.placements)]
    names = dict.fromkeys([baseline, *names])
    return [
        SimpleNamespace(
            config=replace(model, placement=name, vocab_size=vocab_size),
            **vars(options) | {"shape": shape},
        )
        for name in names
    ]


def main() -> None:
    options = parse()
    setups = setups_of(options)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as alone:
        peaks = list(alone.map(memory, setups))
    found = table(setups, in_turns(setups, options.rounds, options.steps), peaks)
    Console(width=140).print(found)
    if options.out:
        with options.out.open("w") as file:
            Console(width=140, file=file).print(found)


if __name__ == "__main__":
    main()
