"""The authors' numbers and those of `transformers`, on the device."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from authors import REFERENCES, gaps_to_authors
from dense_peers import DENSE, compare_dense
from expert_peers import WITH_EXPERTS, compare_experts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

# Sums run in another order on a GPU. TF32 would be off by 1e-3.
FLOAT32 = {"cpu": 1e-5, "cuda": 1e-4}
# A rounding to bfloat16 is off by 2^-9 = 0.002 at most. After all of them, on a CPU, 0.013 are in
# the logits and 0.055 in the worst gradient, a short vector.
BFLOAT16 = {"logits": 0.03, "gradient": 0.1}
# With experts a token near a tie goes to another one, which is no rounding.
OF_DENSE_MODELS = [path for path in REFERENCES if not path.stem.startswith("moe-")]


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_float32_has_the_numbers_of_the_authors(path: Path, device: torch.device) -> None:
    gaps = gaps_to_authors(path, device)
    assert gaps.logits < FLOAT32[device.type] and gaps.loss < FLOAT32[device.type]
    assert max(gaps.gradients.values()) < FLOAT32[device.type], gaps.gradients


@pytest.mark.parametrize("path", OF_DENSE_MODELS, ids=lambda path: path.stem)
def test_bfloat16_is_off_by_its_rounding(
    path: Path, device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    gaps = gaps_to_authors(path, device, torch.bfloat16)
    worst = max(gaps.gradients.values())
    record_property("gaps", f"logits {gaps.logits:.2g} loss {gaps.loss:.2g} gradient {worst:.2g}")
    assert 1e-4 < gaps.logits < BFLOAT16["logits"]  # less would be float32
    assert gaps.loss < BFLOAT16["logits"]
    assert worst < BFLOAT16["gradient"], gaps.gradients


@pytest.mark.parametrize(("placement", "config", "cls"), DENSE)
def test_dense_models_have_the_numbers_of_transformers(
    placement: str, config: type, cls: type[PreTrainedModel], device: torch.device
) -> None:
    compare_dense(placement, config, cls, device, FLOAT32[device.type])


@pytest.mark.parametrize(("config", "cls", "experts"), WITH_EXPERTS)
def test_experts_have_the_numbers_of_transformers(
    config: type, cls: type[PreTrainedModel], experts: dict[str, int], device: torch.device
) -> None:
    compare_experts(config, cls, experts, device, FLOAT32[device.type])
