"""Probes of attention: how spread its weights are, and how large its logits."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hybridnorm.diagnose.probe import AttentionView, Probe, Reading, Size
from hybridnorm.diagnose.table import Table, by_layer, steps_of
from hybridnorm.diagnose.tensors import whole
from hybridnorm.model import Norm


class AttentionEntropy(Probe):
    """-sum_j A_ij ln A_ij in nats, the mean over queries i and heads, per layer.

    Jha & Reagen 2024 (arXiv 2410.09637); Zhai et al. 2023 (arXiv 2303.06296); the HybridNorm
    paper's Fig. 8. Beside it the entropy of attention that is even over what a query sees, its
    upper bound.
    """

    name = "attention-entropy"
    title = "Entropy of attention"
    axis = "step"
    reading = (
        "Near 0, heads look at single tokens (entropy collapse, which comes with instability); near"
        " the bound they average over everything and tell nothing apart. The paper reads a narrow "
        "band over layers as a sign of stability. The mean hides heads that differ from each other,"
        " and depends on the length of the sequences: compare only at the same one."
    )
    shown = (("attention", "entropy", "entropy (nats)"),)

    def attention(self, view: AttentionView) -> Iterator[Reading]:
        entropy, bound = zip(*map(_entropy, *_sequences(view)), strict=True)
        yield Reading(view.layer, "attention", "entropy", torch.stack(entropy))
        yield Reading(view.layer, "attention", "bound", torch.stack(bound))

    def memory(self, size: Size) -> int:
        return 3 * _square(size)

    def summary(self, table: Table) -> list[str]:
        lines = []
        for step in steps_of(table):
            values = by_layer(table, "entropy", step).values()
            bound = max(by_layer(table, "bound", step).values())
            lines.append(
                f"step {step}: {min(values):.3f} to {max(values):.3f} nats over the layers, bound "
                f"{bound:.3f}"
            )
        return lines


class AttentionLogits(Probe):
    """The largest |q . k| / sqrt(d_head) over heads and pairs of tokens, before the mask.

    Wortsman et al. 2023 (arXiv 2309.14322). Where q and k are normed, beside the bound that their
    norms set: ||q|| ||k|| / sqrt(d_head) at most, sqrt(d_head) x gains for norms per head
    (a full-width norm leaves a head more); rotation does not change it.
    """

    name = "attention-logits"
    title = "Largest attention logit"
    axis = "step"
    reading = (
        "Logits that grow without end are how attention diverges at high learning rates; 50 to 100 "
        "is where others raise an alarm. With norms on q and k they cannot pass the bound, so read "
        "them relative to it, and watch the gains, which move the bound. One pair of tokens makes "
        "the maximum: it is a warning, not an average."
    )
    shown = (("attention", "max_logit", "largest logit"),)
    log = True

    def attention(self, view: AttentionView) -> Iterator[Reading]:
        largest = [
            (_logits(q, k) * q.shape[-1] ** -0.5).abs().amax()
            for q, k, _ in zip(*_sequences(view), strict=True)
        ]
        yield Reading(view.layer, "attention", "max_logit", torch.stack(largest), "max")
        attention = view.module
        if isinstance(attention.q_norm, Norm) and isinstance(attention.k_norm, Norm):
            bound = _longest(attention.q_norm) * _longest(attention.k_norm)
            yield Reading(view.layer, "attention", "bound", bound * attention.head_dim**-0.5)

    def memory(self, size: Size) -> int:
        return 2 * _square(size)

    def summary(self, table: Table) -> list[str]:
        lines = []
        for step in steps_of(table):
            logits, bounds = (by_layer(table, name, step) for name in ("max_logit", "bound"))
            layer = max(logits, key=lambda one: logits[one])
            beside = f", bound {bounds[layer]:.3g}" if layer in bounds else ", unbounded"
            lines.append(f"step {step}: {logits[layer]:.3g} in layer {layer}{beside}")
        return lines


def _square(size: Size) -> int:
    """Bytes of the weights of one sequence."""
    return 4 * size.config.n_heads * size.seq_len**2


def _sequences(view: AttentionView) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """One after the other, as all pairs of a sequence's tokens are held."""
    documents = view.documents
    rows = len(view.queries)
    each = [None] * rows if documents is None else list(documents)
    return view.queries, view.keys, each


def _logits(q_THK: Tensor, k_TGK: Tensor) -> Tensor:
    """`(heads, queries, keys)`, not scaled, float32."""
    k_THK = k_TGK.repeat_interleave(q_THK.shape[1] // k_TGK.shape[1], dim=1)
    return torch.einsum("thk,ehk->hte", q_THK.float(), k_THK.float())


def _entropy(q_THK: Tensor, k_TGK: Tensor, documents_T: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean entropy of a sequence's attention, and that of even attention."""
    length = len(q_THK)
    visible = torch.ones(length, length, dtype=torch.bool, device=q_THK.device).tril()
    if documents_T is not None:
        visible &= documents_T[:, None] == documents_T
    logits = (_logits(q_THK, k_TGK) * q_THK.shape[-1] ** -0.5).masked_fill_(~visible, -torch.inf)
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1).mean()
    return entropy, visible.sum(-1).log().mean()


def _longest(norm: nn.Module) -> Tensor:
    """An upper bound of ||q|| of a head after its norm."""
    assert isinstance(norm, Norm)
    length = torch.tensor(1.0 if norm.kind == "l2" else norm.dim**0.5)
    if norm.weight is not None:
        gain = whole(norm.weight)
        length = length * (1 + gain if norm.zero_centered else gain).abs().amax().cpu()
    if norm.bias is not None:
        length = length + whole(norm.bias).norm().cpu()
    return length


PROBES = (AttentionEntropy, AttentionLogits)
