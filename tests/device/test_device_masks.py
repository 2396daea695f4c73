"""Attention within documents on the device, against its formula in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from authors import relative
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels import attention
from hybridnorm.model.masks import document_ids, document_mask
from hybridnorm.model.parallel import parallelize
from hybridnorm.model.transformer import Transformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

END = 9
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def tokens(length: int) -> Tensor:
    """Two sequences, about every tenth token an end of document."""
    return torch.randint(10, (2, length), generator=torch.Generator().manual_seed(length))


def formula(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, ids_BT: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v, heads that share keys one after another.

    A query sees the keys up to its own, from after the last end of a document before it.
    """
    visible_B1TT = torch.zeros(len(ids_BT), 1, ids_BT.shape[1], ids_BT.shape[1]).bool()
    for row, ids in enumerate(ids_BT.tolist()):
        first = 0
        for position, token in enumerate(ids):
            visible_B1TT[row, 0, position, first : position + 1] = True
            first = position + 1 if token == END else first
    share = q_BTHK.shape[2] // k_BTGK.shape[2]
    k_BTHK, v_BTHK = (x.repeat_interleave(share, dim=2) for x in (k_BTGK, v_BTGK))
    scores = torch.einsum("bqhk,bthk->bhqt", q_BTHK, k_BTHK) / q_BTHK.shape[-1] ** 0.5
    probs = scores.masked_fill(~visible_B1TT, -torch.inf).softmax(-1)
    return torch.einsum("bhqt,bthk->bqhk", probs, v_BTHK)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_dim", [32, 48, 64, 96])
def test_attention_within_documents(
    head_dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    check_attention(256, head_dim, dtype, device)


def test_a_length_that_is_no_multiple_of_a_block(device: torch.device) -> None:
    check_attention(100, 32, torch.float32, device)


def check_attention(length: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    documents = document_ids(tokens(length), END)
    assert documents.amax() > 5
    random = torch.Generator().manual_seed(0)
    sizes = (4, 2, 2, 4)  # heads: queries, keys, values, and the gradient from above
    *inputs, above = (
        torch.randn(2, length, n, head_dim, generator=random).to(dtype) for n in sizes
    )
    precise = [x.double().requires_grad_() for x in inputs]
    expected = formula(*precise, tokens(length))
    expected_gradients = torch.autograd.grad(expected, precise, above.double())

    ours = [x.to(device).requires_grad_() for x in inputs]
    mask = document_mask(documents.to(device))
    assert isinstance(mask, BlockMask) == (device.type == "cuda" and length % 128 == 0)
    found = attention(*ours, mask)
    gradients = torch.autograd.grad(found, ours, above.to(device))
    assert found.dtype == dtype and found.shape == expected.shape
    assert relative(found, expected) < TOLERANCE[dtype]
    for name, gradient, plain in zip("qkv", gradients, expected_gradients, strict=True):
        assert relative(gradient, plain) < TOLERANCE[dtype], name


@pytest.mark.parametrize("compiled", [False, True])
def test_masked_training_has_the_gradients_of_float64_on_a_cpu(
    compiled: bool, device: torch.device
) -> None:
    if compiled and device.type == "cpu":
        pytest.skip("what is compiled on a CPU has no FlexAttention in it")
    config = ModelConfig(d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=64, vocab_size=10)
    ids = tokens(128)
    gradients = []
    for dtype, where in ((torch.float64, torch.device("cpu")), (torch.float32, device)):
        model = Transformer(config).to(where, dtype)
        model.dtype = dtype
        parallelize(model, None, compile_blocks=compiled and dtype == torch.float32)
        mine = ids.to(where)
        model.loss(mine, mine, document_ids(mine, END)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert relative(gradients[1][name], expected) < 1e-4, name
