"""Each probe against a slow, direct computation on a small model."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybridnorm.diagnose.catalogue import named_probes, quick_probes
from hybridnorm.diagnose.forward import analytic_products, growth
from hybridnorm.diagnose.hook import Probing
from hybridnorm.diagnose.table import Table
from hybridnorm.model.config import ModelConfig
from hybridnorm.model.layers import apply_rope, rope
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import placement, strategies
from hybridnorm.recipe.config import DiagnoseConfig, Recipe, TrainConfig
from hybridnorm.train.batches import Batch
from hybridnorm.train.hooks import State
from hybridnorm.train.world import World

IDS = torch.randint(0, 50, (3, 13), generator=torch.Generator().manual_seed(0))
BATCH = Batch(IDS[:, :-1], IDS[:, 1:], None)


def small(name: str, **fields: object) -> Transformer:
    """A model with gains that are not 1, and streams of different sizes."""
    model = Transformer(
        ModelConfig(
            placement=name, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=24,
            vocab_size=50, vocab_multiple_of=1, init_std=0.2, **fields,
        )
    )  # fmt: skip
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.empty_like(parameter).uniform_(-0.3, 0.3)
    return model


def diagnosed(model: Transformer, *probes: str, batch: Batch = BATCH) -> dict[str, Table]:
    """What the probes find, as in a step of a run on `batch`, which is the held-out text too."""
    recipe = Recipe(
        model=model.config,
        train=TrainConfig(batch_size=4, seq_len=12),
        diagnose=DiagnoseConfig(probes=probes),
    )
    world = World(torch.device("cpu"))
    state = State(recipe, model, world, Path(), 0, lambda limit: iter([(batch, 2)]))
    hook = Probing(named_probes(probes))
    hook.start(state)
    hook.before_forward(state)
    model.losses(*batch).total.backward()
    hook.after_backward(state)
    return hook.tables


def values(table: Table, name: str, sublayer: str = "") -> list[float]:
    rows = [row for row in table if (row.name, row.sublayer) == (name, sublayer)]
    assert {row.step for row in rows} == {1}
    return [row.value for row in sorted(rows)]


def close(expected: object) -> object:
    return pytest.approx(torch.as_tensor(expected).tolist(), rel=1e-4, abs=1e-6)


def streams(model: Transformer, ids: Tensor) -> list[Tensor]:
    """The embedding and what leaves every block, block by block."""
    x = model.embed_norm(model.embed_scale(model.embedding(ids)))
    found = [x]
    for block in model.blocks:
        x, _ = block(x, rope(torch.arange(ids.shape[1]), 4, model.config.rope_theta))
        found.append(x)
    return found


@pytest.fixture(params=["hybridnorm-star", "post-norm", "olmo2", "pre-norm"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return small(request.param)


def states(model: Transformer) -> Iterator[list[Tensor]]:
    """Of each of the two sequences that count, the states `(seq, d_model)`."""
    with torch.no_grad():
        for row in BATCH.input_ids[:2]:
            yield [h[0] for h in streams(model, row[None])]


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


def sublayers(model: Transformer, row: Tensor) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Layer, name, stream in, contribution, stream out by the four lines of the vocabulary."""
    rotation = rope(torch.arange(len(row)), 4, model.config.rope_theta)
    x = model.embed_norm(model.embed_scale(model.embedding(row[None])))
    for layer, block in enumerate(model.blocks, start=1):
        x_block = x
        for name in ("attention", "feed_forward"):
            part = getattr(block, name)
            n = part.input_norm(x)
            inputs = {"rope": rotation} if name == "attention" else {}
            b = part.branch_scale(part.output_norm(part.branch(part.input_scale(n), **inputs)))
            r = {"raw": x, "normed": n, "block_input": x_block}.get(part.skip, x + x_block)
            out = part.post_norm(part.skip_scale(r) + b)
            yield layer, name, x, b, out
            x = out


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


def test_representations(model: Transformer) -> None:
    names = ("token-similarity", "rank", "massive-activations", "outliers")
    tables = diagnosed(model, *names)
    found = {name: torch.zeros(4) for name in ("similarity", "rank", "stable", "kurtosis")}
    top = torch.zeros(4, 3)
    for rows in states(model):
        for layer, h in enumerate(rows):
            cosines = [
                F.cosine_similarity(a, b, dim=0)
                for i, a in enumerate(h)
                for j, b in enumerate(h)
                if i != j
            ]
            found["similarity"][layer] += sum(cosines) / len(cosines) / 2
            s = torch.linalg.svdvals(h)
            p = s / s.sum()
            found["rank"][layer] += torch.exp(-(p * p.log()).sum()) / 2
            found["stable"][layer] += h.square().sum() / torch.linalg.matrix_norm(h, 2) ** 2 / 2
            sizes = h.square().mean(0).sqrt()
            found["kurtosis"][layer] += (sizes**4).mean() / (sizes**2).mean() ** 2 / 2
            top[layer] = torch.maximum(
                top[layer], h.abs().flatten().sort(descending=True).values[:3]
            )
    assert values(tables["token-similarity"], "token_similarity") == close(found["similarity"])
    assert values(tables["rank"], "effective_rank") == close(found["rank"])
    assert values(tables["rank"], "stable_rank") == close(found["stable"])
    assert values(tables["outliers"], "kurtosis") == close(found["kurtosis"])
    massive = tables["massive-activations"]
    for i, name in enumerate(("largest", "second", "third")):
        assert values(massive, name) == close(top[:, i])


def test_influence_and_angles(model: Transformer) -> None:
    tables = diagnosed(model, "block-influence", "angular-distance")
    influence, angles = torch.zeros(3), torch.zeros(4, 4)
    for rows in states(model):
        for a in range(4):
            for b in range(a + 1, 4):
                cosines = torch.stack(
                    [
                        F.cosine_similarity(x, y, dim=0)
                        for x, y in zip(rows[a], rows[b], strict=True)
                    ]
                )
                angles[a, b] += (torch.arccos(cosines) / math.pi).mean() / 2
                if b == a + 1:
                    influence[a] += (1 - cosines).mean() / 2
    assert values(tables["block-influence"], "block_influence") == close(influence)
    for b in range(1, 4):
        assert values(tables["angular-distance"], f"to_{b}") == close(angles[:b, b])


def test_removal_is_a_model_without_the_block(model: Transformer) -> None:
    table = diagnosed(model, "block-removal")["block-removal"]
    with torch.no_grad():
        whole = model.loss(*BATCH)
        expected = []
        for layer in range(3):
            x = model.embed_norm(model.embed_scale(model.embedding(BATCH.input_ids)))
            for other, block in enumerate(model.blocks):
                if other != layer:
                    x, _ = block(x, rope(torch.arange(12), 4, model.config.rope_theta))
            logits = model.logits(model.final_norm(x))
            expected.append(F.cross_entropy(logits.flatten(0, 1), BATCH.targets.flatten()) - whole)
    assert values(table, "loss_increase") == close(torch.stack(expected))


def test_logit_lens(model: Transformer) -> None:
    table = diagnosed(model, "logit-lens")["logit-lens"]
    agreement, kl = torch.zeros(4), torch.zeros(4)
    with torch.no_grad():
        for row in BATCH.input_ids[:2]:
            final = model(row[None])[0].softmax(-1)
            for layer, h in enumerate(streams(model, row[None])):
                mine = model.logits(model.final_norm(h))[0].softmax(-1)
                agreement[layer] += (mine.argmax(-1) == final.argmax(-1)).float().mean() / 2
                kl[layer] += (final * (final / mine).log()).sum(-1).mean() / 2
    assert values(table, "agreement") == close(agreement)
    assert values(table, "kl") == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-5)
    assert values(table, "agreement")[-1] == 1


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
