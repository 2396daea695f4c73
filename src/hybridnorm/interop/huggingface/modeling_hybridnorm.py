"""HybridNorm language models for `transformers`: any placement of norms, read as data.

A sublayer F (attention or feed-forward) of a block is a function of the stream x, and of x_block,
the stream at the block's entry:

    n  = input_norm(x)                                   # or x
    b  = output_norm(F(input_scale * n))                 # or the bare branch
    r  = {raw: x, normed: n, block_input: x_block, raw+block_input: x + x_block}[skip]
    x' = post_norm(skip_scale * r + branch_scale * b)    # or the bare sum

In a parallel block both sublayers read x_block, or shared_norm(x_block), in place of x in the
first line. `config.placement` holds these fields for each kind of block. Beside them, attention has
q_norm, k_norm, v_norm (before the rotary embedding and the cache) and context_norm (before o_proj),
and the feed-forward network has mid_norm (on its hidden activation). A gated norm multiplies its
result y by sigmoid(W_up silu(W_down y)); an output_gate multiplies what o_proj reads by one of the
branch's input. A block that leaks passes x' - silu(g) * stop_gradient(x') on after both sublayers.
What is null or left out is absent.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.olmo2 import modeling_olmo2 as olmo2  # rotates in float32
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_hybridnorm import HybridNormConfig
from .norms_hybridnorm import (
    STD,
    HybridNormGains,
    HybridNormLeak,
    Spec,
    build,
    build_head_norm,
    linear,
)

# transformers 5.24 renamed it.
_MASK = inspect.signature(create_causal_mask).parameters
CACHE = "cache" if "cache" in _MASK else "past_key_values"


def build_linear(config: HybridNormConfig, name: str, layer: int, d: int, out: int) -> nn.Linear:
    return linear(d, out, config.standard_deviation(name, layer))


class HybridNormResidual(nn.Module):
    """The norms, scales and skip around one sublayer."""

    def __init__(self, spec: Spec, dim: int) -> None:
        super().__init__()
        self.skip = spec["skip"]
        norms = (build(spec[f"{place}_norm"], dim) for place in ("input", "output", "post"))
        self.input_norm, self.output_norm, self.post_norm = norms
        scales = (build(spec[f"{place}_scale"], dim) for place in ("input", "skip", "branch"))
        self.input_scale, self.skip_scale, self.branch_scale = scales

    def forward(self, branch: Tensor, stream: Tensor, normed: Tensor, entry: Tensor) -> Tensor:
        """The stream after a sublayer that read `input_scale(normed)` and gave `branch`."""
        carried = {"raw": stream, "normed": normed, "block_input": entry}.get(self.skip)
        carried = stream + entry if carried is None else carried  # raw+block_input
        branch = self.branch_scale(self.output_norm(branch))
        return self.post_norm(self.skip_scale(carried) + branch)


class HybridNormAttention(nn.Module):
    def __init__(self, config: HybridNormConfig, spec: Spec, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        dim, head_dim = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.scaling, self.is_causal = head_dim, head_dim**-0.5, True
        self.num_key_value_groups = heads // kv_heads
        self.q_proj = build_linear(config, "q_proj", layer_idx, dim, heads * head_dim)
        self.k_proj = build_linear(config, "k_proj", layer_idx, dim, kv_heads * head_dim)
        self.v_proj = build_linear(config, "v_proj", layer_idx, dim, kv_heads * head_dim)
        self.o_proj = build_linear(config, "o_proj", layer_idx, heads * head_dim, dim)
        width = {"head": heads, "element": dim}.get(spec.get("output_gate", ""), 0)
        self.gate_proj = build_linear(config, "gate_proj", layer_idx, dim, width) if width else None
        self.q_norm = build_head_norm(spec["q_norm"], heads, head_dim)
        self.k_norm = build_head_norm(spec["k_norm"], kv_heads, head_dim)
        self.v_norm = build_head_norm(spec["v_norm"], kv_heads, head_dim)
        self.context_norm = build_head_norm(spec["context_norm"], heads, head_dim)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(shape)).transpose(1, 2)
        key = self.k_norm(self.k_proj(hidden_states).view(shape)).transpose(1, 2)
        value = self.v_norm(self.v_proj(hidden_states).view(shape)).transpose(1, 2)
        query, key = olmo2.apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        name, kwargs["scaling"] = self.config._attn_implementation, self.scaling
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, olmo2.eager_attention_forward)
        context, weights = attend(self, query, key, value, attention_mask, dropout=0.0, **kwargs)
        context = self.context_norm(context.reshape(shape))
        if self.gate_proj is not None:
            gate = self.gate_proj(hidden_states).unflatten(-1, (context.shape[-2], -1))
            context = context * gate.sigmoid()
        return self.o_proj(context.flatten(-2)), weights


class HybridNormMLP(nn.Module):
    def __init__(self, config: HybridNormConfig, spec: Spec, layer: int, width: int = 0) -> None:
        super().__init__()
        dim, gated, width = config.hidden_size, config.gated_mlp, width or config.intermediate_size
        self.gate_proj = build_linear(config, "gate_proj", layer, dim, width) if gated else None
        self.up_proj = build_linear(config, "up_proj", layer, dim, width)
        self.down_proj = build_linear(config, "down_proj", layer, width, dim)
        self.mid_norm = build(spec["mid_norm"], width)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        up = self.up_proj(hidden_states)
        gate = self.gate_proj
        hidden = self.act_fn(up) if gate is None else self.act_fn(gate(hidden_states)) * up
        return self.down_proj(self.mid_norm(hidden))


class HybridNormRouter(nn.Module):
    def __init__(self, config: HybridNormConfig, layer_idx: int) -> None:
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        setattr(self, STD, config.standard_deviation("router", layer_idx))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and the weights and numbers of the chosen experts, `(tokens, top_k)`."""
        logits = F.linear(hidden_states, self.weight)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        weights, experts = F.softmax(logits, dim=-1, dtype=dtype).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights.to(hidden_states.dtype), experts


@use_experts_implementation
class HybridNormExperts(nn.Module):
    """SwiGLU networks, all in two tensors; `mid_norm` is theirs together."""

    def __init__(self, config: HybridNormConfig, spec: Spec, layer_idx: int) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        dim, width = config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * width, dim))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, dim, width))
        self.mid_norm = build(spec["mid_norm"], width)
        self.act_fn = ACT2FN[config.hidden_act]
        names = ("gate_proj", "up_proj", "down_proj")
        self.initial_stds = [config.standard_deviation(name, layer_idx) for name in names]

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.mid_norm(self.act_fn(gate) * up)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for expert in set(top_k_index.flatten().tolist()):
            token, slot = torch.where(top_k_index == expert)
            gate_up = F.linear(hidden_states[token], self.gate_up_proj[expert])
            expert_out = F.linear(self._apply_gate(gate_up), self.down_proj[expert])
            out.index_add_(0, token, expert_out * top_k_weights[token, slot, None])
        return out


class HybridNormSparseMoeBlock(nn.Module):
    def __init__(self, config: HybridNormConfig, spec: Spec, layer_idx: int) -> None:
        super().__init__()
        self.gate = HybridNormRouter(config, layer_idx)
        self.experts = HybridNormExperts(config, spec, layer_idx)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = HybridNormMLP(config, spec, layer_idx, width) if width else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        tokens = hidden_states.flatten(0, -2)
        _, weights, chosen = self.gate(tokens)
        routed = self.experts(tokens, chosen, weights).view_as(hidden_states)
        shared = self.shared_experts
        return routed if shared is None else shared(hidden_states) + routed


class HybridNormDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: HybridNormConfig, layer_idx: int) -> None:
        super().__init__()
        spec = config.placement["kinds"][config.placement["layers"][layer_idx]]
        self.is_parallel = spec.get("parallel", False)
        self.shared_norm = build(spec.get("shared_norm"), config.hidden_size)
        self.leak = HybridNormLeak() if spec.get("leak") else nn.Identity()
        self.attention_residual = HybridNormResidual(spec["attention"], config.hidden_size)
        self.self_attn = HybridNormAttention(config, spec["attention"], layer_idx)
        self.feed_forward_residual = HybridNormResidual(spec["feed_forward"], config.hidden_size)
        network = HybridNormSparseMoeBlock if spec["experts"] else HybridNormMLP
        self.mlp = network(config, spec["feed_forward"], layer_idx)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        around = self.attention_residual
        entry = stream = hidden_states
        read = self.shared_norm(stream)
        normed = around.input_norm(read)
        branch, _ = self.self_attn(around.input_scale(normed), **kwargs)
        stream = self.leak(around(branch, stream, normed, entry))

        around = self.feed_forward_residual
        normed = around.input_norm(read if self.is_parallel else stream)
        branch = self.mlp(around.input_scale(normed))
        return self.leak(around(branch, stream, normed, entry))


class HybridNormPreTrainedModel(PreTrainedModel):
    config_class = HybridNormConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HybridNormDecoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": HybridNormDecoderLayer,
        "attentions": HybridNormAttention,
        "router_logits": OutputRecorder(HybridNormRouter, index=0),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, HybridNormGains):
            for name, value in module.initial.items():
                init.constant_(getattr(module, name), value)
        elif isinstance(module, HybridNormExperts):
            *halves, down = module.initial_stds
            # The halves of a tensor do not know whether it was loaded.
            if not getattr(module.gate_up_proj, "_is_hf_initialized", False):
                for weight, std in zip(module.gate_up_proj.chunk(2, dim=1), halves, strict=True):
                    _truncated_normal(weight, std)
            _truncated_normal(module.down_proj, down)
        elif hasattr(module, STD):
            std = getattr(module, STD)
            std = self.config.standard_deviation(std) if isinstance(std, str) else std
            _truncated_normal(module.get_parameter("weight"), std)
        else:
            super()._init_weights(module)


def _truncated_normal(weight: Tensor, std: float) -> None:
    init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std) if std else init.zeros_(weight)


class HybridNormModel(HybridNormPreTrainedModel):
    def __init__(self, config: HybridNormConfig) -> None:
        super().__init__(config)
        dim, placement, layers = config.hidden_size, config.placement, config.num_hidden_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, dim)
        setattr(self.embed_tokens, STD, config.standard_deviation("embed_tokens"))
        self.embed_scale = build(placement["embed_scale"], dim)
        self.embed_norm = build(placement["embed_norm"], dim)
        self.layers = nn.ModuleList(HybridNormDecoderLayer(config, n) for n in range(layers))
        self.norm = build(placement["final_norm"], dim)
        self.rotary_emb = olmo2.Olmo2RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """`inputs_embeds` stand for what `embed_tokens` gives: the scale and norm come after."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        inputs_embeds = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if self.gradient_checkpointing and self.training:
            cache = None  # the second forward pass would write it again
        elif use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
            position_ids = (positions + seen).unsqueeze(0)
        kwargs |= {"position_ids": position_ids, "cache": cache}
        kwargs["attention_mask"] = create_causal_mask(
            self.config, inputs_embeds, attention_mask, position_ids=position_ids, **{CACHE: cache}
        )
        kwargs["position_embeddings"] = self.rotary_emb(inputs_embeds, position_ids)
        hidden_states = self.embed_norm(self.embed_scale(inputs_embeds))
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(hidden_states, **kwargs)
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE: cache})


class HybridNormForCausalLM(HybridNormPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: HybridNormConfig) -> None:
        super().__init__(config)
        self.model = HybridNormModel(config)
        std = config.standard_deviation("lm_head")
        self.lm_head = linear(config.hidden_size, config.vocab_size, std)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits, and with `labels` (-100 where there is none) the mean loss of the next token."""
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        cache = past_key_values if cache is None else cache
        kwargs |= {"output_router_logits": output_router_logits, "use_cache": use_cache}
        outputs: MoeModelOutputWithPast = self.model(
            input_ids, attention_mask, position_ids, cache, inputs_embeds, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = aux_loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        if output_router_logits and outputs.router_logits:
            aux_loss = self._router_loss(outputs.router_logits, attention_mask)
            loss = None if loss is None else loss + aux_loss.to(loss.device)
        names = ("hidden_states", "attentions", "router_logits", CACHE)
        passed = {name: getattr(outputs, name) for name in names}
        return MoeCausalLMOutputWithPast(loss=loss, aux_loss=aux_loss, logits=logits, **passed)

    def _router_loss(self, router_logits: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        """Load balance (1 if balanced) and z-loss, weighted, means over the layers."""
        config = self.config
        logits = torch.stack(router_logits).float()  # (layers, tokens, experts)
        if mask is not None and mask.dim() == 2:
            logits = logits[:, mask.flatten().bool()]
        probabilities = logits.softmax(-1)
        chosen = probabilities.topk(config.num_experts_per_tok, dim=-1).indices
        share = F.one_hot(chosen, config.num_experts).float().mean((1, 2))
        balance = (share * probabilities.mean(1)).sum(-1).mean() * config.num_experts
        z = logits.logsumexp(-1).square().mean()
        return config.router_aux_loss_coef * balance + config.router_z_loss_coef * z


__all__ = ["HybridNormForCausalLM", "HybridNormModel", "HybridNormPreTrainedModel"]
