"""Dense models of `transformers` beside ours with the same weights, on any device."""

import torch
import torch.nn.functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.transformer import Transformer

DENSE = [
    ("pre-norm", LlamaConfig, LlamaForCausalLM),
    ("olmo2", Olmo2Config, Olmo2ForCausalLM),
    ("pre-norm-qk", Qwen3Config, Qwen3ForCausalLM),
]
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 80,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    # A padding token would have no embedding gradient.
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
IDS = torch.arange(60).view(2, 30)
NAMES = {
    "embed_tokens": "embedding", "norm": "final_norm", "lm_head": "head",
    "input_layernorm": "attention.input_norm", "post_feedforward_layernorm":
    "feed_forward.output_norm",
}  # fmt: skip


def our_name(name: str, placement: str) -> str:
    name = name.removeprefix("model.").replace("layers.", "blocks.")
    name = name.replace("self_attn.", "attention.branch.").replace("mlp.", "feed_forward.branch.")
    after = "attention.output_norm" if placement == "olmo2" else "feed_forward.input_norm"
    renamed = {**NAMES, "post_attention_layernorm": after}
    return ".".join(renamed.get(part, part) for part in name.split("."))


def compare_dense(
    placement: str,
    config: type,
    cls: type[PreTrainedModel],
    device: torch.device,
    tolerance: float,
) -> None:
    """Logits and gradients of both agree."""
    torch.manual_seed(0)
    extra = {"head_dim": 16} if cls is Qwen3ForCausalLM else {}
    rope = {"rope_theta": 10_000.0, "rope_type": "default"}
    theirs = cls(config(**SHAPE, **extra, rope_parameters=rope, attn_implementation="eager"))
    for parameter in theirs.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5)
    ours = Transformer(
        ModelConfig(
            placement=placement, d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=96,
            vocab_size=80, vocab_multiple_of=1, tie_embeddings=False, rope_theta=10_000.0,
        )
    )  # fmt: skip
    renamed = {our_name(n, placement): t for n, t in theirs.named_parameters()}
    ours.load_state_dict({n: t.detach() for n, t in renamed.items()})
    ours.to(device)
    theirs.to(device)
    ids = IDS.to(device)
    expected = theirs(ids, use_cache=False).logits
    logits = ours(ids)
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    F.cross_entropy(expected.flatten(0, 1), ids.flatten()).backward()
    F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    for name, parameter in ours.named_parameters():
        gap = (parameter.grad - renamed[name].grad).norm() / renamed[name].grad.norm()
        assert gap < tolerance, name
