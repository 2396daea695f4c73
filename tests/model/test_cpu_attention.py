"""Attention by blocks of queries against PyTorch's, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels.cpu_attention import blockwise_attention
from hybridnorm.model.masks import boolean_mask
from hybridnorm.model.transformer import Transformer

END = 300  # two blocks and a part of one


def inputs(heads: int, kv_heads: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, kv_heads, kv_heads, heads)  # q, k, v, gradient
    drawn = (torch.randn(2, length, h, 16, generator=generator).to(dtype) for h in sizes)
    return [x.requires_grad_() for x in drawn]


def theirs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return out.transpose(1, 2)


def with_gradients(function: object, *arguments: Tensor | None) -> tuple[Tensor, ...]:
    q, k, v, gradient, mask = arguments
    out = function(q, k, v, mask)  # type: ignore[operator]
    return (out, *torch.autograd.grad(out, (q, k, v), gradient.to(out.dtype)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 5, 128, END])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_context_and_gradients(heads: int, kv_heads: int, length: int, masked: bool) -> None:
    q, k, v, gradient = inputs(heads, kv_heads, length, torch.float64)
    documents = torch.arange(length).expand(2, -1) // torch.tensor([[70], [131]])
    mask = boolean_mask(documents) if masked else None
    found = with_gradients(blockwise_attention, q, k, v, gradient, mask)
    for actual, expected in zip(
        found, with_gradients(theirs, q, k, v, gradient, mask), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_rounding_of_bfloat16() -> None:
    """The scores are rounded as well, which PyTorch's kernel keeps in float32."""
    q, k, v, gradient = inputs(4, 2, END, torch.bfloat16)
    found = with_gradients(blockwise_attention, q, k, v, gradient, None)
    for actual, expected in zip(
        found, with_gradients(theirs, q, k, v, gradient, None), strict=True
    ):
        assert (actual.double() - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("documents", [False, True])
def test_a_model_in_bfloat16_attends_as_in_float32(documents: bool) -> None:
    """There PyTorch's kernel attends; activations of 8 bits agree to a few percent."""
    config = ModelConfig(d_model=64, n_layers=2, n_kv_heads=2, d_ff=96, vocab_size=80)
    model = Transformer(config)
    ids = torch.randint(80, (2, 150), generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(150).expand(2, -1) // 40 if documents else None
    expected = model(ids, documents=numbers)
    model.dtype = torch.bfloat16
    found = model(ids, documents=numbers).float()
    assert (found - expected).norm() / expected.norm() < 0.02


def test_it_is_an_operator_that_compiles() -> None:
    q, k, v, _ = inputs(4, 2, 20, torch.float32)
    torch.library.opcheck(blockwise_attention, (q, k, v, None))
