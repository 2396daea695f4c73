"""Probes of stability: what quantization costs, and trainings of their own up to divergence."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from hybridnorm.charts import finish, look
from hybridnorm.diagnose.depth import replaced
from hybridnorm.diagnose.probe import Probe, Reading, Start, StreamView
from hybridnorm.diagnose.table import Arms, Table, by_layer, select, steps_of
from hybridnorm.model import GroupedLinear, Linear, grouped_linear

Format = Literal["int8", "fp8"]
_LARGEST: dict[Format, float] = {"int8": 127.0, "fp8": 448.0}  # of e4m3

_RAMP_FROM, _RAMP_TO, _RAMP_STEPS = 1e-4, 1.0, 160
_WINDOW, _RISE = 5, 0.5
_GRID = tuple(10 ** (exponent / 2) for exponent in range(-8, -1))  # three decades
_TRIAL_STEPS = 100


class Quantization(Probe):
    """By how many nats the loss on held-out text rises when matrices of blocks are quantized.

    Weights and inputs of every matrix in the blocks (embedding and head are not), each rounded with
    one scale per tensor that maps its largest magnitude to the format's: 8-bit integers (W8A8
    absmax), or emulated FP8 (e4m3). Layer l: in block l only; layer 0: in all blocks. Products are
    then taken in the model's dtype. Bondarenko et al. 2023 (arXiv 2306.12929), He et al. 2024
    (arXiv 2405.19279), FOG (arXiv 2505.20524).
    """

    name = "quantization"
    title = "Loss when matrices are quantized"
    reading = (
        "One scale per tensor is the coarsest way, so that outliers show: a single large entry "
        "takes the resolution of all others. A block that stands out has them (see outliers and "
        "massive-activations). Finer scales, which serving uses, cost less; short training has "
        "hardly any outliers yet."
    )
    shown = (
        ("", "int8", "rise of the loss, INT8 (nats)"),
        ("", "fp8", "rise of the loss, FP8 (nats)"),
    )

    def stream(self, view: StreamView) -> Iterator[Reading]:
        parts: list[nn.Module] = [view.model.blocks, *view.model.blocks]
        for layer, part in enumerate(parts):
            for format in _LARGEST:
                with ExitStack() as stack:
                    for module in part.modules():
                        if isinstance(module, Linear | GroupedLinear):
                            stack.enter_context(replaced(module, _quantized(module, format)))
                    rise = view.repeat() - view.loss
                yield Reading(layer, "", format, rise.expand(len(view.states[0])))

    def summary(self, table: Table) -> list[str]:
        lines = []
        for step in steps_of(table):
            for name in _LARGEST:
                rise = by_layer(table, name, step).get(0, math.nan)
                change = math.expm1(rise) if math.isfinite(rise) else math.nan
                lines.append(f"step {step}: all blocks in {name}: perplexity {change:+.2%}")
        return lines


class LearningRateRamp(Probe):
    """The largest learning rate that a fresh model survives while the rate is raised step by step.

    From 1e-4 to 1 in 160 steps, each rate 6% above the last, with the recipe's optimizer, data and
    seed and without warm-up. It ends where the mean loss of the last 5 steps is 0.5 nats above the
    lowest such mean, or not finite; the largest stable rate is that at the lowest mean before.
    After KEEL (arXiv 2601.19895, Table 1), which does not state its criterion. The ramp's steps
    stand in the column of layers.
    """

    name = "lr-ramp"
    title = "Learning-rate ramp until divergence"
    reading = (
        "How far right the curve goes before it turns up is the room a placement leaves for the "
        "learning rate. A ramp passes each rate in a step or two, so that it overrates what a long "
        "run bears: compare placements and depths by it, with several seeds, and do not take its "
        "number as a rate to train at. A curve that ends at 1 is censored: the edge lies beyond."
    )
    shown = ()

    def trial(self, start: Start) -> Iterator[Reading]:
        trainer = start(lambda recipe: recipe)
        growth = (_RAMP_TO / _RAMP_FROM) ** (1 / (_RAMP_STEPS - 1))
        losses: list[float] = []
        means: list[float] = []
        for step in range(_RAMP_STEPS):
            rate = _RAMP_FROM * growth**step
            trainer.train_step(rate)
            losses.append(trainer.log.read()[-1]["loss"])
            means.append(sum(losses[-_WINDOW:]) / len(losses[-_WINDOW:]))
            yield _number(step + 1, "lr", rate)
            yield _number(step + 1, "loss", losses[-1])
            if not means[-1] <= min(means) + _RISE:
                break
        best = min(range(len(means)), key=lambda i: means[i] if means[i] == means[i] else math.inf)
        yield _number(0, "largest_stable_lr", _RAMP_FROM * growth**best)
        yield _number(0, "diverged", float(not means[-1] <= min(means) + _RISE))

    def summary(self, table: Table) -> list[str]:
        [stable], [diverged] = select(table, "largest_stable_lr"), select(table, "diverged")
        end = "then it diverges" if diverged.value else "and beyond: it did not diverge"
        return [f"stable up to {stable.value:.2g}, {end}"]

    def draw(self, arms: Arms) -> Figure:
        return _over_rates(arms)


class LearningRateSensitivity(Probe):
    """mean over rates of min(loss(rate), loss_0) - min over rates of loss(rate), in nats.

    Seven rates, 1e-4 to 1e-1 in half decades, a training of 100 steps each with the recipe's
    schedule; loss is the mean training loss of the last 10 steps, loss_0 that of the first step.
    Wortsman et al. 2023 (arXiv 2309.14322).
    """

    name = "lr-sensitivity"
    title = "Loss after 100 steps by learning rate"
    reading = (
        "A flat bottom is a model that forgives a rate that is off by some factor; the number is 0 "
        "if every rate is as good as the best. It is about trainings of 100 steps: longer ones "
        "have lower best rates. An optimum at either end of the grid means that it was too short."
    )
    shown = ()

    def trial(self, start: Start) -> Iterator[Reading]:
        first, finals = math.inf, []
        for index, rate in enumerate(_GRID, start=1):
            losses = _train(start, lr=rate)
            first = losses[0]
            finals.append(_final(losses))
            yield _number(index, "lr", rate)
            yield _number(index, "loss", min(finals[-1], first))
        best = min(min(loss, first) for loss in finals)
        excess = sum(min(loss, first) - best for loss in finals) / len(finals)
        yield _number(0, "sensitivity", excess)

    def summary(self, table: Table) -> list[str]:
        [found] = select(table, "sensitivity")
        rates, losses = _curve(table)
        best = rates[losses.index(min(losses))]
        return [f"sensitivity {found.value:.3f} nats; best of these rates {best:.2g}"]

    def draw(self, arms: Arms) -> Figure:
        return _over_rates(arms)


class NoWarmup(Probe):
    """Training loss of 100 steps at the recipe's learning rate, with and without its warm-up.

    The zero-warm-up test of SiameseNorm (arXiv 2602.08064). The steps stand in the column of
    layers.
    """

    name = "no-warmup"
    title = "Training without warm-up"
    reading = (
        "Where the two curves end together, the warm-up is not needed at this rate; where the one "
        "without it stays high or jumps, the placement leans on it (Post-Norm is known to). A small"
        " model at a modest rate may pass and a large one fail."
    )
    shown = ()

    def trial(self, start: Start) -> Iterator[Reading]:
        for name, warmup in (("with", None), ("without", 0)):
            losses = _train(start, warmup=warmup)
            for step, loss in enumerate(losses, start=1):
                yield _number(step, name, loss)
            yield _number(0, f"{name}_final", _final(losses))

    def draw(self, arms: Arms) -> Figure:
        figure, axes = _axes()
        for index, (arm, runs) in enumerate(arms.items()):
            for (name, style), table in itertools.product((("with", "-"), ("without", "--")), runs):
                losses = by_layer(table, name, steps_of(table)[-1])
                losses.pop(0, None)
                label = f"{arm} {name} warm-up" if table is runs[0] else None
                colour = look(index)[0]
                axes.plot([*losses], [*losses.values()], style, color=colour, lw=1.3, label=label)
        finish(axes, "step", "training loss (nats per token)")
        axes.legend(frameon=False, fontsize=8)
        return figure

    def summary(self, table: Table) -> list[str]:
        ends = [select(table, f"{name}_final")[0].value for name in ("with", "without")]
        return ["loss {:.3f} with warm-up, {:.3f} without".format(*ends)]


def quantize(x: Tensor, format: Format) -> Tensor:
    """`x` rounded to the format, with one scale that maps its largest magnitude to the format's."""
    largest = _LARGEST[format]
    scale = x.detach().abs().amax().float().clamp_min(1e-30) / largest
    scaled = x.float() / scale
    if format == "int8":
        rounded = scaled.round().clamp(-largest, largest)
    else:
        rounded = scaled.clamp(-largest, largest).to(torch.float8_e4m3fn).float()
    return (rounded * scale).to(x.dtype)


def _quantized(module: Linear | GroupedLinear, format: Format) -> Callable[..., Tensor]:
    def forward(x: Tensor, *ends: Tensor) -> Tensor:
        weight = quantize(module.weight.to(x.dtype), format)
        if ends:
            return grouped_linear(quantize(x, format), weight, *ends)  # type: ignore[no-any-return]
        return F.linear(quantize(x, format), weight)

    return forward


def _train(start: Start, lr: float | None = None, warmup: int | None = None) -> list[float]:
    """The losses of a training of its own; it ends early where one is not finite."""

    def changed(recipe: Any) -> Any:
        optimizer, schedule = recipe.optimizer, recipe.schedule
        train = replace(recipe.train, steps=_TRIAL_STEPS)
        if lr is not None:
            optimizer = replace(optimizer, lr=lr)
        kept = schedule.warmup_steps if warmup is None else warmup
        schedule = replace(schedule, warmup_steps=min(kept, _TRIAL_STEPS // 2), decay_steps=None)
        return replace(recipe, train=train, optimizer=optimizer, schedule=schedule)

    trainer = start(changed)
    losses: list[float] = []
    while len(losses) < _TRIAL_STEPS and all(map(math.isfinite, losses[-1:])):
        trainer.train_step()
        losses.append(trainer.log.read()[-1]["loss"])
    return losses


def _final(losses: list[float]) -> float:
    return sum(losses[-10:]) / 10 if math.isfinite(losses[-1]) else math.inf


def _number(place: int, name: str, value: float) -> Reading:
    return Reading(place, "", name, torch.tensor(value, dtype=torch.float64), "first")


def _curve(table: Table) -> tuple[list[float], list[float]]:
    """Rates and losses."""
    step = steps_of(table)[-1]
    rates, losses = (by_layer(table, name, step) for name in ("lr", "loss"))
    return list(rates.values()), list(losses.values())


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    return figure, figure.add_subplot()


def _over_rates(arms: Arms) -> Figure:
    figure, axes = _axes()
    for index, (arm, runs) in enumerate(arms.items()):
        for number, table in enumerate(runs):
            label = arm if number == 0 and arm else None
            axes.plot(*_curve(table), color=look(index)[0], lw=1.3, label=label)
    axes.set_xscale("log")
    finish(axes, "learning rate", "training loss (nats per token)")
    if any(arms):
        axes.legend(frameon=False, fontsize=8)
    return figure


PROBES = (Quantization, LearningRateRamp, LearningRateSensitivity, NoWarmup)
