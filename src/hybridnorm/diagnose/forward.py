"""Probes of the forward pass: how the stream grows, and what each sublayer adds to it."""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hybridnorm.diagnose.probe import Probe, Reading, Size, StreamView, SublayerView
from hybridnorm.diagnose.table import Table, by_layer, steps_of
from hybridnorm.diagnose.tensors import norms, rms, whole
from hybridnorm.model import Norm, Scale, Transformer
from hybridnorm.placements import Placement, Sublayer

Growth = Literal["constant", "linear", "exponential"]
_FLAT = 1.5  # growth of the mean square over the whole depth that counts as none


class StreamRMS(Probe):
    """RMS(h_l) of the stream that leaves block l, the mean over tokens; Var(h_l) of all entries.

    Layer 0 is the embedding. Peri-LN (arXiv 2502.02732), LayerNorm Scaling (arXiv 2502.05795),
    SiameseNorm (arXiv 2602.08064, Fig. 2a). The growth class is that of the mean square over the
    blocks: constant if it grows by less than half; else linear or exponential, whichever least
    squares fit leaves less of its variance.
    """

    name = "stream-rms"
    title = "Size of the residual stream"
    reading = (
        "Pre-Norm adds to the stream in every block, so that later blocks change it less and less; "
        "norms on the stream hold it. Exponential growth ends in overflow or in loss spikes. A "
        "large stream is no fault in itself: what counts is what a block adds, relative to it (see "
        "the update ratio)."
    )
    shown = (("", "rms", "RMS of the stream"), ("", "variance", "variance of the stream"))

    def stream(self, view: StreamView) -> Iterator[Reading]:
        for layer, h_BTD in enumerate(view.states):
            yield Reading(layer, "", "rms", rms(h_BTD).mean(1))
            yield Reading(layer, "", "variance", h_BTD.float().flatten(1).var(1, correction=0))

    def memory(self, size: Size) -> int:
        return size.states

    def summary(self, table: Table) -> list[str]:
        lines = []
        for step in steps_of(table):
            values = [v for layer, v in by_layer(table, "rms", step).items() if layer]
            if len(values) > 2 and np.isfinite(values).all():
                kind, fits = growth(np.square(values))
                shown = ", ".join(f"{name} fit R² {r2:.3f}" for name, r2 in fits.items())
                lines.append(
                    f"step {step}: {kind} growth, {values[0]:.3g} to {values[-1]:.3g} ({shown})"
                )
        return lines


class UpdateRatio(Probe):
    """||b_l|| / ||h_l||, the mean over tokens: what a sublayer adds over the stream it enters.

    b_l is the contribution to the stream, with the branch's norms and scales; not what the module
    returns (they differ with norms on the output). AttnRes (arXiv 2603.15031); Csordas et al.
    (arXiv 2505.13898).
    """

    name = "update-ratio"
    title = "What a sublayer adds, relative to the stream"
    reading = (
        "A ratio near 1 rewrites the stream, one below a few hundredths hardly changes it: a depth "
        "of such layers is little used (the curse of depth). The two spellings of HybridNorm have "
        "different streams between attention and feed-forward, so compare their blocks, not their "
        "sublayers. It says nothing about whether the change is useful; see block-removal."
    )
    shown = (
        ("attention", "update_ratio", "attention: update / stream"),
        ("feed_forward", "update_ratio", "feed-forward: update / stream"),
    )
    log = True

    def sublayer(self, view: SublayerView) -> Iterator[Reading]:
        ratio = norms(view.contribution) / norms(view.x)
        yield Reading(view.layer, view.name, "update_ratio", ratio.mean(1))


class StreamNormJacobian(Probe):
    """How the norms on the stream scale the identity path, sublayer by sublayer and as a product.

    Measured: skip scale x RMS(out) / RMS(in), the mean over tokens, of each norm that the stream
    passes (a post-norm, or an input norm that the skip carries). It is the Jacobian of RMSNorm
    across directions other than the stream's own. Analytic: the same where every branch adds an
    uncorrelated vector of RMS 1 to a stream that enters with RMS 1; for Post-Norm with skip scale
    a it is KEEL's (a / sqrt(a^2 + 1))^n for n norms (arXiv 2601.19895). The norm before the head
    is not counted.
    """

    name = "stream-norm-jacobian"
    title = "Product of the stream norms' Jacobian factors"
    reading = (
        "The product says by how much a gradient that takes the residual path alone is scaled from "
        "the last block to the first. Far below 1 is vanishing (classical Post-Norm), far above 1 "
        "exploding; Pre-Norm has no norm on the stream and stays at 1. The first norm after a small"
        " embedding has a factor of ten and more, which the analytic form leaves out. Gradients "
        "through the branches are not in it: it is no proof, an estimate at best."
    )
    shown = (("", "product", "product up to the layer"), ("", "analytic", "analytic product"))
    log = True

    def __init__(self) -> None:
        self.product: Tensor | float = 1.0

    def sublayer(self, view: SublayerView) -> Iterator[Reading]:
        residual = view.module
        if view.layer == 1 and view.name == "attention":
            self.product = view.x.new_ones(len(view.x), dtype=torch.float32)
        factor = torch.full_like(torch.as_tensor(self.product), _value(residual.skip_scale))
        if residual.skip == "normed":
            factor = factor * (rms(view.normed) / rms(view.x)).mean(1)
        if isinstance(residual.post_norm, Norm):
            factor = factor * (rms(view.out) / rms(view.summed)).mean(1)
        self.product = self.product * factor
        yield Reading(view.layer, view.name, "factor", factor)
        if view.name == "feed_forward":
            yield Reading(view.layer, "", "product", self.product)

    def weights(self, model: Transformer) -> Iterator[Reading]:
        products = analytic_products(model.placement, model.config.n_layers, model.config.d_model)
        for layer, product in enumerate(products, start=1):
            yield Reading(layer, "", "analytic", torch.tensor(product))

    def summary(self, table: Table) -> list[str]:
        lines = []
        for step in steps_of(table):
            ends = [by_layer(table, name, step) for name in ("product", "analytic")]
            measured, analytic = ([*products.values()][-1] for products in ends)
            lines.append(f"step {step}: product {measured:.3g}, analytic {analytic:.3g}")
        return lines


class NormGains(Probe):
    """Mean, smallest and largest |gain| of every norm, and of every learned scale.

    Sublayer is the module's name in its block, such as attention.branch.q_norm; of zero-centred
    gains, 1 + weight. No paper defines it: the authors' code decays gains, those on the stream,
    too, and so shrinks it.
    """

    name = "gains"
    title = "Gains of the norms"
    axis = "step"
    reading = (
        "Gains start at 1 (or where the placement says) and drift apart: a gain that shrinks turns "
        "its sublayer off, one that grows lets it dominate. With weight decay on gains (the "
        "authors' choice) a norm on the stream shrinks the stream itself. Before a projection, a "
        "gain and the scale of the projection do the same, so that only their product means "
        "anything."
    )
    shown = (("", "gain_mean", "mean |gain| of the block's norms"),)

    def weights(self, model: Transformer) -> Iterator[Reading]:
        for layer, block in enumerate(model.blocks, start=1):
            found = dict(_gains(block))
            for sublayer, gain in found.items():
                yield Reading(layer, sublayer, "gain_mean", gain.mean())
                yield Reading(layer, sublayer, "gain_smallest", gain.amin())
                yield Reading(layer, sublayer, "gain_largest", gain.amax())
            if found:
                means = torch.stack([gain.mean() for gain in found.values()])
                yield Reading(layer, "", "gain_mean", means.mean())
        for sublayer, gain in _gains(model, depth=1):
            layer = 0 if sublayer.startswith("embed") else model.config.n_layers
            yield Reading(layer, sublayer, "gain_mean", gain.mean())


def growth(mean_squares: Iterable[float]) -> tuple[Growth, dict[str, float]]:
    """The growth class of the stream over the blocks, and R² of the linear and exponential fit."""
    m = np.asarray(list(mean_squares), dtype=float)
    layers = np.arange(len(m))
    slope, start = np.polyfit(layers, m, 1)
    rate, log_start = np.polyfit(layers, np.log(np.maximum(m, 1e-300)), 1)
    spread = ((m - m.mean()) ** 2).sum()
    fits = {
        "linear": start + slope * layers,
        "exponential": np.exp(log_start + rate * layers),
    }
    r2 = {
        name: float(1 - ((m - fit) ** 2).sum() / spread) if spread else 1.0
        for name, fit in fits.items()
    }
    grown = float(np.exp(rate * (len(m) - 1)))
    if 1 / _FLAT < grown < _FLAT:
        return "constant", r2
    return ("linear" if r2["linear"] >= r2["exponential"] else "exponential"), r2


def analytic_products(placement: Placement, n_layers: int, d_model: int) -> list[float]:
    """The product of the factors up to each block, for branches and an embedding of RMS 1."""
    product, v, products = 1.0, 1.0, []
    for layer in range(n_layers):
        block, v_block = placement.block(layer, n_layers), v
        for spec in (block.attention, block.feed_forward):
            scale, share = (
                scale.at(layer, n_layers, d_model) for scale in (spec.skip_scale, spec.branch_scale)
            )
            if spec.skip == "normed":
                product, v = product / v**0.5, 1.0
            product *= scale
            v = scale**2 * _carried(spec, v, v_block) + share**2
            if spec.post_norm is not None:
                product, v = product / v**0.5, 1.0
        products.append(product)
    return products


def _carried(spec: Sublayer, v: float, v_block: float) -> float:
    """The mean square of what the skip carries, its parts uncorrelated."""
    return {"block_input": v_block, "raw+block_input": v + v_block}.get(spec.skip, v)


def _gains(module: nn.Module, depth: int | None = None) -> Iterator[tuple[str, Tensor]]:
    """|gain| of each norm and learned scale, by the module's name; whole, on every rank."""
    for name, part in module.named_modules():
        if depth is not None and name.count(".") >= depth:
            continue
        weight = part.weight if isinstance(part, Norm | Scale) else None
        if weight is not None:
            centre = 1.0 if isinstance(part, Norm) and part.zero_centered else 0.0
            yield name, (centre + whole(weight)).abs()


def _value(scale: Scale) -> float:
    """A constant, or the mean of what was learned."""
    return scale.value if scale.weight is None else float(whole(scale.weight).mean())


PROBES = (StreamRMS, UpdateRatio, StreamNormJacobian, NormGains)
