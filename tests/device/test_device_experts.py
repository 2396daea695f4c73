"""Grouped matrix products on the device, against a loop of plain products in float64."""

import pytest
import torch
from torch import Tensor

from authors import relative
from expert_peers import looped
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels import grouped_products as grouped
from hybridnorm.model.kernels.grouped_products import grouped_linear
from hybridnorm.model.parallel import parallelize
from hybridnorm.model.transformer import Transformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

# Against float64; a bfloat16 result is rounded once.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "sizes", [(5, 0, 1, 10), (0, 0, 0, 16), (16, 0, 0, 0), (0, 301, 0, 211), (128, 128, 128, 128)]
)
def test_grouped_products_are_those_of_the_loop(
    sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    rows, random = sum(sizes), torch.Generator().manual_seed(0)
    x, weight, above = (
        torch.randn(shape, generator=random).to(dtype).to(device)
        for shape in ((rows, 72), (4, 40, 72), (rows, 40))
    )
    ends = torch.tensor(sizes, device=device).cumsum(0).int()
    plain = [t.double().requires_grad_() for t in (x, weight)]
    expected = looped(*plain, ends)
    ours = [t.clone().requires_grad_() for t in (x, weight)]
    found = grouped_linear(*ours, ends)
    torch.full_like(weight, torch.nan)  # what an expert without rows would find, left unwritten
    for upstream in (above, torch.ones(1, 1, dtype=dtype, device=device).expand(rows, 40)):
        expected_gradients = torch.autograd.grad(
            expected, plain, upstream.double(), retain_graph=True
        )
        gradients = torch.autograd.grad(found, ours, upstream, retain_graph=True)
        assert not gradients[1][torch.tensor(sizes) == 0].any()
        pairs = zip((found, *gradients), (expected, *expected_gradients), strict=True)
        for actual, precise in pairs:
            assert actual.dtype == dtype
            assert relative(actual, precise) < TOLERANCE[dtype]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_with_experts_has_the_gradients_of_float64_and_the_loop(
    compiled: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device.type == "cpu" and compiled:
        pytest.skip("tests/model/test_moe.py compiles on the CPU")
    config = ModelConfig(d_model=64, n_layers=2, n_heads=4, d_ff=48, n_experts=8, vocab_size=50)
    with monkeypatch.context() as patch:
        patch.setattr(grouped, "grouped_linear", looped)
        counts, expected = routed(Transformer(config).double(), torch.float64)
    model = Transformer(config).to(device)
    parallelize(model, None, compile_blocks=compiled)
    found_counts, found = routed(model, torch.float32)
    assert torch.equal(found_counts.cpu().double(), counts)
    for actual, precise in zip(found, expected, strict=True):
        assert relative(actual, precise) < 1e-4


def routed(model: Transformer, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Tokens of every expert, and the gradients."""
    model.dtype = dtype
    ids = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.embedding.weight.device)
    losses = model.losses(ids, ids)
    assert losses.routing is not None
    (losses.total + losses.routing.z.mean()).backward()
    return losses.routing.counts, [p.grad for p in model.parameters()]
