"""Counts from the configuration against real models and PyTorch's own counters."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hybridnorm.model.config import PRESETS, ModelConfig
from hybridnorm.model.flops import flops_per_token, parameter_counts
from hybridnorm.model.kernels.grouped_products import GroupedLinear
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import placement, strategies

SMALL = ModelConfig(d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=80, vocab_size=100)
SHAPES = {
    "grouped": SMALL,
    "all heads": replace(SMALL, n_kv_heads=None),
    "one kv head": replace(SMALL, n_kv_heads=1),
    "gelu": replace(SMALL, activation="gelu"),
    "untied": replace(SMALL, tie_embeddings=False),
    "experts": replace(SMALL, n_experts=4, top_k=3),
    "shared experts, in part": replace(
        SMALL, n_experts=4, d_expert=24, n_shared_experts=2, moe_every=2
    ),
}

GATED = ("gatednorm", "gated-attention", "gated-attention-heads")


def looped(layer: GroupedLinear, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Products that PyTorch counts: it does not know grouped ones."""
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    parts = zip(x.split(sizes), layer.weight, strict=True)
    return torch.cat([rows @ weight.T for rows, weight in parts])


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["pre-norm", "hybridnorm-star", "subln", *GATED])
def test_flops_are_those_pytorch_counts(
    config: ModelConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GroupedLinear, "forward", looped)
    model = Transformer(config, placement(name))
    ids = torch.randint(config.vocab_size or 0, (2, 24))
    # The math kernel's products are counted; it computes the whole square, as the convention does.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    assert counter.get_total_flops() == flops_per_token(config, 24, placement(name)) * ids.numel()


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", [*strategies(), "qkvc-pre"])
def test_parameters_are_those_of_the_model(config: ModelConfig, name: str) -> None:
    with torch.device("meta"):
        model = Transformer(config, placement(name))
    counts = parameter_counts(config, placement(name))
    by_kind = {
        "embedding": lambda name, ndim: name.startswith("embedding."),
        "head": lambda name, ndim: name.startswith("head."),
        "matrices": lambda name, ndim: name.startswith("blocks.") and ndim == 2,
        "experts": lambda name, ndim: ndim == 3,
        "vectors": lambda name, ndim: ndim == 1,
    }
    for kind, belongs in by_kind.items():
        members = [p for n, p in model.named_parameters() if belongs(n, p.ndim)]
        assert getattr(counts, kind) == sum(p.numel() for p in members)
    assert counts.total == model.num_parameters()


def test_published_sizes() -> None:
    """Paper, Table 9, as recomputed with the padded vocabulary."""
    published = {"151M": 151.4, "285M": 285.2, "550M": 550.5, "543M-deep": 543.7, "1.2B": 1277}
    for name, millions in published.items():
        counts = parameter_counts(PRESETS[name], placement("hybridnorm"))
        assert counts.total / 1e6 == pytest.approx(millions, rel=5e-4)
