"""Probes of the use of depth: which blocks matter, and from where on the answer stands."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from hybridnorm.diagnose import figures
from hybridnorm.diagnose.probe import Probe, Reading, Size, StreamView
from hybridnorm.diagnose.table import Arms, Table, by_layer, select, steps_of

EPSILON = 0.01  # nats: what removing a block must cost for it to count as used


class BlockInfluence(Probe):
    """BI_l = 1 - E_t[cos(h_{l-1}, h_l)]: how much block l turns the stream.

    ShortGPT (arXiv 2403.03853).
    """

    name = "block-influence"
    title = "Block influence"
    reading = (
        "Near 0, a block leaves the direction of the stream as it found it, and could often be "
        "removed: the deep half of Pre-Norm models is like that. A block may turn the stream a lot "
        "and yet do nothing useful; block-removal asks the loss."
    )
    shown = (("", "block_influence", "1 - cos(stream in, stream out)"),)

    def stream(self, view: StreamView) -> Iterator[Reading]:
        for layer in range(1, len(view.states)):
            cosine_BT = _cosine(view.states[layer - 1], view.states[layer])
            yield Reading(layer, "", "block_influence", 1 - cosine_BT.mean(1))

    def memory(self, size: Size) -> int:
        return size.states


class AngularDistance(Probe):
    """arccos(cos(h_l, h_{l+n})) / pi, the mean over all tokens, for every pair of layers.

    Gromov et al. 2024 (arXiv 2403.17887), who take the last token only; over all tokens as
    LayerNorm Scaling's code does (arXiv 2502.05795). The value called `to_<m>` of layer l is the
    distance from h_l to h_m; layer 0 is the embedding.
    """

    name = "angular-distance"
    title = "Angular distance between layers"
    reading = (
        "Dark bands beside the diagonal are runs of layers that hardly turn the stream; 0.5 is a "
        "right angle. In a healthy use of depth the distance grows steadily away from the diagonal."
        " It compares directions only, and of the stream only: what a norm does after it is not "
        "in it."
    )
    shown = ()

    def stream(self, view: StreamView) -> Iterator[Reading]:
        states = view.states
        for layer, h in enumerate(states):
            for other in range(layer + 1, len(states)):
                angle_BT = _cosine(h, states[other]).clamp(-1, 1).arccos() / torch.pi
                yield Reading(layer, "", f"to_{other}", angle_BT.mean(1))

    def memory(self, size: Size) -> int:
        return size.states

    def draw(self, arms: Arms) -> Figure:
        """The last step, the mean of an arm's runs: a map for each arm."""
        maps = []
        for arm, runs in arms.items():
            grids = [_distances(table) for table in runs]
            maps.append((arm or "angular distance / pi", np.mean(grids, axis=0)))
        return figures.heat_maps(maps, "to layer", "from layer")


class BlockRemoval(Probe):
    """By how many nats the loss on held-out text rises when block l is left out, nothing retrained.

    Mix-LN (arXiv 2412.13795), KEEL (arXiv 2601.19895, App. A), SiameseNorm (arXiv 2602.08064,
    Fig. 2c). Effective depth: the blocks whose removal costs more than 0.01 nats. One forward pass
    per block.
    """

    name = "block-removal"
    title = "Loss when a block is removed"
    reading = (
        "Blocks that cost next to nothing are not used: their number is the depth that was paid for"
        " in vain. The first block mostly costs by far the most. Removing one block at a time says "
        "nothing of several: two blocks may stand in for each other. Below zero, the block harms on"
        " this text."
    )
    shown = (("", "loss_increase", "rise of the loss (nats)"),)

    def stream(self, view: StreamView) -> Iterator[Reading]:
        for layer, block in enumerate(view.model.blocks, start=1):
            with replaced(block, _passed_through):
                rise = view.repeat() - view.loss
            yield Reading(layer, "", "loss_increase", rise.expand(len(view.states[0])))

    def summary(self, table: Table) -> list[str]:
        lines = []
        for step in steps_of(table):
            costs = by_layer(table, "loss_increase", step).values()
            used = sum(cost > EPSILON for cost in costs)
            lines.append(
                f"step {step}: effective depth {used} of {len(costs)} measured "
                f"(removal costs > {EPSILON})"
            )
        return lines


class LogitLens(Probe):
    """How often the head, reading h_l through the final norm, names the same token as at the end.

    The share of tokens with equal argmax; nostalgebraist 2020, as in SiameseNorm (arXiv
    2602.08064). Beside it KL(final || layer) in nats. Layer 0 is the embedding.
    """

    name = "logit-lens"
    title = "Logit lens"
    reading = (
        "Where the curve is high early, the blocks that follow only refine an answer that stands; "
        "where it jumps in the last blocks, the depth is used to the end. The head was trained for "
        "the last state only, so that a low value does not mean that the answer is not yet there."
    )
    shown = (("", "agreement", "agreement with the output"), ("", "kl", "KL to the output (nats)"))

    def stream(self, view: StreamView) -> Iterator[Reading]:
        for layer, h_BTD in enumerate(view.states):
            found = [
                _agreement(view.model, h, last)
                for h, last in zip(h_BTD, view.states[-1], strict=True)
            ]
            agreement, kl = zip(*found, strict=True)
            yield Reading(layer, "", "agreement", torch.stack(agreement))
            yield Reading(layer, "", "kl", torch.stack(kl))

    def memory(self, size: Size) -> int:
        logits = 4 * size.seq_len * size.config.padded_vocab_size
        return size.states + 4 * logits


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module computes `forward` meanwhile; hooks of FSDP stay."""
    before = vars(module).pop("forward", None)
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _passed_through(x_BTD: Tensor, *inputs: Any) -> tuple[Tensor, list[Any]]:
    """A block that is not there."""
    return x_BTD, []


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.float(), b.float(), dim=-1)


def _agreement(model: Any, h_TD: Tensor, last_TD: Tensor) -> tuple[Tensor, Tensor]:
    mine, final = (
        model.logits(model.final_norm(x[None]))[0].float().log_softmax(-1) for x in (h_TD, last_TD)
    )
    kl = F.kl_div(mine, final, log_target=True, reduction="none").sum(-1).mean()
    return (mine.argmax(-1) == final.argmax(-1)).float().mean(), kl


def _distances(table: Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    step = steps_of(table)[-1]
    names = {row.name for row in table}
    size = 1 + max(int(name.removeprefix("to_")) for name in names)
    grid = np.full((size, size), np.nan)
    for name in names:
        for row in select(table, name):
            if row.step == step:
                grid[row.layer, int(name.removeprefix("to_"))] = row.value
    return grid


PROBES = (BlockInfluence, AngularDistance, BlockRemoval, LogitLens)
