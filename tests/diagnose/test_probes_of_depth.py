"""Probes of representations and of the use of depth against slow, direct computations."""

import math

import pytest
import torch
import torch.nn.functional as F

from hybridnorm.model.layers import rope
from hybridnorm.model.transformer import Transformer
from probed import BATCH, close, diagnosed, states, streams, values


def test_representations(model: Transformer) -> None:
    names = ("token-similarity", "rank", "massive-activations", "outliers")
    tables = diagnosed(model, *names)
    found = {name: torch.zeros(4) for name in ("similarity", "rank", "stable", "kurtosis")}
    top = torch.zeros(4, 3)
    for rows in states(model):
        for layer, h in enumerate(rows):
            cosines = [
                F.cosine_similarity(a, b, dim=0)
                for i, a in enumerate(h)
                for j, b in enumerate(h)
                if i != j
            ]
            found["similarity"][layer] += sum(cosines) / len(cosines) / 2
            s = torch.linalg.svdvals(h)
            p = s / s.sum()
            found["rank"][layer] += torch.exp(-(p * p.log()).sum()) / 2
            found["stable"][layer] += h.square().sum() / torch.linalg.matrix_norm(h, 2) ** 2 / 2
            sizes = h.square().mean(0).sqrt()
            found["kurtosis"][layer] += (sizes**4).mean() / (sizes**2).mean() ** 2 / 2
            top[layer] = torch.maximum(
                top[layer], h.abs().flatten().sort(descending=True).values[:3]
            )
    assert values(tables["token-similarity"], "token_similarity") == close(found["similarity"])
    assert values(tables["rank"], "effective_rank") == close(found["rank"])
    assert values(tables["rank"], "stable_rank") == close(found["stable"])
    assert values(tables["outliers"], "kurtosis") == close(found["kurtosis"])
    massive = tables["massive-activations"]
    for i, name in enumerate(("largest", "second", "third")):
        assert values(massive, name) == close(top[:, i])


def test_influence_and_angles(model: Transformer) -> None:
    tables = diagnosed(model, "block-influence", "angular-distance")
    influence, angles = torch.zeros(3), torch.zeros(4, 4)
    for rows in states(model):
        for a in range(4):
            for b in range(a + 1, 4):
                cosines = torch.stack(
                    [
                        F.cosine_similarity(x, y, dim=0)
                        for x, y in zip(rows[a], rows[b], strict=True)
                    ]
                )
                angles[a, b] += (torch.arccos(cosines) / math.pi).mean() / 2
                if b == a + 1:
                    influence[a] += (1 - cosines).mean() / 2
    assert values(tables["block-influence"], "block_influence") == close(influence)
    for b in range(1, 4):
        assert values(tables["angular-distance"], f"to_{b}") == close(angles[:b, b])


def test_removal_is_a_model_without_the_block(model: Transformer) -> None:
    table = diagnosed(model, "block-removal")["block-removal"]
    with torch.no_grad():
        whole = model.loss(*BATCH)
        expected = []
        for layer in range(3):
            x = model.embed_norm(model.embed_scale(model.embedding(BATCH.input_ids)))
            for other, block in enumerate(model.blocks):
                if other != layer:
                    x, _ = block(x, rope(torch.arange(12), 4, model.config.rope_theta))
            logits = model.logits(model.final_norm(x))
            expected.append(F.cross_entropy(logits.flatten(0, 1), BATCH.targets.flatten()) - whole)
    assert values(table, "loss_increase") == close(torch.stack(expected))


def test_logit_lens(model: Transformer) -> None:
    table = diagnosed(model, "logit-lens")["logit-lens"]
    agreement, kl = torch.zeros(4), torch.zeros(4)
    with torch.no_grad():
        for row in BATCH.input_ids[:2]:
            final = model(row[None])[0].softmax(-1)
            for layer, h in enumerate(streams(model, row[None])):
                mine = model.logits(model.final_norm(h))[0].softmax(-1)
                agreement[layer] += (mine.argmax(-1) == final.argmax(-1)).float().mean() / 2
                kl[layer] += (final * (final / mine).log()).sum(-1).mean() / 2
    assert values(table, "agreement") == close(agreement)
    assert values(table, "kl") == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-5)
    assert values(table, "agreement")[-1] == 1
