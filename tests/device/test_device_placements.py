"""One training step of every placement on the device, against the CPU in float64."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from authors import relative
from hybridnorm.model import norms
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.parallel import parallelize
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements.registry import strategies
from hybridnorm.recipe.config import OptimizerConfig
from hybridnorm.train.optim.build import build_optimizer
from hybridnorm.train.optim.optimizers import step_unless

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-4  # float32 against float64; 5e-6 on a CPU
IDS = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))
# Each differs in kind from the others: norms, skips, scales, number of kinds of block.
COMPILED_ON_CPU = ["hybridnorm-star", "olmo2", "dyt"]
COMPILED = [
    *COMPILED_ON_CPU,
    *("pre-norm", "post-norm", "hybridnorm", "hybridnorm-scaled", "peri-ln", "mix-ln"),
    *("deepnorm", "subln", "b2t", "layerscale"),
]


def model(name: str) -> Transformer:
    config = ModelConfig(
        placement=name,
        d_model=64,
        n_layers=4 if name == "mix-ln" else 2,  # of 4, one is Post-Norm
        n_heads=4,
        n_kv_heads=2,
        d_ff=96,
        vocab_size=50,
    )
    return Transformer(config)


def backward(model: Transformer, device: torch.device) -> tuple[float, dict[str, Tensor]]:
    ids = IDS.to(device)
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def plain_rms_norm(x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], gain, eps)


@cache
def expected(name: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by PyTorch's norm and cross-entropy."""
    precise = model(name).double()
    precise.dtype = torch.float64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "rms_norm", plain_rms_norm)
        loss = F.cross_entropy(precise(IDS[:, :-1]).flatten(0, 1), IDS[:, 1:].flatten())
    loss.backward()
    return loss.item(), {n: p.grad for n, p in precise.named_parameters()}


def assert_as_expected(name: str, loss: float, gradients: dict[str, Tensor]) -> None:
    assert loss == pytest.approx(expected(name)[0], rel=1e-5)
    gaps = {n: relative(gradients[n], precise) for n, precise in expected(name)[1].items()}
    assert max(gaps.values()) < TOLERANCE, gaps


@pytest.mark.parametrize("name", strategies())
def test_a_step_of_every_placement(name: str, device: torch.device) -> None:
    """Gradients, their norm, clipping, and the first update of AdamW by its formula."""
    config = OptimizerConfig(grad_clip=0.01)
    ours = model(name).to(device)
    assert_as_expected(name, *backward(ours, device))
    total = torch.stack([g.norm() for g in expected(name)[1].values()]).norm()
    norm = nn.utils.clip_grad_norm_(ours.parameters(), config.grad_clip)
    assert norm.item() == pytest.approx(total.item(), rel=1e-4)
    optimizer = build_optimizer(ours, config)
    updated = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            weight, grad = parameter.detach().double(), parameter.grad.double()
            assert grad.norm() <= config.grad_clip * 1.001
            weight *= 1 - config.lr * group["weight_decay"]
            updated.append((parameter, weight - config.lr * grad / (grad.abs() + config.eps)))
    step_unless(optimizer, ~torch.isfinite(norm))
    assert len(updated) == len(list(ours.parameters()))
    for parameter, weight in updated:
        torch.testing.assert_close(parameter.detach().double(), weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", strategies())
def test_bfloat16_is_near_it(name: str, device: torch.device) -> None:
    ours = model(name).to(device)
    ours.dtype = torch.bfloat16
    loss, gradients = backward(ours, device)
    assert loss == pytest.approx(expected(name)[0], rel=0.01)
    found, precise = (
        torch.cat([g[n].double().cpu().flatten() for n in gradients])
        for g in (gradients, expected(name)[1])
    )
    assert relative(found, precise) < 0.05  # 0.02 on a CPU


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_gradients(name: str, device: torch.device) -> None:
    if device.type == "cpu" and name not in COMPILED_ON_CPU:
        pytest.skip("three placements are enough for the compiler of CPUs")
    ours = model(name).to(device)
    parallelize(ours, None, compile_blocks=True)
    assert_as_expected(name, *backward(ours, device))


def test_a_gradient_that_is_not_finite_changes_nothing(device: torch.device) -> None:
    ours = model("hybridnorm-star").to(device)
    optimizer = build_optimizer(ours, OptimizerConfig())
    for skipped in (False, True):
        backward(ours, device)
        if skipped:
            ours.blocks[0].attention.branch.q_proj.weight.grad[0, 0] = torch.inf
        before = [p.detach().clone() for p in ours.parameters()]
        norm = nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        step_unless(optimizer, ~torch.isfinite(norm))
        same = [torch.equal(p, old) for p, old in zip(ours.parameters(), before, strict=True)]
        assert all(same) if skipped else not any(same)
