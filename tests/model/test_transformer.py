import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hybridnorm.model.config import PRESETS, ModelConfig
from hybridnorm.model.initialization import standard_deviation
from hybridnorm.model.norms import Norm
from hybridnorm.model.sampling import generate, with_cast_weights
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import placement, spec, strategies

CONFIG = ModelConfig(d_model=32, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=48, vocab_size=50)
IDS = torch.arange(48).view(2, 24)


@pytest.mark.parametrize("name", [*strategies(), "kv-post", "pre-qkvc-pre"])
def test_every_placement_trains_through_the_meta_device(name: str) -> None:
    config = replace(CONFIG, placement=name)
    with torch.device("meta"):
        model = Transformer(config)
    model.to_empty(device="cpu")
    model.initialize(seed=1)
    direct = Transformer(config, seed=1)
    for (name_, ours), theirs in zip(model.named_parameters(), direct.parameters(), strict=True):
        assert torch.equal(ours, theirs), name_
    assert not list(model.buffers()), "a buffer would be lost on the meta device"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = model.loss(IDS[:, :-1], IDS[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("151M", 151.4),
        ("285M", 285.2),
        ("550M", 550.5),
        ("543M-deep", 543.7),
        ("1.2B", 1277.0),
        ("1.2B-released", 1179.0),
    ],
)
def test_the_papers_parameter_counts(preset: str, millions: float) -> None:
    config = replace(PRESETS[preset], placement="pre-norm")
    with torch.device("meta"):
        model = Transformer(config)
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.5)


@pytest.mark.parametrize("name", ["pre-norm", "hybridnorm-star", "olmo2", "qkvc-post", "b2t"])
@pytest.mark.parametrize("ends", [(5, *range(6, 25)), (1, 2, 9, 10, 24), (23, 24)], ids=len)
def test_the_cache_gives_the_same_logits_however_the_text_is_cut(
    name: str, ends: tuple[int, ...]
) -> None:
    model = Transformer(replace(CONFIG, placement=name))
    whole = model(IDS)
    caches = model.kv_caches(24)
    parts = [model(IDS[:, a:b], caches) for a, b in itertools.pairwise((0, *ends))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*strategies(), "kv-post", "pre-qkvc-pre"])
def test_cast_weights_give_the_logits_of_the_model(name: str) -> None:
    model = Transformer(replace(CONFIG, placement=name))
    for number, vector in enumerate(p for p in model.parameters() if p.dim() == 1):
        vector.data += 0.1 * torch.randn(
            len(vector), generator=torch.Generator().manual_seed(number)
        )
    exact = model(IDS)
    torch.testing.assert_close(_decoded(model), exact, rtol=2e-5, atol=2e-5)
    model.dtype = torch.bfloat16
    # What rounding costs the model itself, in all logits together.
    assert (_decoded(model) - exact).norm() < 1.3 * (model(IDS) - exact).norm()


@torch.inference_mode()
def _decoded(model: Transformer) -> torch.Tensor:
    fast = with_cast_weights(model)
    caches = fast.kv_caches(24)
    parts = [fast(IDS[:, :7], caches), fast(IDS[:, 7:9], caches)]
    parts += [fast.next_logits(IDS[:, i : i + 1], caches)[:, None] for i in range(9, 24)]
    return torch.cat(parts, dim=1)


def test_generation_leaves_the_model_as_it_was() -> None:
    model = Transformer(CONFIG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generate(model, IDS[:, :4], 3)
    assert {n: v.tolist() for n, v in model.state_dict().items()} == {
        n: v.tolist() for n, v in before.items()
    }
    model.loss(IDS, IDS).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_greedy_generation_takes_the_likeliest_token() -> None:
    model = Transformer(CONFIG)
    tokens = IDS[:, :4]
    for _ in range(6):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(generate(model, IDS[:, :4], 6, temperature=0), tokens)
    assert torch.equal(generate(model, IDS[:, :4], 6, top_k=1), tokens)
    assert torch.equal(generate(model, IDS[:, :4], 6, top_p=1e-9), tokens)


def test_a_sequence_that_has_ended_stays_ended() -> None:
    model = Transformer(CONFIG)
    ids = generate(model, IDS[:, :2].repeat(4, 1), 60, temperature=3.0, end_of_document=7)
    assert ids.shape[1] > 10
    for row in ids[:, 2:].tolist():
        end = row.index(7) if 7 in row else len(row)
        assert set(row[end:]) <= {7}


def test_padding_rows_of_the_vocabulary_get_no_probability() -> None:
    model = Transformer(CONFIG)
    assert model.embedding.weight.shape == (128, 32) and model(IDS).shape == (2, 24, 50)
    expected = F.cross_entropy(model(IDS).flatten(0, 1), IDS.flatten())
    torch.testing.assert_close(model.loss(IDS, IDS).float(), expected)


@pytest.mark.parametrize(
    "init", ["normal", "depth-scaled", "megatron", "deepnorm", "subln", "tiny"]
)
def test_initialization_formulas(init: str) -> None:
    config = replace(
        CONFIG, d_model=256, d_ff=512, vocab_size=1000, tie_embeddings=False, init=init
    )
    model = Transformer(config, placement("pre-norm"))
    weights = dict(model.named_parameters())
    s, n = 1 / math.sqrt(2.5 * 256), 4
    tiny = 1 / math.sqrt(2 * 256 * 4)
    by_depth, by_model = s / math.sqrt(2 * 3), s / math.sqrt(2 * n)
    beta, gamma = s * (8 * n) ** -0.25, s * math.sqrt(math.log(2 * n))
    expected = {  # the third block of four
        "normal": {"q": s, "o": s, "down": s, "head": s, "embedding": s},
        "depth-scaled": {"q": s, "o": by_depth, "down": by_depth, "head": s, "embedding": s},
        "megatron": {"q": s, "o": by_model, "down": by_model, "head": 1 / 16, "embedding": s},
        "deepnorm": {"q": s, "v": beta, "o": beta, "up": beta, "down": beta, "gate": s},
        "subln": {"q": s, "v": gamma, "o": gamma, "up": gamma, "down": gamma, "gate": s},
        "tiny": {"q": tiny, "o": tiny, "embedding": 0.5},
    }[init]
    for short, sigma in expected.items():
        name = {"embedding": "embedding.weight", "head": "head.weight"}.get(short)
        part = "feed_forward" if short in ("down", "gate", "up") else "attention"
        name = name or f"blocks.2.{part}.branch.{short}_proj.weight"
        weight = weights[name]
        # A normal cut at 3 sigma has 0.98658 of its standard deviation left.
        assert weight.std().item() == pytest.approx(0.98658 * sigma, rel=0.02), name
        assert weight.abs().max() <= 3 * sigma * (1 + 1e-6)
        assert standard_deviation(config, init, name) == pytest.approx(sigma)


def test_placements_with_one_seed_share_their_weights() -> None:
    a, b = (
        dict(Transformer(replace(CONFIG, placement=name, init="normal"), seed=7).named_parameters())
        for name in ("pre-norm", "hybridnorm-star")
    )
    shared = [n for n in a if n in b and a[n].ndim == 2]
    assert len(shared) == 1 + 4 * 7
    assert all(torch.equal(a[name], b[name]) for name in shared)
    other = Transformer(replace(CONFIG, placement="pre-norm", init="normal"), seed=8)
    assert not torch.equal(other.embedding.weight, a["embedding.weight"])
    megatron = Transformer(replace(CONFIG, placement="pre-norm", init="megatron"), seed=7)
    name = "blocks.1.attention.branch.o_proj.weight"
    torch.testing.assert_close(megatron.get_parameter(name), a[name] / math.sqrt(8))


def norm(**fields: object) -> Norm:
    module = Norm(spec.Norm(**fields), 16, gain=1.0, eps=1e-5)  # type: ignore[arg-type]
    module.reset_parameters()
    return module


def test_norms_against_torch() -> None:
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(norm()(x), F.rms_norm(x, (16,), eps=1e-5))
    torch.testing.assert_close(norm(kind="layer")(x), F.layer_norm(x, (16,), eps=1e-5))
    torch.testing.assert_close(norm(kind="l2")(x), x / x.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(norm(kind="dyt")(x), torch.tanh(0.5 * x))
    torch.testing.assert_close(norm(kind="derf")(x), torch.erf(0.5 * x))
    zero = norm(zero_centered=True)
    assert torch.equal(zero.weight, torch.zeros(16))
    torch.testing.assert_close(zero(x), norm()(x))


def test_statistics_are_float32_whatever_the_input() -> None:
    x = (torch.randn(4, 16) * 300).half()  # squares overflow half precision
    assert torch.isfinite(norm()(x)).all()
    x = torch.randn(4, 16).bfloat16()
    assert torch.equal(norm()(x), F.rms_norm(x.float(), (16,), eps=1e-5).bfloat16())


def test_depth_constants_are_numbers_and_gains_learn() -> None:
    scaled = Transformer(replace(CONFIG, placement="lns"))
    assert [b.attention.input_scale.value for b in scaled.blocks] == [
        pytest.approx(1 / math.sqrt(layer)) for layer in (1, 2, 3, 4)
    ]
    assert not any("scale" in name for name, _ in scaled.named_parameters())
    gains = Transformer(replace(CONFIG, placement="hybridnorm-star-7b"))
    weight = gains.blocks[3].attention.output_norm.weight
    assert weight.requires_grad and torch.allclose(weight, torch.tensor(1 / math.sqrt(8)))


def test_the_contribution_to_the_stream_can_be_hooked() -> None:
    model = Transformer(replace(CONFIG, placement="peri-ln"))
    streams, added = [], []
    block = model.blocks[0].attention
    block.register_forward_hook(lambda m, args, out: streams.append((args[0], out)))
    block.branch_scale.register_forward_hook(lambda m, args, out: added.append(out))
    model(IDS)
    (before, after), contribution = streams[0], added[0]
    torch.testing.assert_close(after - before, contribution)


def test_a_closed_output_gate_takes_a_head_out() -> None:
    config = replace(CONFIG, n_layers=1, placement="gated-attention-heads")
    gated, plain = Transformer(config), Transformer(replace(config, placement="pre-norm"))
    attention = gated.blocks[0].attention.branch
    with torch.no_grad():
        # What attention reads has a constant first channel, and gates read that one alone.
        attention.gate_proj.weight.zero_()[:, 0] = torch.tensor([-1e4, 1e4, 1e4, -1e4])
        for model in (gated, plain):
            model.embedding.weight[:, 0] = 1.0
        open_heads = torch.tensor([0.0, 1.0, 1.0, 0.0]).repeat_interleave(config.head_dim)
        plain.blocks[0].attention.branch.o_proj.weight.mul_(open_heads)
    torch.testing.assert_close(gated(IDS), plain(IDS))
