"""Experts against a plain loop over them and against `transformers`' OLMoE and Mixtral."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from expert_peers import WITH_EXPERTS, compare_experts, looped, relative_gap
from hybridnorm.errors import HybridNormError
from hybridnorm.model.config import PRESETS, ModelConfig
from hybridnorm.model.flops import parameter_counts
from hybridnorm.model.kernels.grouped_products import grouped_linear
from hybridnorm.model.moe import MoE, load_balance
from hybridnorm.model.norms import NormBuilder
from hybridnorm.model.parallel import parallelize, shard_matrices
from hybridnorm.model.sampling import generate
from hybridnorm.model.transformer import Losses, Transformer
from hybridnorm.placements import placement, spec

CONFIG = ModelConfig(
    d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=24, n_experts=6, vocab_size=50
)
IDS = torch.randint(50, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(5, 0, 1, 10), (0, 0, 0, 16), (16, 0, 0, 0), (4, 4, 4, 4)])
def test_grouped_products_are_those_of_the_loop(dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 24, dtype=dtype, requires_grad=True)
    weight = torch.randn(4, 8, 24, dtype=dtype, requires_grad=True)
    ends = torch.tensor(sizes).cumsum(0).int()
    ours, expected = grouped_linear(x, weight, ends), looped(x, weight, ends)
    torch.testing.assert_close(ours, expected)
    for upstream in (torch.randn(16, 8, dtype=dtype), torch.ones(1, 1, dtype=dtype).expand(16, 8)):
        gradients = torch.autograd.grad(ours, (x, weight), upstream, retain_graph=True)
        plain = torch.autograd.grad(expected, (x, weight), upstream, retain_graph=True)
        torch.testing.assert_close(gradients, plain)
        assert not gradients[1][torch.tensor(sizes) == 0].any()


def test_the_operators_keep_what_they_promise_to_the_compiler() -> None:
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(3, 16, 8, requires_grad=True)
    torch.library.opcheck(grouped_linear, (x, weight, torch.tensor([2, 2, 6]).int()))


@pytest.mark.parametrize("norm_topk_prob", [False, True])
@pytest.mark.parametrize("n_shared", [0, 2])
def test_every_token_gets_its_experts(norm_topk_prob: bool, n_shared: int) -> None:
    """Token by token, expert by expert, from the formulas; nothing is dropped."""
    config = replace(CONFIG, norm_topk_prob=norm_topk_prob, n_shared_experts=n_shared, top_k=3)
    moe = MoE(config, spec.FeedForwardSpec(mid_norm=spec.Norm()), NormBuilder(0, config))
    torch.manual_seed(0)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 32)
    ours = moe(x, routings := [])
    weights = dict(moe.named_parameters())

    def network(x: Tensor, e: int | None) -> Tensor:
        where = "shared." if e is None else ""
        gate, up, down = (
            weights[f"{where}{name}_proj.weight"]
            if e is None
            else weights[f"{name}_proj.weight"][e]
            for name in ("gate", "up", "down")
        )
        hidden = F.silu(gate @ x) * (up @ x)
        gain = weights[f"{where}mid_norm.weight"]
        return down @ (gain * hidden / (hidden.square().mean() + 1e-5).sqrt())

    counts = torch.zeros(6)
    for token, found in zip(x.flatten(0, 1), ours.flatten(0, 1), strict=True):
        probability = torch.softmax(weights["router.weight"] @ token, 0)
        chosen = probability.argsort(descending=True)[:3]
        counts[chosen] += 1
        total = probability[chosen].sum() if norm_topk_prob else 1.0
        expected = sum(probability[e] / total * network(token, int(e)) for e in chosen)
        expected = expected + network(token, None) if n_shared else expected
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(routings[0].counts, counts)


@pytest.mark.parametrize(("config", "cls", "experts"), WITH_EXPERTS)
def test_logits_losses_and_gradients_are_those_of_transformers(
    config: type, cls: type[PreTrainedModel], experts: dict[str, int]
) -> None:
    compare_experts(config, cls, experts, torch.device("cpu"), 1e-5)


def objective(losses: Losses) -> Tensor:
    assert losses.routing is not None
    auxiliary = load_balance(losses.routing) + losses.routing.z.mean()
    return losses.total + auxiliary


def gradients(model: Transformer) -> tuple[float, list[Tensor]]:
    loss = objective(model.losses(IDS, IDS))
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.filterwarnings("ignore")  # the compiler has warnings of its own
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "backend", [None, "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_recomputed_and_compiled_blocks_have_the_same_losses_and_gradients(
    recompute: Any, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, n_layers=2, n_shared_experts=1, placement="normformer")
    expected, expected_gradients = gradients(Transformer(config))
    model = Transformer(config)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    parallelize(model, None, recompute=recompute, compile_blocks=backend is not None)
    loss, found = gradients(model)
    assert loss == pytest.approx(expected, rel=1e-6)
    for actual, plain in zip(found, expected_gradients, strict=True):
        assert relative_gap(actual, plain) < 1e-5


def test_balanced_and_collapsed_routers() -> None:
    """1 where every expert gets as much as every other, E / K where K experts get everything."""
    model = Transformer(CONFIG)
    for block in model.blocks:
        torch.nn.init.zeros_(block.feed_forward.branch.router.weight)
    even = model.losses(IDS, IDS).routing
    assert even is not None
    assert load_balance(even).item() == pytest.approx(1.0)
    assert even.entropy.tolist() == pytest.approx([torch.tensor(6.0).log().item()] * 3)
    # All tokens are alike, so they chose the same two.
    sure = even._replace(probabilities=even.counts / even.counts.sum(-1, keepdim=True))
    assert load_balance(sure).item() == pytest.approx(3.0)


def test_the_objectives_of_evaluation_and_training_differ_by_the_auxiliary_losses_only() -> None:
    model = Transformer(CONFIG)
    assert torch.equal(model.loss(IDS, IDS), model.losses(IDS, IDS).cross_entropy)
    assert Transformer(replace(CONFIG, n_experts=0)).losses(IDS, IDS).routing is None


def test_blocks_are_dense_or_mixtures_as_configured() -> None:
    model = Transformer(replace(CONFIG, n_layers=5, moe_every=2, d_expert=16))
    kinds = [isinstance(block.feed_forward.branch, MoE) for block in model.blocks]
    assert kinds == [False, True, False, True, False]
    routing = model.losses(IDS, IDS).routing
    assert routing is not None and routing.counts.shape == (2, 6)
    assert model.blocks[1].feed_forward.branch.up_proj.weight.shape == (6, 16, 32)
    assert model.blocks[0].feed_forward.branch.up_proj.weight.shape == (24, 32)


def test_every_expert_starts_with_numbers_of_its_own_at_the_published_scale() -> None:
    config = replace(CONFIG, d_model=256, d_ff=64, init="megatron")
    moe = Transformer(config).blocks[1].feed_forward.branch
    sigma = 0.98658 / (2.5 * 256) ** 0.5  # cut at 3 standard deviations
    for name, expected in {"gate": sigma, "up": sigma, "down": sigma / 6**0.5}.items():
        weight = getattr(moe, f"{name}_proj").weight.flatten(1)
        assert weight.std(1).tolist() == pytest.approx([expected] * 6, rel=0.03)
        assert (torch.corrcoef(weight) - torch.eye(6)).abs().max() < 0.05
    assert moe.router.weight.std().item() == pytest.approx(sigma, rel=0.05)


def test_the_cache_gives_the_same_logits_token_by_token() -> None:
    model = Transformer(CONFIG)
    caches = model.kv_caches(24)
    parts = [model(IDS[:, i : i + 1], caches) for i in range(24)]
    torch.testing.assert_close(torch.cat(parts, 1), model(IDS), rtol=1e-4, atol=1e-5)
    assert generate(model, IDS[:, :4], 3).shape == (2, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 7}, "model.top_k: must lie between 1 and n_experts 6, got 7"),
        ({"top_k": 0}, "top_k: must be from 1"),
        ({"d_expert": 20}, "model.d_expert: experts need a multiple of 8"),
        ({"d_model": 12, "n_heads": 2}, "model.d_model: experts need a multiple of 8"),
        ({"moe_every": 4}, "model.moe_every: must lie between 1 and n_layers 3, got 4"),
        ({"n_shared_experts": -1}, "n_shared_experts: must be"),
        ({"activation": "gelu"}, "model.activation: experts are swiglu, got gelu"),
        ({"n_experts": 0, "d_expert": 16}, "d_expert: has no effect without n_experts"),
        ({"n_experts": -1}, "n_experts: must be from 0 to 1,048,576, got -1"),
    ],
)
def test_bad_configurations_are_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HybridNormError, match=message) as caught:
        replace(CONFIG, **fields)
    assert "\n" not in str(caught.value)


def test_tensor_parallelism_is_refused_in_one_line() -> None:
    with pytest.raises(HybridNormError, match="experts are not split over tensor-parallel ranks"):
        shard_matrices(Transformer(CONFIG), SimpleNamespace(size=lambda: 2))  # type: ignore[arg-type]


def test_published_parameter_counts() -> None:
    """Paper, Table 9: 6.9B parameters, 1.3B active; recomputed 6.92B and 1.28B."""
    config = PRESETS["MoE-1B-7B"]
    counts = parameter_counts(config, placement("pre-norm"))
    with torch.device("meta"):
        assert Transformer(config, placement("pre-norm")).num_parameters() == counts.total
    assert (round(counts.total / 1e9, 2), round(counts.active / 1e9, 2)) == (6.92, 1.28)
    demo = parameter_counts(replace(PRESETS["demo-moe"], vocab_size=4096), placement("pre-norm"))
    assert demo.total / demo.active == pytest.approx(4, abs=0.1)
