"""Probes of gradients: which layers learn, and whether the signal survives the depth."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from hybridnorm.diagnose.probe import GradientView, Probe, Reading
from hybridnorm.diagnose.table import Table, by_layer, steps_of
from hybridnorm.train import World

_READING = (
    "A flat line means that every layer gets a gradient of the same size; a line that rises or "
    "falls by orders of magnitude, that some layers learn fast while others barely move. "
)
_LIMITS = (
    "AdamW divides by the size of the gradient, so a small gradient need not mean small steps; and "
    "the authors themselves say that balance in early steps does not predict quality: HybridNorm* "
    "is less balanced than HybridNorm and trains better (BryceZhuo/HybridNorm#1)."
)


class _GradientNorms(Probe):
    log = True

    def summary(self, table: Table) -> list[str]:
        [(sublayer, name, _)] = self.shown
        return [
            f"step {step}: largest over smallest layer {ratio_over_depth(norms):.3g}"
            for step in steps_of(table)
            if (norms := by_layer(table, name, step, sublayer))
        ]


class FeedForwardGradients(_GradientNorms):
    """||dL/dW||_2 of all matrices of a block's feed-forward network together, before clipping.

    Xiong et al. 2020 (arXiv 2002.04745), Fig. 3; the HybridNorm paper's Fig. 2, as its authors say
    it was made (BryceZhuo/HybridNorm#1). With experts: of all experts and their router. Beside it,
    the norm of each matrix.
    """

    name = "gradients-ffn"
    title = "Gradient norm of the feed-forward matrices"
    reading = f"{_READING}Only feed-forward matrices count, as in the paper's Figure 2. {_LIMITS}"
    shown = (("feed_forward", "gradient_norm", "gradient norm"),)

    def gradients(self, view: GradientView) -> Iterator[Reading]:
        yield from _matrices(view, "feed_forward")


class AttentionGradients(_GradientNorms):
    """||dL/dW||_2 of the matrices of a block's attention (q, k, v, o) together, before clipping.

    As `gradients-ffn`, for the other sublayer. Beside it, the norm of each matrix.
    """

    name = "gradients-attention"
    title = "Gradient norm of the attention matrices"
    reading = (
        f"{_READING}A projection whose result is normed gets a gradient that falls as its own "
        f"weights grow, so its size alone says little. {_LIMITS}"
    )
    shown = (("attention", "gradient_norm", "gradient norm"),)

    def gradients(self, view: GradientView) -> Iterator[Reading]:
        yield from _matrices(view, "attention")


class AllGradients(_GradientNorms):
    """||dL/dW||_2 of all parameters of a block together, norms and scales too, before clipping.

    Layer 0 is the embedding. What a user plotted who could not reproduce the paper's Figure 2
    (BryceZhuo/HybridNorm#1).
    """

    name = "gradients-all"
    title = "Gradient norm of all parameters of a block"
    reading = (
        f"{_READING}This is not the paper's Figure 2, which has feed-forward matrices only. "
        f"{_LIMITS}"
    )
    shown = (("", "gradient_norm", "gradient norm"),)

    def gradients(self, view: GradientView) -> Iterator[Reading]:
        groups = [list(m.parameters()) for m in (view.model.embedding, *view.model.blocks)]
        squares = squared_norms([p for group in groups for p in group], view.world)
        parts = torch.split(squares, [len(group) for group in groups])
        for layer, part in enumerate(parts):
            yield Reading(layer, "", "gradient_norm", part.sum().sqrt())


class StreamGradients(_GradientNorms):
    """||dL/dh_l||_2 of the stream h_l that leaves block l, over all tokens of the batch.

    Layer 0 is the embedding. GPAS (arXiv 2506.22049); OLMo-core's GAPMonitor. L is the mean loss
    per token.
    """

    name = "gradients-stream"
    title = "Gradient norm of the residual stream"
    reading = (
        "Read from right to left, as the backward pass goes: a line that falls towards layer 0 is "
        "a vanishing gradient, one that rises an exploding one. A step at one layer is the norm "
        "that sits there: a norm on the stream multiplies the gradient by about 1/RMS of its input."
        " It does not say which weights make use of the gradient."
    )
    shown = (("", "stream_gradient_norm", "norm of dL/dh"),)

    def gradients(self, view: GradientView) -> Iterator[Reading]:
        for layer, norm in enumerate(view.stream):
            yield Reading(layer, "", "stream_gradient_norm", torch.tensor(norm))


def ratio_over_depth(norms: dict[int, float]) -> float:
    """The largest over the smallest of the layers; infinite where one is 0."""
    smallest = min(norms.values())
    return max(norms.values()) / smallest if smallest else float("inf")


def squared_norms(parameters: Iterable[nn.Parameter], world: World) -> Tensor:
    """||dL/dW||^2 of each, of the whole tensors, float32; every rank calls it."""
    parts = [_local_square(parameter) for parameter in parameters]
    return world.mean(torch.stack(parts))


def _local_square(parameter: nn.Parameter) -> Tensor:
    """What this rank adds to the mean over the ranks.

    A tensor in n shards is held size / n times, so the mean counts each shard 1 / n times.
    """
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros((), device=parameter.device)
    if not isinstance(gradient, DTensor):
        return gradient.detach().float().square().sum()
    shards = 1
    for placement, ranks in zip(gradient.placements, gradient.device_mesh.shape, strict=True):
        shards *= ranks if isinstance(placement, Shard) else 1
    return gradient.to_local().detach().float().square().sum() * shards


def _matrices(view: GradientView, sublayer: str) -> Iterator[Reading]:
    found = [
        (layer, name.removesuffix(".weight"), parameter)
        for layer, block in enumerate(view.model.blocks, start=1)
        for name, parameter in getattr(block, sublayer).branch.named_parameters()
        if parameter.ndim >= 2
    ]
    squares = squared_norms([parameter for *_, parameter in found], view.world)
    for layer in range(1, len(view.model.blocks) + 1):
        mine = [i for i, (of, *_) in enumerate(found) if of == layer]
        yield Reading(layer, sublayer, "gradient_norm", squares[mine].sum().sqrt())
    for (layer, name, _), square in zip(found, squares, strict=True):
        yield Reading(layer, sublayer, f"gradient_norm.{name}", square.sqrt())


PROBES = (FeedForwardGradients, AttentionGradients, AllGradients, StreamGradients)
