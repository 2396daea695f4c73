"""The eager RMS norm against PyTorch's formula, and what it keeps for the backward pass."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridnorm.model.norms import Leak, Norm
from hybridnorm.placements import spec


def norm(width: int, **fields: object) -> Norm:
    made = Norm(spec.Norm(kind="rms", **fields), width, gain=1.0, eps=1e-5)  # type: ignore[arg-type]
    made.reset_parameters()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 1.0, 0.2, generator=torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("affine", ["none", "scalar", "vector"])
@pytest.mark.parametrize("shape", [(2, 5, 24), (2, 5, 3, 8)])
def test_value_and_gradients(shape: tuple[int, ...], affine: str, zero_centered: bool) -> None:
    zero_centered &= affine != "none"
    module = norm(shape[-1], affine=affine, zero_centered=zero_centered).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(shape, dtype=torch.float64)
    gain = None if module.weight is None else (module.weight + zero_centered).expand(shape[-1])
    expected = F.rms_norm(x, shape[-1:], gain, 1e-5)
    wanted = [x, *module.parameters()]
    actual = module(x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, wanted, gradient),
        torch.autograd.grad(expected, wanted, gradient),
    )


def test_bfloat16_rounds_as_the_formula_does() -> None:
    """Statistics in float32, cast back before the gain (the authors' order)."""
    torch.manual_seed(0)  # sums in another order round some values to their other neighbour
    module = norm(64)
    x = torch.randn(8, 64).bfloat16()
    wide = x.float()
    formula = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    assert torch.equal(module(x), formula.bfloat16() * module.weight.bfloat16())


def test_it_keeps_its_input_and_one_number_per_row() -> None:
    module = norm(64)
    x = torch.randn(8, 64).bfloat16().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(x)
    assert sum(t.nbytes for t in kept if t is not module.weight) == x.nbytes + 8 * 4


def test_a_gated_norm_multiplies_its_result_by_a_gate_of_it() -> None:
    module = norm(24, gate=3).double()
    x = torch.randn(5, 24, dtype=torch.float64)
    y = F.rms_norm(x, (24,), module.weight, 1e-5)
    assert module.gate_down is not None and module.gate_up is not None
    low = y @ module.gate_down.weight.T
    gate = 1 / (1 + torch.exp(-(low / (1 + torch.exp(-low))) @ module.gate_up.weight.T))
    torch.testing.assert_close(module(x), y * gate)


def test_a_leak_scales_what_passes_and_not_its_gradient() -> None:
    """GPAS, arXiv 2506.22049: at the start nothing leaks."""
    leak = Leak().double()
    leak.reset_parameters()
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert leak.weight is not None and torch.equal(leak(x), x)
    with torch.no_grad():
        leak.weight.fill_(2.0)
    share = 2 / (1 + math.exp(-2))
    torch.testing.assert_close(leak(x), x * (1 - share))
    assert torch.equal(torch.autograd.grad(leak(x).sum(), x)[0], torch.ones_like(x))
