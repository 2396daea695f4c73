"""The built-in studies and what they take. No torch."""

import timeit
from dataclasses import replace

import numpy as np
from rich.table import Table

from hybridnorm.model import flops_per_token, parameter_counts
from hybridnorm.recipe import Recipe, builtin
from hybridnorm.study.plan import Run, load_study
from hybridnorm.text import clock

_SIZE, _TRIES = 512, 500  # of square matrices; a second, of which others leave some free
_SHARE = 0.5  # of the speed of such a product: the demo study's, two runs at a time on two cores
_START = 5.0  # seconds that a run takes besides its steps, with another one beside it


def list_studies() -> Table:
    """Every built-in study with its runs, tokens, parameters and the time it takes here, about."""
    table = Table(box=None)
    names = sorted(builtin("studies"))
    for heading in ("study", "runs", "tokens", "parameters", "time here", "title"):
        words = heading in ("study", "title")
        table.add_column(heading, justify="left" if words else "right", no_wrap=not words)
    table.columns[0].min_width = max(map(len, names))
    speed = _product_speed()
    for name in names:
        study = load_study(name)
        tokens = [run.recipe.train.planned_tokens for run in study.runs]
        parameters = [_parameters(run) for run in study.runs]
        seconds = sum(_seconds(run.recipe, speed) for run in study.runs)
        more = "+" if study.floor or study.extend else ""
        counts = (f"{len(study.runs)}{more}", _span(tokens), _span(parameters))
        table.add_row(name, *counts, f"{clock(seconds)}{more}", study.title)
    table.caption = (
        "tokens: of each run; time here: about, with a run per core; +: and what `floor` or "
        "`extend` adds"
    )
    table.caption_justify = "left"
    return table


def _span(numbers: list[int]) -> str:
    low, high = (f"{number / 1e6:.2f}" for number in (min(numbers), max(numbers)))
    return f"{low}M" if low == high else f"{low}–{high}M"


def _with_vocabulary(recipe: Recipe) -> Recipe:
    """The recipe as it will be once its tokenizer is trained."""
    size = recipe.model.vocab_size or recipe.data.tokenizer_vocab_size
    return replace(recipe, model=replace(recipe.model, vocab_size=size))


def _parameters(run: Run) -> int:
    return parameter_counts(_with_vocabulary(run.recipe).model, run.placement).total


def _seconds(recipe: Recipe, speed: float) -> float:
    per_token = flops_per_token(_with_vocabulary(recipe).model, recipe.train.seq_len)
    return _START + recipe.train.planned_tokens * per_token / (_SHARE * speed)


def _product_speed() -> float:
    """FLOP/s of a matrix product in float32 on this machine's CPU, undisturbed."""
    square = np.ones((_SIZE, _SIZE), dtype=np.float32)
    best = min(timeit.repeat(lambda: square @ square, number=1, repeat=_TRIES))
    return 2 * _SIZE**3 / best
