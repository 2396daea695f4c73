"""Against numbers computed with the authors' own implementation, and a plain re-implementation."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from authors import REFERENCES, gaps_to_authors, load, part, relative
from hybridnorm.errors import HybridNormError
from hybridnorm.interop.official import from_official, special_config, to_official


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_logits_loss_and_every_gradient_match_the_authors(path: Path) -> None:
    gaps = gaps_to_authors(path, torch.device("cpu"))
    assert gaps.logits < 1e-5 and gaps.loss < 1e-6
    assert max(gaps.gradients.values()) < 1e-5, gaps.gradients


# The authors' block in plain torch, from the paper's equations and OLMo's conventions: what the
# mapping must reproduce for switches the reference files do not cover.


def rms(x: Tensor, gain: Tensor | None) -> Tensor:
    y = x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    return y if gain is None else y * gain


def rotate(x: Tensor, theta: float) -> Tensor:
    width, length = x.shape[-1], x.shape[-2]
    frequency = 1 / theta ** (torch.arange(0, width, 2).double() / width)
    phase = torch.outer(torch.arange(length).double(), frequency)
    z = torch.complex(x[..., : width // 2].double(), x[..., width // 2 :].double())
    z = z * torch.polar(torch.ones_like(phase), phase)
    return torch.cat((z.real, z.imag), -1).to(x.dtype)


def plain_forward(config: dict[str, Any], weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    heads = config["n_heads"]
    kv_heads = config.get("n_kv_heads") or heads
    width = config["d_model"] // heads
    batch, length = ids.shape
    x = weights["transformer.wte.weight"][ids]
    for layer in range(config["n_layers"]):
        on = dict(config)
        for key, switches in config["special"].items():
            if layer == key or (isinstance(key, tuple) and layer in key):
                on |= switches
        w = part(weights, f"transformer.blocks.{layer}.")
        n = rms(x, w["attn_norm.weight"]) if on["attn_norm"] else x
        q, k, v = (n @ w["att_proj.weight"].T).split(
            [heads * width, kv_heads * width, kv_heads * width], -1
        )
        q, k, v = (t.view(batch, length, -1, width).transpose(1, 2) for t in (q, k, v))
        q = rms(q, w["q_norm.weight"]) if on["use_query_norm"] else q
        k = rms(k, w["k_norm.weight"]) if on["use_key_norm"] else k
        v = rms(v, w["v_norm.weight"]) if on["use_value_norm"] else v
        q, k = rotate(q, config["rope_theta"]), rotate(k, config["rope_theta"])
        k, v = (t.repeat_interleave(heads // kv_heads, dim=1) for t in (k, v))
        scores = q @ k.transpose(-1, -2) / width**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        context = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        context = rms(context, w["c_norm.weight"]) if on["use_context_norm"] else context
        a = context.transpose(1, 2).reshape(batch, length, -1) @ w["attn_out.weight"].T
        y = (n if on["attn_residual_after_norm"] else x) + a
        z = rms(y, w["ff_norm.weight"]) if on["ffn_norm"] else y
        hidden = z @ w["ff_proj.weight"].T
        if config["activation_type"] == "swiglu":
            up, gate = hidden.chunk(2, -1)
            hidden = F.silu(gate) * up
        else:
            hidden = F.gelu(hidden)
        x = (z if on["ffn_residual_after_norm"] else y) + hidden @ w["ff_out.weight"].T
    x = rms(x, weights["transformer.ln_f.weight"])
    tied = "transformer.wte.weight" if config["weight_tying"] else "transformer.ff_out.weight"
    return x @ weights[tied].T


SWITCHES = ["attn_norm", "ffn_norm", "attn_residual_after_norm", "ffn_residual_after_norm"]
INNER = {"query": "q_norm", "key": "k_norm", "value": "v_norm", "context": "c_norm"}


def random_case(seed: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)

    def coin() -> bool:
        return bool(torch.randint(2, (1,), generator=random))

    switches = [*SWITCHES, *(f"use_{name}_norm" for name in INNER)]
    special: dict[Any, dict[str, bool]] = {
        (0, 2): {name: coin() for name in switches if coin()},
        1: {name: coin() for name in switches if coin()},
    }
    config: dict[str, Any] = {
        "d_model": 32,
        "n_heads": 4,
        "n_kv_heads": [None, 4, 2, 1][seed % 4],
        "n_layers": 4,
        "mlp_hidden_size": 48,
        "vocab_size": 40,
        "embedding_size": 40 + 8 * coin(),
        "weight_tying": coin(),
        "activation_type": "swiglu" if coin() else "gelu",
        "layer_norm_type": "rms",
        "rope_theta": 10_000 if coin() else 500_000,
        "norm_pos_special_config": f"_{special!r}_".replace(" ", ""),
        **{name: coin() for name in switches},
    }
    hidden, width = config["mlp_hidden_size"], 8
    kv = 8 * (config["n_kv_heads"] or 4)
    shapes = {"wte": (config["embedding_size"], 32), "ln_f": (32,)}
    if not config["weight_tying"]:
        shapes["ff_out"] = (config["embedding_size"], 32)
    for layer in range(4):
        on = dict(config)
        for key, patch in special.items():
            if layer == key or (isinstance(key, tuple) and layer in key):
                on |= patch
        block = {
            "att_proj": (32 + 2 * kv, 32),
            "attn_out": (32, 32),
            "ff_proj": (hidden, 32),
            "ff_out": (32, hidden // 2 if config["activation_type"] == "swiglu" else hidden),
        }
        block |= {"attn_norm": (32,)} if on["attn_norm"] else {}
        block |= {"ff_norm": (32,)} if on["ffn_norm"] else {}
        block |= {m: (width,) for name, m in INNER.items() if on[f"use_{name}_norm"]}
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    weights = {
        f"transformer.{name}.weight": torch.randn(shape, generator=random) * 0.2
        + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }
    return {**config, "special": special}, weights


@pytest.mark.parametrize("seed", range(24))
def test_any_combination_of_switches(seed: int) -> None:
    config, weights = random_case(seed)
    ids = torch.randint(40, (2, 12), generator=torch.Generator().manual_seed(seed))
    weights = {n: w.double().requires_grad_() for n, w in weights.items()}
    expected = plain_forward(config, weights, ids)
    F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    model = from_official(config, {n: w.detach() for n, w in weights.items()}).double()
    model.dtype = torch.float64
    logits = model(ids)
    assert relative(logits, expected.detach()) < 1e-6
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    grads = to_official(model, {n: p.grad for n, p in model.named_parameters()})
    for name, weight in weights.items():
        ours = grads[name.replace("c_norm", "context_norm")]
        assert relative(ours, weight.grad) < 1e-5, name


def test_there_and_back_is_the_identity() -> None:
    config, weights = random_case(3)
    back = to_official(from_official(config, weights))
    assert {n.replace("context_norm", "c_norm") for n in back} == weights.keys()
    for name, weight in weights.items():
        assert torch.equal(back[name.replace("c_norm", "context_norm")], weight)


def test_the_special_config_is_a_literal_never_code() -> None:
    read = special_config("_{0:{'attn_norm':True,'ffn_residual':False},(2,3):{'ffn_norm':False}}_")
    assert read == {
        0: {"attn_norm": True, "ffn_residual_after_norm": False},
        2: {"ffn_norm": False},
        3: {"ffn_norm": False},
    }
    assert special_config("_None_") == special_config(None) == {}
    for bad in ("_{0:__import__('os')}_", "_{0:", "_[1]_", "_{0:3}_", "(" * 5000):
        with pytest.raises(HybridNormError, match="norm_pos_special_config"):
            special_config(bad)
    with pytest.raises(HybridNormError, match="unknown switch 'attn_nrm'"):
        special_config("_{0:{'attn_nrm':True}}_")


@pytest.mark.parametrize("name", ["context_norm", "ctx_norm", "cnorm", "norm_c"])
def test_the_context_norm_may_have_any_name(name: str) -> None:
    config, weights = random_case(1)
    ours = from_official(config, weights).state_dict()
    renamed = {n.replace("c_norm", name): weight for n, weight in weights.items()}
    assert renamed.keys() != weights.keys()
    for key, weight in from_official(config, renamed).state_dict().items():
        assert torch.equal(weight, ours[key])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, "missing 'd_model'"),
        ({"alibi": True}, "alibi=True"),
        ({"include_bias": True}, "include_bias"),
        ({"block_type": "llama"}, "block_type='llama'"),
        ({"norm_pos_special_config": "_{9:{'attn_norm':True}}_"}, "no layer 9"),
        ({"attn_norm": True}, r"missing tensor 'blocks.0.attn_norm.weight'"),
        ({"ffn_norm": False}, r"unexpected tensor 'blocks.0.ff_norm.weight'"),
        ({"mlp_hidden_size": 64}, r"'blocks.0.ff_proj.weight' has shape \(352, 64\)"),
    ],
)
def test_what_cannot_be_mapped_is_named(change: dict[str, Any], message: str) -> None:
    path = next(path for path in REFERENCES if path.stem == "hybridnorm")
    config, tensors = load(path)
    with pytest.raises(HybridNormError, match=message):
        from_official({**config, **change}, part(tensors, "weights."))
