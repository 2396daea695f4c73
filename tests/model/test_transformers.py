"""Against `transformers`: Llama, OLMo 2 and Qwen 3 with copied weights."""

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from dense_peers import DENSE, SHAPE, compare_dense
from hybridnorm.model.layers import rope


@pytest.mark.parametrize(("placement", "config", "cls"), DENSE)
def test_logits_and_gradients_agree(
    placement: str, config: type, cls: type[PreTrainedModel]
) -> None:
    compare_dense(placement, config, cls, torch.device("cpu"), 1e-5)


def test_far_positions_are_rotated_by_the_very_same_angles() -> None:
    config = LlamaConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    positions = torch.arange(8192)
    theirs = LlamaRotaryEmbedding(config)(torch.empty(()), positions[None])
    ours = rope(positions, config.head_dim, 5e5)
    assert torch.equal(ours.cos[:, 0], theirs[0][0])
    left, right = ours.sin[:, 0].chunk(2, dim=-1)
    assert torch.equal(torch.cat((-left, right), dim=-1), theirs[1][0])
