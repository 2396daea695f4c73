"""The exact identities between placements, and what must differ."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import Placement, placement
from hybridnorm.placements.parse import placement_from_dict, placement_to_dict

CONFIG = ModelConfig(d_model=48, n_layers=5, n_heads=4, n_kv_heads=2, d_ff=96, vocab_size=40)
IDS = torch.arange(24).view(2, 12)

QKV = {"q_norm": "rms", "k_norm": "rms", "v_norm": "rms"}
CANONICAL = {"name": "canonical", "attention": {**QKV, "post_norm": "rms"}}


def build(spec: Placement, n_layers: int = 5) -> Transformer:
    model = Transformer(replace(CONFIG, n_layers=n_layers), spec)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # gains and biases away from their trivial values
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


def outputs(model: Transformer, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    if dtype == torch.float64:
        model.double()
    model.dtype = dtype
    logits = model(IDS)
    logits.float().square().mean().backward()
    return logits.detach(), [p.grad for p in model.parameters()]


def regroup(source: Transformer, target: Transformer) -> None:
    """Copy the weights; a feed-forward input norm becomes the attention's post-norm."""
    state = {}
    for name, tensor in source.state_dict().items():
        moved = name.replace("feed_forward.input_norm", "attention.post_norm")
        state[moved if moved in target.state_dict() else name] = tensor
    target.load_state_dict(state)


def as_layernorm(spec: Placement) -> Placement:
    table = json.loads(json.dumps(placement_to_dict(spec)).replace('"rms"', '"layer"'))
    return placement_from_dict({**table, "final_norm": "layer"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("n_layers", [1, 5])
def test_hybridnorm_is_one_post_norm_per_block(
    dtype: torch.dtype, kind: str, n_layers: int
) -> None:
    spellings = [placement("hybridnorm"), placement_from_dict(CANONICAL)]
    if kind == "layer":
        spellings = [as_layernorm(spec) for spec in spellings]
    paper, canonical = (build(spec, n_layers) for spec in spellings)
    regroup(paper, canonical)
    (a, a_grads), (b, b_grads) = outputs(paper, dtype), outputs(canonical, dtype)
    assert torch.equal(a, b)
    order = [
        n.replace("feed_forward.input_norm", "attention.post_norm")
        for n, _ in paper.named_parameters()
    ]
    ours = dict(zip(order, a_grads, strict=True))
    theirs = dict(zip((n for n, _ in canonical.named_parameters()), b_grads, strict=True))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_hybridnorm_star_regroups_after_the_first_block_only() -> None:
    star = placement("hybridnorm-star")
    first = {
        "attention": {"input_norm": "rms", "post_norm": "none"},
        "feed_forward": {"input_norm": "rms"},
    }
    canonical = placement_from_dict({**CANONICAL, "overrides": [{"layers": "first", **first}]})
    a, b = build(star), build(canonical)
    regroup(a, b)
    assert torch.equal(a(IDS), b(IDS))
    wrong = build(
        placement_from_dict(
            {**CANONICAL, "overrides": [{"layers": "first", "attention": {"input_norm": "rms"}}]}
        )
    )
    regroup(a, wrong)
    assert (a(IDS) - wrong(IDS)).abs().max() > 0.01


def test_post_norm_inside_the_feed_forward_is_another_network() -> None:
    textbook = placement_from_dict(
        {"name": "t", "attention": QKV, "feed_forward": {"post_norm": "rms"}}
    )
    a, b = build(placement("hybridnorm")), build(textbook)
    b.load_state_dict(a.state_dict(), strict=False)
    assert (a(IDS) - b(IDS)).abs().max() > 0.01


def test_normed_skips_are_post_norm_with_an_entry_norm() -> None:
    chain = build(placement("megatron-post-residual"))
    post = build(
        placement_from_dict(
            {
                "name": "p",
                "embed_norm": "rms",
                "attention": {"post_norm": "rms"},
                "feed_forward": {"post_norm": "rms"},
            }
        )
    )
    state = chain.state_dict()
    moved = {"embed_norm.weight": state["blocks.0.attention.input_norm.weight"]}
    for layer in range(5):
        moved[f"blocks.{layer}.attention.post_norm.weight"] = state[
            f"blocks.{layer}.feed_forward.input_norm.weight"
        ]
        last = layer == 4
        moved[f"blocks.{layer}.feed_forward.post_norm.weight"] = state[
            "final_norm.weight" if last else f"blocks.{layer + 1}.attention.input_norm.weight"
        ]
    post.load_state_dict({n: moved.get(n, state.get(n)) for n in post.state_dict()})
    assert torch.equal(chain(IDS), post(IDS))


def test_qkv_norm_ignores_the_scale_of_its_input_and_pre_norm_before_it_only_its_gain() -> None:
    bare, pre = build(placement("qkv-pre")), build(placement("pre-qkv-pre"))
    pre.load_state_dict(bare.state_dict(), strict=False)
    for name, parameter in pre.named_parameters():
        if name.endswith("attention.input_norm.weight"):
            parameter.data.fill_(1.0)
    for model in (bare, pre):
        for module in model.modules():
            if hasattr(module, "eps"):
                module.eps = 0.0  # the identity holds up to eps
    torch.testing.assert_close(bare(IDS), pre(IDS), rtol=1e-4, atol=1e-5)


def test_a_post_norm_sees_only_the_ratio_of_the_scales() -> None:
    def scaled(skip: float, branch: float) -> Transformer:
        part = {
            "post_norm": {"kind": "rms", "eps": 1e-30},
            "skip_scale": skip,
            "branch_scale": branch,
        }
        return build(placement_from_dict({"name": "s", "attention": part, "feed_forward": part}))

    torch.testing.assert_close(scaled(4.0, 1.0)(IDS), scaled(1.0, 0.25)(IDS))
