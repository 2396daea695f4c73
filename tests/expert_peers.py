"""Experts by plain products and as `transformers` has them, beside ours, on any device."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
)
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.moe import load_balance
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import placement, spec

WITH_EXPERTS = [
    (OlmoeConfig, OlmoeForCausalLM, {"num_experts": 8}),
    (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 8}),
]


def looped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """`grouped_linear` by plain products, one expert after the other."""
    starts = [0, *ends.tolist()]
    parts = zip(starts, starts[1:], weight, strict=False)
    return torch.cat([x[start:end] @ matrix.T for start, end, matrix in parts])


def relative_gap(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_experts_per_tok": 3,
    "vocab_size": 80,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "output_router_logits": True,
    "rope_parameters": {"rope_theta": 10_000.0, "rope_type": "default"},
    "attn_implementation": "eager",
    "experts_implementation": "eager",  # a loop
    # A padding token would have no embedding gradient.
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
PRE = spec.Norm()
FULL = spec.Norm(axis="full")
PLACEMENTS = {
    OlmoeForCausalLM: spec.Placement(
        name="olmoe",
        attention=spec.AttentionSpec(input_norm=PRE, q_norm=FULL, k_norm=FULL),
        feed_forward=spec.FeedForwardSpec(input_norm=PRE),
    ),
    MixtralForCausalLM: placement("pre-norm"),
}
NAMES = {
    "embed_tokens": "embedding", "norm": "final_norm", "lm_head": "head",
    "self_attn": "attention.branch", "mlp": "feed_forward.branch", "gate": "router",
    "input_layernorm": "attention.input_norm",
    "post_attention_layernorm": "feed_forward.input_norm", "layers": "blocks",
}  # fmt: skip


def ours_from(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their weights or gradients by our names; they pack gate and up into one."""
    renamed = {}
    for name, tensor in theirs.items():
        parts = name.removeprefix("model.").replace("experts.", "").split(".")
        ours = ".".join(NAMES.get(part, part) for part in parts)
        if ours.endswith("gate_up_proj"):
            stem = ours.removesuffix("gate_up_proj")
            gate, up = tensor.chunk(2, dim=1)
            renamed |= {f"{stem}gate_proj.weight": gate, f"{stem}up_proj.weight": up}
        else:
            renamed[ours if ours.endswith("weight") else f"{ours}.weight"] = tensor
    return renamed


def compare_experts(
    config: type,
    cls: type[PreTrainedModel],
    experts: dict[str, int],
    device: torch.device,
    tolerance: float,
) -> None:
    """Logits, losses and gradients of both agree.

    Their load balance pools the layers and counts top_k for balanced experts: taken layer by
    layer and divided by top_k, it is the one OLMoE was trained with.
    """
    torch.manual_seed(0)
    theirs = cls(config(**SHAPE, **experts))
    for parameter in theirs.parameters():
        low, high = (0.5, 1.5) if parameter.ndim == 1 else (-0.2, 0.2)
        parameter.data.uniform_(low, high)
    ours = Transformer(
        ModelConfig(
            d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=48, vocab_size=80,
            vocab_multiple_of=1, tie_embeddings=False, rope_theta=10_000.0, n_experts=8, top_k=3,
            norm_topk_prob=cls is MixtralForCausalLM,
        ),
        PLACEMENTS[cls],
    )  # fmt: skip
    ours.load_state_dict(ours_from({n: p.detach() for n, p in theirs.named_parameters()}))
    ours.to(device)
    theirs.to(device)
    ids = torch.randint(80, (2, 30), generator=torch.Generator().manual_seed(0)).to(device)

    out = theirs(ids, use_cache=False)
    balance = sum(load_balancing_loss_func((g,), 8, 3) for g in out.router_logits) / (3 * 3)
    z = torch.stack([g.exp().sum(-1).log() ** 2 for g in out.router_logits]).mean()
    cross_entropy = F.cross_entropy(out.logits.flatten(0, 1), ids.flatten())
    (cross_entropy + 0.01 * balance + 0.001 * z).backward()

    losses = ours.losses(ids, ids)
    assert losses.routing is not None
    assert relative_gap(ours(ids), out.logits) < tolerance
    found = (losses.cross_entropy, load_balance(losses.routing), losses.routing.z.mean())
    for actual, expected in zip(found, (cross_entropy, balance, z), strict=True):
        assert relative_gap(actual, expected) < tolerance
    (losses.total + 0.01 * found[1] + 0.001 * found[2]).backward()
    gradients = ours_from({n: p.grad for n, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert relative_gap(parameter.grad, gradients[name]) < tolerance, name
