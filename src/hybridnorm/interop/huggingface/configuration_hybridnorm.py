"""Configuration of a HybridNorm language model for `transformers`."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

from transformers import PreTrainedConfig

_TP_PLAN = {
    **{f"layers.*.self_attn.{name}_proj": "colwise" for name in ("q", "k", "v", "gate")},
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
_PP_PLAN = {
    "embed_tokens": (["input_ids"], ["inputs_embeds"]),
    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
    "norm": (["hidden_states"], ["hidden_states"]),
}

_SUBLAYERS = ("attention", "feed_forward")
_INNER_NORMS = ("q_norm", "k_norm", "v_norm", "context_norm", "mid_norm")


class HybridNormConfig(PreTrainedConfig):
    """Shape of a decoder-only transformer, and where each of its norms sits.

    Args:
        placement: the norms, scales and skips of every kind of block, as numbers:
            `{"kinds": [{"attention": {...}, "feed_forward": {...}, "experts": false}, ...],
            "layers": [0, 1, 1, ...], "embed_norm": ..., "embed_scale": ..., "final_norm": ...}`.
            `layers` names the kind of each block; modeling_hybridnorm.py explains the fields. The
            name of a placement, such as "hybridnorm-star", where the package hybridnorm is
            imported.
        gated_mlp: whether the feed-forward network has a gate (SwiGLU).
        num_experts: feed-forward networks of a block with experts; 0: there are none.
        moe_intermediate_size: width of an expert. None: `intermediate_size`.
        n_shared_experts: experts that take every token.
        initializer_range: standard deviation of the initial weights. None: 1/sqrt(2.5 hidden_size).
        initializer: standard deviations that differ from it, by the name of the matrix, one for
            all blocks or one for each.
        router_aux_loss_coef, router_z_loss_coef: weights of the routers' losses, which are added to
            the loss where `output_router_logits`.

    Raises:
        ValueError: the name of a placement, where nothing knows names.
    """

    model_type = "hybridnorm"
    keys_to_ignore_at_inference = ("past_key_values", "cache")
    resolve_name: ClassVar[Callable[["HybridNormConfig", str], None] | None] = None
    """Fills in what the name of a placement means; set by the package hybridnorm."""

    def __init__(
        self,
        placement: dict[str, Any] | str | None = None,
        vocab_size: int = 50_304,
        hidden_size: int = 768,
        intermediate_size: int = 2048,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_key_value_heads: int | None = None,
        hidden_act: str = "silu",
        gated_mlp: bool = True,
        num_experts: int = 0,
        num_experts_per_tok: int = 2,
        moe_intermediate_size: int | None = None,
        norm_topk_prob: bool = False,
        n_shared_experts: int = 0,
        moe_every: int = 1,
        output_router_logits: bool = False,
        router_aux_loss_coef: float = 0.01,
        router_z_loss_coef: float = 0.001,
        max_position_embeddings: int = 2048,
        rope_parameters: dict[str, Any] | None = None,
        rms_norm_eps: float = 1e-5,
        initializer_range: float | None = None,
        initializer: dict[str, float | list[float]] | None = None,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.gated_mlp = gated_mlp
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_intermediate_size = moe_intermediate_size or intermediate_size
        self.norm_topk_prob = norm_topk_prob
        self.n_shared_experts = n_shared_experts
        self.moe_every = moe_every
        self.output_router_logits = output_router_logits
        self.router_aux_loss_coef = router_aux_loss_coef
        self.router_z_loss_coef = router_z_loss_coef
        self.max_position_embeddings = max_position_embeddings
        self.rope_parameters = rope_parameters or {"rope_type": "default", "rope_theta": 500_000.0}
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range or 1 / math.sqrt(2.5 * hidden_size)
        self.initializer = initializer or {}
        self.use_cache = use_cache
        kwargs.pop("head_dim", None)  # follows from the others
        super().__init__(**kwargs)
        self.tie_word_embeddings = tie_word_embeddings
        self.bos_token_id, self.eos_token_id = bos_token_id, eos_token_id
        self.pad_token_id = pad_token_id
        self.placement: Any = placement
        if isinstance(placement, str):
            resolve = type(self).resolve_name
            if resolve is None:
                raise ValueError(
                    f"placement: {placement!r} is a name; `import hybridnorm.interop.huggingface` "
                    "knows what it means"
                )
            resolve(self, placement)
        if isinstance(self.placement, dict):
            self._plan_parallelism(self.placement)

    def standard_deviation(self, matrix: str, layer: int | None = None) -> float:
        """Of the initial weights of `matrix`, in block `layer` where it is of one."""
        found = self.initializer.get(matrix, self.initializer_range)
        return found[layer or 0] if isinstance(found, list) else found

    def _plan_parallelism(self, placement: dict[str, Any]) -> None:
        """Declare only what the norms allow: some need a whole row, some precede the blocks."""
        sublayers = [kind[name] for kind in placement["kinds"] for name in _SUBLAYERS]
        needs_rows = any(
            spec is not None and (name == "mid_norm" or spec["axis"] == "full")
            for sublayer in sublayers
            for name, spec in sublayer.items()
            if name in _INNER_NORMS
        )
        self.base_model_tp_plan = None if needs_rows else _TP_PLAN
        begins = placement["embed_norm"] or placement["embed_scale"]
        self.base_model_pp_plan = None if begins else _PP_PLAN


__all__ = ["HybridNormConfig"]
