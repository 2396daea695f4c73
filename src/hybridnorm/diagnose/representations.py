"""Probes of the states: are tokens told apart, how many directions are used, are there outliers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from hybridnorm.diagnose.probe import Probe, Reading, Size, StreamView
from hybridnorm.diagnose.table import Table, by_layer, steps_of

_MASSIVE, _TIMES_MEDIAN = 100.0, 1000.0


class TokenSimilarity(Probe):
    """Mean cosine between the states of two different tokens of a sequence, after each block.

    Noci et al. 2022 (arXiv 2206.03126); the HybridNorm paper's Fig. 7. Layer 0 is the embedding.
    """

    name = "token-similarity"
    title = "Cosine similarity between tokens"
    axis = "step"
    reading = (
        "Near 1, all tokens look alike: rank collapse, deep layers cannot tell them apart. Near 0 "
        "they are as good as independent. A common direction of all tokens raises it just the same,"
        " though a model may subtract it without loss: read it beside the rank."
    )
    shown = (("", "token_similarity", "mean cosine between tokens"),)

    def stream(self, view: StreamView) -> Iterator[Reading]:
        for layer, h_BTD in enumerate(view.states):
            unit_BTD = torch.nn.functional.normalize(h_BTD.float(), dim=-1)
            n = h_BTD.shape[1]
            # The sum over all pairs, less a token with itself.
            pairs_B = unit_BTD.sum(1).square().sum(-1) - unit_BTD.square().sum((1, 2))
            yield Reading(layer, "", "token_similarity", pairs_B / (n * (n - 1)))

    def memory(self, size: Size) -> int:
        return 2 * size.states

    def summary(self, table: Table) -> list[str]:
        return [
            f"step {step}: {values[min(values)]:.3f} (layer {min(values)}) to "
            f"{values[max(values)]:.3f} (layer {max(values)}), highest {max(values.values()):.3f}"
            for step in steps_of(table)
            if (values := by_layer(table, "token_similarity", step))
        ]


class StateRank(Probe):
    """Effective rank exp(H(s / sum s)) and stable rank ||X||_F^2 / ||X||_2^2 of the states X.

    X `(seq, d_model)` are those of a sequence, not centred, s its singular values. Roy & Vetterli
    2007 for the effective rank; Noci et al. 2022 (arXiv 2206.03126) for its use. The dearest of the
    probes: a decomposition per sequence and layer.
    """

    name = "rank"
    title = "Rank of the states"
    reading = (
        "How many directions the states of a sequence use, out of the smaller of its length and "
        "d_model. A rank that falls towards 1 is a collapse. The stable rank is ruled by the "
        "largest direction (a massive activation sends it to 1), the effective rank by all of them."
    )
    shown = (("", "effective_rank", "effective rank"), ("", "stable_rank", "stable rank"))

    def stream(self, view: StreamView) -> Iterator[Reading]:
        for layer, h_BTD in enumerate(view.states):
            squares_BN = _squared_singular_values(h_BTD).to(h_BTD.device)
            share_BN = squares_BN.sqrt() / squares_BN.sqrt().sum(-1, keepdim=True)
            entropy_B = torch.special.entr(share_BN).sum(-1)
            yield Reading(layer, "", "effective_rank", entropy_B.exp())
            stable_B = squares_BN.sum(-1) / squares_BN.amax(-1)
            yield Reading(layer, "", "stable_rank", stable_B)

    def memory(self, size: Size) -> int:
        side = min(size.seq_len, size.config.d_model)
        return size.states + 8 * size.rows * (size.seq_len * size.config.d_model + 2 * side**2)


class MassiveActivations(Probe):
    """The three largest |h_tj| after each block, and the largest over the median of the sequence.

    Sun et al. 2024 (arXiv 2402.17762): massive is above 100 and about 1000 times the median.
    """

    name = "massive-activations"
    title = "Massive activations"
    reading = (
        "Single entries, mostly of the first token, that are thousands of times larger than the "
        "rest: the model uses them as a constant. They spoil quantization and low precision, and "
        "they need long training to appear: their absence early on says little."
    )
    shown = (("", "largest", "largest |h|"), ("", "largest_over_median", "largest / median"))
    log = True

    def stream(self, view: StreamView) -> Iterator[Reading]:
        for layer, h_BTD in enumerate(view.states):
            sizes_BN = h_BTD.float().abs().flatten(1)
            top_B3 = sizes_BN.topk(min(3, sizes_BN.shape[1])).values
            for name, value_B in zip(("largest", "second", "third"), top_B3.T, strict=False):
                yield Reading(layer, "", name, value_B, "max")
            ratio_B = top_B3[:, 0] / sizes_BN.median(-1).values
            yield Reading(layer, "", "largest_over_median", ratio_B, "max")

    def memory(self, size: Size) -> int:
        return 2 * size.states

    def summary(self, table: Table) -> list[str]:
        lines = []
        for step in steps_of(table):
            largest = by_layer(table, "largest", step)
            ratio = by_layer(table, "largest_over_median", step)
            massive = [
                str(layer)
                for layer, value in largest.items()
                if value > _MASSIVE and ratio[layer] > _TIMES_MEDIAN
            ]
            where = f"massive in layers {', '.join(massive)}" if massive else "none is massive"
            lines.append(f"step {step}: largest {max(largest.values()):.3g}; {where}")
        return lines


class Outliers(Probe):
    """Kurtosis of the neurons' sizes, E_j[s_j^4] / E_j[s_j^2]^2, and the largest over the median.

    s_j is the RMS of neuron j over the tokens of a sequence; the mean over sequences. He et al.
    2024 (arXiv 2405.19279). 1 is perfectly even, d_model a single neuron.
    """

    name = "outliers"
    title = "Outlier features"
    reading = (
        "Neurons that are large for every token make 8-bit and lower precision lossy. Rising curves"
        " over training are the sign to look for. The number depends on the basis: a rotation of "
        "the stream changes it without changing the model's function much."
    )
    shown = (("", "kurtosis", "kurtosis of neuron RMS"), ("", "max_median", "largest / median"))

    def stream(self, view: StreamView) -> Iterator[Reading]:
        for layer, h_BTD in enumerate(view.states):
            squares_BD = h_BTD.float().square().mean(1)
            kurtosis_B = squares_BD.square().mean(-1) / squares_BD.mean(-1).square()
            yield Reading(layer, "", "kurtosis", kurtosis_B)
            sizes_BD = squares_BD.sqrt()
            ratio_B = sizes_BD.amax(-1) / sizes_BD.median(-1).values
            yield Reading(layer, "", "max_median", ratio_B)

    def memory(self, size: Size) -> int:
        return 2 * size.states


def _squared_singular_values(x_BTD: Tensor) -> Tensor:
    """`(rows, min(seq, d_model))`, in float64 on the CPU, where every device's numbers agree."""
    x_BTD = x_BTD.detach().cpu().double()
    finite_B = x_BTD.isfinite().all(-1).all(-1)
    x_BTD = x_BTD.nan_to_num(0.0, 0.0, 0.0)  # LAPACK raises on anything else
    if x_BTD.shape[1] > x_BTD.shape[2]:
        x_BTD = x_BTD.mT
    squares: Tensor = torch.linalg.eigvalsh(x_BTD @ x_BTD.mT)
    return squares.clamp_min(0).where(finite_B[:, None], torch.nan)


PROBES = (TokenSimilarity, StateRank, MassiveActivations, Outliers)
