"""What settings of the small recipe make of a minute of one core: held-out bits per byte.

    python benchmarks/small_setting.py 64x8 96x8-b8 --seconds 60 --lr 2e-3 4e-3 8e-3

A setting is WIDTHxBLOCKS, with `b2` for batches of two sequences and `v1024` for a vocabulary of
1024 after it: 96x16-b2-v1024. Its speed is measured first, in time of the processor, which others
on the machine do not change much, and decides how many steps a minute has. Losses of different
vocabularies are not comparable; bits per byte are.
"""

import argparse
import contextlib
import io
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from hybridnorm.data import load_tokenizer, open_data
from hybridnorm.data.dataset import Tokens
from hybridnorm.recipe import load_recipe
from hybridnorm.train import set_up_process, train
from hybridnorm.train.hooks import Hook, State
from hybridnorm.train.report import Metrics, read_metrics

TRIAL = 25  # steps


class Clock(Hook):
    """Processor seconds per step, the first five left out."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def after_step(self, state: State) -> None:
        self.at[state.step] = time.process_time()

    @property
    def per_step(self) -> float:
        return (self.at[TRIAL] - self.at[5]) / (TRIAL - 5)


def fields(setting: str, placement: str) -> dict[str, object]:
    """The recipe's fields that a setting stands for.

    The feed-forward width and the heads are the paper's at 550M, a sixteenth as wide.
    """
    width, blocks = map(int, re.findall(r"\d+", setting)[:2])
    found: dict[str, object] = {
        "model.placement": placement,
        "model.d_model": width,
        "model.n_layers": blocks,
        "model.n_heads": 4,
        "model.n_kv_heads": 1,
        "model.d_ff": width * 8 // 3 // 8 * 8,
        "train.threads": 1,
        "train.compile": "off",
    }
    for letter, field in (("b", "train.batch_size"), ("v", "data.tokenizer_vocab_size")):
        if option := re.search(rf"-{letter}(\d+)", setting):
            found[field] = int(option[1])
    return found


def unigram(settings: dict[str, object]) -> float:
    """Held-out loss of knowing how frequent each token is, and no more: the plateau to leave."""
    [folder] = open_data(load_recipe("small", settings).data, console=Console(quiet=True)).folders
    train, held_out = (Tokens(folder, split) for split in ("train", "validation"))
    vocabulary = load_tokenizer(folder).vocab_size
    counts = np.bincount(train.slice(0, train.n_tokens), minlength=vocabulary) + 1
    return float(-np.log(counts / counts.sum())[held_out.slice(0, held_out.n_tokens)].mean())


def run(settings: dict[str, object], steps: int, *hooks: Hook) -> Metrics:
    """Train, evaluate at the end, and forget the run."""
    rhythm = {
        "train.steps": steps,
        "schedule.warmup_steps": steps // 10,
        "train.eval_every": steps,
        "train.checkpoint_every": steps,
    }
    recipe = load_recipe("small", settings | rhythm)
    set_up_process(recipe.train)
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            train(recipe, Path(folder) / "run", hooks=hooks)
        return read_metrics(Path(folder) / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="+", metavar="SETTING")
    parser.add_argument("--placement", default="pre-norm")
    parser.add_argument("--lr", type=float, nargs="+", default=[4e-3])
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    print("| setting | lr | parameters | tokens/s | tokens | unigram | loss | bits per byte |")
    print("|---|---|---|---|---|---|---|---|")
    for setting in options.settings:
        shape = fields(setting, options.placement)
        clock, batch = Clock(), load_recipe("small", shape).train
        run(shape, TRIAL, clock)
        plateau = unigram(shape)
        steps = int(options.seconds / clock.per_step)
        speed = batch.batch_size * batch.seq_len / clock.per_step
        for lr in options.lr:
            found = run(shape | {"optimizer.lr": lr}, steps)
            end = found.evaluations[-1]
            print(
                f"| {setting} | {lr:g} | {found.events[0]['parameters']:,} | {speed:,.0f} "
                f"| {end['tokens']:,} | {plateau:.2f} | {end['val_loss']:.3f} "
                f"| {end['val_bits_per_byte']:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
