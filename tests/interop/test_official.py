"""Against numbers computed with the authors' own implementation, and a plain re-implementation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import OlmoeConfig, OlmoeForCausalLM

from authors import REFERENCES, gaps_to_authors, load, part, relative
from hybridnorm.errors import HybridNormError
from hybridnorm.interop.official import (
    from_official,
    model_and_placement,
    special_config,
    to_official,
)
from hybridnorm.model import preset
from hybridnorm.placements import placement


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
        assert relative(grads[name], weight.grad) < 1e-5, name


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: path.stem)
def test_there_and_back_is_the_identity(path: Path) -> None:
    config, tensors = load(path)
    weights = part(tensors, "weights.")
    back = to_official(from_official(config, weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())


OLMOE = {  # their MoE-1B-7B, made small
    "d_model": 64, "n_heads": 4, "n_layers": 2, "mlp_ratio": 1, "vocab_size": 96,
    "embedding_size": 96, "weight_tying": False, "rope": True, "include_bias": False,
    "block_type": "moe", "layer_norm_type": "rms", "activation_type": "swiglu",
    "attention_layer_norm": True, "moe_num_experts": 8, "moe_top_k": 2, "moe_dropless": True,
    "moe_mlp_impl": "sparse", "moe_zloss_weight": 0.001, "moe_loss_weight": 0.01,
}  # fmt: skip


def olmoe() -> OlmoeForCausalLM:
    torch.manual_seed(0)
    config = OlmoeConfig(
        hidden_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2,
        intermediate_size=32, vocab_size=96, num_experts=8, num_experts_per_tok=2,
        norm_topk_prob=False, tie_word_embeddings=False, pad_token_id=None,
    )  # fmt: skip
    model = OlmoeForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data.normal_(weight.ndim == 1, 0.2)
    return model


def as_megablocks(model: OlmoeForCausalLM) -> dict[str, Tensor]:
    """The inverse of transformers' convert_olmoe_weights_to_hf.py."""
    outside = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
    theirs = model.state_dict()
    weights = {f"transformer.{to}.weight": theirs[f"{at}.weight"] for at, to in outside.items()}
    for layer in range(model.config.num_hidden_layers):
        w = part(theirs, f"model.layers.{layer}.")
        gate, up = w["mlp.experts.gate_up_proj"].chunk(2, dim=1)
        block = {
            "att_proj.weight": torch.cat([w[f"self_attn.{x}_proj.weight"] for x in "qkv"]),
            "attn_out.weight": w["self_attn.o_proj.weight"],
            "q_norm.weight": w["self_attn.q_norm.weight"],
            "k_norm.weight": w["self_attn.k_norm.weight"],
            "attn_norm.weight": w["input_layernorm.weight"],
            "ff_norm.weight": w["post_attention_layernorm.weight"],
            "ffn.router.layer.weight": w["mlp.gate.weight"],
            "ffn.experts.mlp.w1": torch.cat(list(gate)),
            "ffn.experts.mlp.v1": torch.cat(list(up)),
            "ffn.experts.mlp.w2": torch.cat([down.T for down in w["mlp.experts.down_proj"]]),
        }
        weights |= {f"transformer.blocks.{layer}.{name}": t for name, t in block.items()}
    return weights


def test_olmoe_whose_norms_of_q_and_k_are_over_the_full_width() -> None:
    theirs = olmoe()
    ids = torch.randint(96, (2, 24))
    with torch.no_grad():
        logits = from_official(OLMOE, as_megablocks(theirs))(ids)
        assert relative(logits, theirs(ids).logits) < 1e-5


def test_their_large_model_with_experts_is_our_preset() -> None:
    released = OLMOE | {  # HybridNorm/MoE_model/configs/exps/MoE-1B-7B-HybridNorm.yaml
        "d_model": 2048, "n_heads": 16, "n_layers": 16, "vocab_size": 50280,
        "embedding_size": 50304, "init_std": 0.013975424859373685, "use_query_norm": True,
        "use_key_norm": True, "use_value_norm": True, "attn_norm": False, "ffn_norm": True,
        "attn_residual_after_norm": False, "ffn_residual_after_norm": True, "moe_num_experts": 64,
        "moe_top_k": 8,
    }  # fmt: skip
    ours, found = model_and_placement(released, None)
    known = preset("MoE-1B-7B")
    same = {"vocab_size": 50280, "vocab_multiple_of": 128, "init_std": None, "n_kv_heads": 16}
    assert replace(ours, **same) == known
    assert (ours.vocab_size, ours.kv_heads) == (known.padded_vocab_size, known.kv_heads)
    assert found.block(0, 16) == placement("hybridnorm").block(0, 16)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, "config: missing field 'd_model'"),
        ({"n_layers": "three"}, "config.n_layers: expected a whole number, got 'three'"),
        ({"rope_theta": [1]}, "config.rope_theta: expected a number"),
        ({"use_query_norm": "no"}, "config.use_query_norm: expected true or false"),
        ({"vocab_size": 10**6}, "config.vocab_size: 1000000 is more than embedding_size"),
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


@pytest.mark.parametrize("damaged", [3.0, torch.tensor(1.0), torch.ones(64).long()])
def test_a_damaged_tensor_is_named(damaged: object) -> None:
    config, tensors = load(next(path for path in REFERENCES if path.stem == "hybridnorm"))
    weights = part(tensors, "weights.")
    for bad in (damaged, torch.full((64,), torch.nan), torch.ones(64).to_sparse()):
        with pytest.raises(HybridNormError, match="is no plain tensor of finite"):
            from_official(config, weights | {"blocks.0.q_norm.weight": bad})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_dropless": False}, "moe_dropless=False"),
        ({"moe_expert_choice": True}, "moe_expert_choice=True"),
        ({"activation_type": "gelu"}, "activation_type='gelu'"),
        ({"attention_layer_norm_with_affine": False}, "may be of a head"),
        ({"use_query_norm": True}, r"'blocks.0.q_norm.weight' has shape \(64,\), expected \(16,\)"),
        ({"moe_num_experts": 4}, r"'blocks.0.ffn.router.layer.weight' has shape \(8, 64\)"),
        ({"mlp_hidden_size": 96}, r"mlp.w1' has shape \(256, 64\), expected \(384, 64\)"),
        ({"moe_shared_expert": True}, "missing tensor 'blocks.0.ffn.shared_expert.gate_proj.weigh"),
        ({"block_type": "sequential"}, "missing tensor 'blocks.0.ff_proj.weight'"),
    ],
)
def test_experts_that_cannot_be_mapped_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(HybridNormError, match=message):
        from_official(OLMOE | change, as_megablocks(olmoe()))
