"""Generation on the device: with a cache as without, and as on the CPU."""

import pytest
import torch
from torch import Tensor

from authors import relative
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.sampling import generate, with_cast_weights
from hybridnorm.model.transformer import Transformer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

PROMPT = torch.arange(8).view(2, 4)
NEW = 16


def model(placement: str, n_experts: int = 0) -> Transformer:
    config = ModelConfig(
        placement=placement,
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=64,
        n_experts=n_experts,
        vocab_size=50,
    )
    return Transformer(config)


@torch.no_grad()
def uncached(model: Transformer, ids: Tensor) -> Tensor:
    for _ in range(NEW):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids


@pytest.mark.parametrize("n_experts", [0, 4])
@pytest.mark.parametrize("placement", ["hybridnorm-star", "olmo2"])
def test_the_likeliest_tokens_are_those_without_a_cache_and_of_the_cpu(
    placement: str, n_experts: int, device: torch.device
) -> None:
    ours = model(placement, n_experts)
    on_cpu = uncached(ours, PROMPT)
    ours, prompt = ours.to(device), PROMPT.to(device)
    found = generate(ours, prompt, NEW, temperature=0)
    assert torch.equal(found, uncached(ours, prompt))
    assert torch.equal(found.cpu(), on_cpu)


@pytest.mark.parametrize("placement", ["hybridnorm-star", "olmo2"])
def test_bfloat16_logits_with_a_cache_are_near_float64(
    placement: str, device: torch.device
) -> None:
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))
    precise = model(placement).double()
    precise.dtype = torch.float64
    expected = precise(ids)[:, 3:]
    low = model(placement).to(device)
    low.dtype = torch.bfloat16
    with torch.inference_mode():
        fast, ids = with_cast_weights(low), ids.to(device)
        caches = fast.kv_caches(12)
        logits = [fast.next_logits(ids[:, :4], caches)]
        logits += [fast.next_logits(ids[:, i : i + 1], caches) for i in range(4, 12)]
    assert relative(torch.stack(logits, dim=1), expected) < 0.02


def test_sampling_stays_within_its_limits(device: torch.device) -> None:
    ours, prompt = model("hybridnorm-star").to(device), PROMPT.to(device)
    sampled = generate(ours, prompt, NEW, top_k=5, top_p=0.9, seed=1)
    assert torch.equal(sampled, generate(ours, prompt, NEW, top_k=5, top_p=0.9, seed=1))
    with torch.no_grad():
        best = ours(sampled[:, :-1]).topk(5).indices[:, 3:]
    assert (best == sampled[:, 4:, None]).any(-1).all()
