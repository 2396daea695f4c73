import math

import pytest
import torch

from hybridnorm.diagnose.theory import VARIANTS, WEIGHTS, Variant, bounds, jacobian_norms


def example(s: int, d: int, k: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / math.sqrt(d)

    weights = {name: normal(d, k) for name in WEIGHTS[:3]}
    return normal(s, d) * math.sqrt(d), {**weights, "W_O": normal(k, d)}


def plain_output(variant: Variant, x: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """The paper's formulas, token by token."""

    def norm(row: torch.Tensor) -> torch.Tensor:
        return row / torch.sqrt((row * row).mean())

    x = x if variant == "qkv-norm" else torch.stack([norm(row) for row in x])
    q, k, v = ([row @ w[name] for row in x] for name in ("W_Q", "W_K", "W_V"))
    if variant != "pre-norm":
        q, k = [norm(row) for row in q], [norm(row) for row in k]
    if variant == "qkv-norm":
        v = [norm(row) for row in v]
    rows = []
    for query in q:
        scores = torch.stack([query @ key for key in k]) / math.sqrt(len(query))
        weights = torch.exp(scores) / torch.exp(scores).sum()
        rows.append(sum(a * value for a, value in zip(weights, v, strict=True)) @ w["W_O"])
    return torch.stack(rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_norms_are_those_of_the_whole_jacobian(variant: Variant) -> None:
    x, weights = example(3, 6, 4)
    found = jacobian_norms(variant, x, weights)
    for name in WEIGHTS:
        jacobian = torch.autograd.functional.jacobian(
            lambda w, name=name: plain_output(variant, x, {**weights, name: w}), weights[name]
        )
        assert found[name] == pytest.approx(float(jacobian.norm()), rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(4, 64, 8), (8, 16, 16), (2, 32, 4)])
@pytest.mark.parametrize("factor", [0.1, 1.0, 10.0])
def test_the_corrected_bounds_hold(
    variant: Variant, shape: tuple[int, int, int], factor: float
) -> None:
    x, weights = example(*shape)
    for grown in WEIGHTS:
        scaled = {name: w * (factor if name == grown else 1) for name, w in weights.items()}
        measured = jacobian_norms(variant, x, scaled)
        _, corrected = bounds(variant, x, scaled)
        for name in WEIGHTS:
            assert measured[name] <= corrected[name] * (1 + 1e-9), (grown, name)


def test_the_printed_bounds_of_pre_norm_do_not() -> None:
    """With s=4, d=64, d_k=8 they are exceeded several times: the proofs take ||X_N|| = sqrt(s)."""
    x, weights = example(4, 64, 8)
    measured, (printed, _) = jacobian_norms("pre-norm", x, weights), bounds("pre-norm", x, weights)
    assert all(measured[name] > 2 * printed[name] for name in ("W_Q", "W_V"))


def test_normed_projections_depend_on_themselves_and_w_o_alone() -> None:
    x, weights = example(4, 16, 8)
    before = jacobian_norms("qkv-norm", x, weights)
    for grown in WEIGHTS:
        after = jacobian_norms("qkv-norm", x, {**weights, grown: weights[grown] * 10})
        for name in WEIGHTS:
            expected = {"W_O": 1 if name == "W_O" else 10}.get(grown, 0.1 if name == grown else 1)
            assert after[name] / before[name] == pytest.approx(expected, rel=1e-6)
