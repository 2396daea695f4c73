"""Probes of gradients, the stream and attention against slow, direct computations; all on all."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridnorm.diagnose.catalogue import quick_probes
from hybridnorm.diagnose.forward import analytic_products, growth
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.layers import apply_rope, rope
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import placement, strategies
from probed import BATCH, close, diagnosed, small, states, streams, sublayers, values


def test_gradients(model: Transformer) -> None:
    names = ("gradients-ffn", "gradients-attention", "gradients-all", "gradients-stream")
    tables = diagnosed(model, *names)
    model.zero_grad()
    found = streams(model, BATCH.input_ids)
    for h in found:
        h.retain_grad()
    logits = model.logits(model.final_norm(found[-1]))
    F.cross_entropy(logits.flatten(0, 1), BATCH.targets.flatten()).backward()

    def norm(*parameters: Tensor) -> float:
        return math.sqrt(sum(float(p.grad.square().sum()) for p in parameters))

    for name, sublayer in (("gradients-ffn", "feed_forward"), ("gradients-attention", "attention")):
        branches = [getattr(block, sublayer).branch for block in model.blocks]
        matrices = [[p for p in branch.parameters() if p.ndim == 2] for branch in branches]
        assert values(tables[name], "gradient_norm", sublayer) == close(
            [norm(*m) for m in matrices]
        )
    down = [norm(block.feed_forward.branch.down_proj.weight) for block in model.blocks]
    found_down = values(tables["gradients-ffn"], "gradient_norm.down_proj", "feed_forward")
    assert found_down == close(down)
    every = [norm(*part.parameters()) for part in (model.embedding, *model.blocks)]
    assert values(tables["gradients-all"], "gradient_norm") == close(every)
    stream = [float(h.grad.norm()) for h in found]
    assert values(tables["gradients-stream"], "stream_gradient_norm") == close(stream)


def test_stream_rms(model: Transformer) -> None:
    table = diagnosed(model, "stream-rms")["stream-rms"]
    rms, variance = torch.zeros(2, 4)
    for rows in states(model):
        for layer, h in enumerate(rows):
            rms[layer] += sum(t.square().mean().sqrt() for t in h) / len(h) / 2
            variance[layer] += h.var(correction=0) / 2
    assert values(table, "rms") == close(rms)
    assert values(table, "variance") == close(variance)


def test_growth_classes() -> None:
    assert growth([2.0, 2.1, 1.9, 2.0, 2.2])[0] == "constant"
    assert growth([1 + 0.7 * layer for layer in range(12)])[0] == "linear"
    assert growth([1.7**layer for layer in range(12)])[0] == "exponential"


def test_update_ratio(model: Transformer) -> None:
    table = diagnosed(model, "update-ratio")["update-ratio"]
    found: dict[str, Tensor] = {"attention": torch.zeros(3), "feed_forward": torch.zeros(3)}
    with torch.no_grad():
        for row in BATCH.input_ids[:2]:
            for layer, name, x, b, _ in sublayers(model, row):
                found[name][layer - 1] += (b.norm(dim=-1) / x.norm(dim=-1)).mean() / 2
    for name, ratios in found.items():
        assert values(table, "update_ratio", name) == close(ratios)


def test_jacobian_factor_is_the_jacobian_across_the_stream() -> None:
    """With gains of 1, the norm's own Jacobian on a direction orthogonal to its input."""
    model = Transformer(
        ModelConfig(
            placement="post-norm", d_model=16, n_layers=2, n_heads=4, d_ff=24, vocab_size=50
        )
    )
    table = diagnosed(model, "stream-norm-jacobian")["stream-norm-jacobian"]
    factors = {"attention": torch.zeros(2), "feed_forward": torch.zeros(2)}
    for row in BATCH.input_ids[:2]:
        for layer, name, x, b, _ in sublayers(model, row):
            norm = getattr(model.blocks[layer - 1], name).post_norm
            summed = (x + b)[0].detach()
            for token in summed:
                across = torch.randn(16)
                across -= (across @ token) / (token @ token) * token
                moved = torch.autograd.functional.jacobian(norm, token[None])[0, :, 0] @ across
                factors[name][layer - 1] += (
                    moved.norm() / across.norm() / len(summed) / 2
                ).detach()
    for name, expected in factors.items():
        assert values(table, "factor", name) == pytest.approx(expected.tolist(), rel=2e-3)
    assert values(table, "product")[0] == pytest.approx(
        values(table, "factor", "attention")[0] * values(table, "factor", "feed_forward")[0],
        rel=0.05,
    )


def test_analytic_product_is_that_of_keel() -> None:
    for name, alpha in (("post-norm", 1.0), ("deepnorm", 24**0.25)):
        n = 2 * 12
        expected = (alpha / math.sqrt(alpha**2 + 1)) ** n
        assert analytic_products(placement(name), 12, 64)[-1] == pytest.approx(expected)
    assert analytic_products(placement("pre-norm"), 12, 64) == [1.0] * 12
    # HybridNorm: three unit vectors meet in the norm of every block but the first.
    hybrid = analytic_products(placement("hybridnorm"), 4, 64)
    assert hybrid[-1] == pytest.approx(2**-0.5 * 3 ** (-0.5 * 3))


def test_gains() -> None:
    model = small("hybridnorm-star")
    table = diagnosed(model, "gains")["gains"]
    for part in ("attention.branch.q_norm", "feed_forward.input_norm"):
        gains = [model.get_submodule(f"blocks.{i}.{part}").weight.detach().abs() for i in range(3)]
        assert values(table, "gain_mean", part) == close([g.mean() for g in gains])
        assert values(table, "gain_smallest", part) == close([g.min() for g in gains])
        assert values(table, "gain_largest", part) == close([g.max() for g in gains])
    assert values(table, "gain_mean", "final_norm") == close(
        [model.final_norm.weight.detach().abs().mean()]
    )


def weights_of_attention(model: Transformer, row: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each layer, logits and softmax of each head, pair by pair."""
    rotation = rope(torch.arange(len(row)), 4, model.config.rope_theta)
    for layer, name, x, _, _ in sublayers(model, row):
        if name == "attention":
            part = model.blocks[layer - 1].attention
            n = part.input_scale(part.input_norm(x))
            branch = part.branch
            q = apply_rope(branch.q_norm(branch.q_proj(n).unflatten(-1, (4, 4))), rotation)[0]
            k = apply_rope(branch.k_norm(branch.k_proj(n).unflatten(-1, (2, 4))), rotation)[0]
            logits = torch.stack([q[:, h] @ k[:, h // 2].T / 2 for h in range(4)])
            yield logits, logits.masked_fill(~torch.ones(12, 12).tril().bool(), -1e9).softmax(-1)


def test_attention_entropy_and_logits(model: Transformer) -> None:
    tables = diagnosed(model, "attention-entropy", "attention-logits")
    entropy, largest = torch.zeros(3), torch.zeros(3)
    with torch.no_grad():
        for row in BATCH.input_ids[:2]:
            for layer, (logits, weights) in enumerate(weights_of_attention(model, row)):
                entropy[layer] += -(weights * weights.clamp_min(1e-30).log()).sum(-1).mean() / 2
                largest[layer] = max(largest[layer], logits.abs().max())
    assert values(tables["attention-entropy"], "entropy", "attention") == close(entropy)
    logits = values(tables["attention-logits"], "max_logit", "attention")
    assert logits == close(largest)
    bounded = [row for row in tables["attention-logits"] if row.name == "bound"]
    has_norms = model.placement.attention.q_norm is not None
    assert len(bounded) == (3 if has_norms else 0)
    for logit, bound in zip(logits, sorted(bounded), strict=has_norms):
        assert logit <= bound.value


def test_bound_of_unit_gains_is_the_root_of_the_head_width() -> None:
    model = Transformer(
        ModelConfig(
            placement="hybridnorm", d_model=64, n_layers=1, n_heads=4, d_ff=8, vocab_size=50
        )
    )
    table = diagnosed(model, "attention-logits")["attention-logits"]
    assert values(table, "bound", "attention") == close([4.0])


def test_entropy_keeps_to_documents() -> None:
    documents = torch.tensor([[0] * 6 + [1] * 6]).expand(3, 12)
    masked = diagnosed(
        small("pre-norm"), "attention-entropy", batch=BATCH._replace(documents=documents)
    )["attention-entropy"]
    expected = 2 * sum(math.log(n) for n in range(1, 7)) / 12
    assert values(masked, "bound", "attention") == close([expected] * 3)
    assert max(values(masked, "entropy", "attention")) < expected


@pytest.mark.parametrize("name", strategies())
def test_every_probe_on_every_placement(name: str) -> None:
    model = small(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    tables = diagnosed(model, *quick_probes())
    assert set(tables) == set(quick_probes())
    if all(parameter.ndim > 1 for parameter in model.parameters()):
        assert not tables.pop("gains")
    for probe, table in tables.items():
        assert table and all(math.isfinite(row.value) for row in table), probe
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_every_probe_with_experts() -> None:
    model = small("hybridnorm-star", n_experts=4, n_shared_experts=1, d_expert=8)
    for probe, table in diagnosed(model, *quick_probes()).items():
        assert table and all(math.isfinite(row.value) for row in table), probe
