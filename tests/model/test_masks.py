"""Attention within documents, against every document on its own."""

import pytest
import torch
from torch import Tensor

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels.scaled_dot_product import _flex as flex
from hybridnorm.model.masks import boolean_mask, document_ids, flex_mask
from hybridnorm.model.transformer import Transformer

END = 9
IDS = torch.tensor(
    [[1, 2, 3, END, 4, 5, END, END, 6, 7, 8, 1], [END, 1, 2, 3, 4, 5, 6, 7, 8, END, 1, 2]]
)
PIECES = ([(0, 4), (4, 7), (7, 8), (8, 12)], [(0, 1), (1, 10), (10, 12)])


def test_the_end_belongs_to_the_document_it_ends() -> None:
    assert document_ids(IDS, END).tolist() == [
        [0, 0, 0, 0, 1, 1, 1, 2, 3, 3, 3, 3],
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2],
    ]


@pytest.mark.parametrize("placement", ["hybridnorm-star", "olmo2", "b2t"])
def test_documents_do_not_see_each_other(placement: str) -> None:
    model = Transformer(
        ModelConfig(
            placement=placement, d_model=32, n_layers=2, n_kv_heads=2, d_ff=64, vocab_size=10
        )
    )
    logits = model(IDS, documents=document_ids(IDS, END))
    for row, pieces in enumerate(PIECES):
        for start, stop in pieces:
            alone = model(IDS[row : row + 1, start:stop])
            torch.testing.assert_close(logits[row, start:stop], alone[0], rtol=1e-5, atol=1e-5)
    assert (logits - model(IDS)).abs().max() > 1e-3, "the mask must matter"


def heads(n: int, seed: int) -> Tensor:
    return torch.randn(2, n, 12, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_flex_mask_means_the_same_as_the_boolean_one() -> None:
    documents = document_ids(IDS, END)
    q, k, v = heads(4, 0), heads(2, 1), heads(2, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=boolean_mask(documents), enable_gqa=True
    )
    with torch.no_grad():
        found = flex(q, k, v, flex_mask(documents))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
