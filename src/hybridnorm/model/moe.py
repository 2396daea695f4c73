"""Mixture of experts: every token is sent to the few feed-forward networks its router chooses.

Token choice, dropless (no expert has a capacity), as in OLMoE (arXiv 2409.02060).

Shape suffixes: N tokens, K chosen experts per token, R = N * K rows, E experts, D d_model,
F width of an expert.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels import GroupedLinear, at_least_float32
from hybridnorm.model.layers import FeedForward
from hybridnorm.model.linear import Linear
from hybridnorm.model.norms import NormBuilder
from hybridnorm.placements import FeedForwardSpec


class Routing(NamedTuple):
    """What a router did with the tokens of a batch; of several layers, stacked in front."""

    counts: Tensor
    """Tokens sent to each expert `(n_experts,)`; a number of the batch, without a gradient."""
    probabilities: Tensor
    """Mean probability of each expert `(n_experts,)`."""
    z: Tensor
    """Mean of log(sum(exp(logits)))^2: what the router z-loss weighs (ST-MoE, arXiv 2202.08906)."""
    entropy: Tensor
    """Mean entropy of the probabilities in nats, without a gradient."""


def load_balance(routing: Routing) -> Tensor:
    """E * sum of (share of the assignments) * (mean probability) over the experts; 1 if balanced.

    Switch Transformer (arXiv 2101.03961), eq. 4; the mean over layers, as OLMoE takes it.
    """
    share = routing.counts / routing.counts.sum(-1, keepdim=True)
    return (share * routing.probabilities).sum(-1).mean() * share.shape[-1]


class _Sorted(torch.autograd.Function):
    """Rows of which each is taken `copies` times, in another order.

    Backward, a row collects its copies' gradients. Autograd's own way scatters them: on a GPU with
    atomic additions, which are slow, and in an order that changes from run to run.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_R: Tensor, place_R: Tensor, copies: int) -> Tensor:
        """Row r of the result is copy `order_R[r]` of `(rows * copies, width)`.

        Args:
            place_R: the inverse of `order_R`.
        """
        ctx.save_for_backward(place_R)
        ctx.copies = copies
        return x_ND.index_select(0, order_R // copies)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None, None]:
        (place_R,) = ctx.saved_tensors
        grad_NKD = torch.unflatten(grad_RD.index_select(0, place_R), 0, (-1, ctx.copies))
        return grad_NKD.sum(1), None, None, None


def _sorted(x_ND: Tensor, order_R: Tensor, place_R: Tensor, copies: int) -> Tensor:
    return _Sorted.apply(x_ND, order_R, place_R, copies)  # type: ignore[no-any-return, no-untyped-call]


class MoE(nn.Module):
    """SwiGLU experts behind a router, and a shared expert that takes every token.

    A `mid_norm` acts on the hidden activation of each expert; the experts share its gain, which
    loses nothing, since each has a down projection of its own after it.
    """

    def __init__(self, config: ModelConfig, spec: FeedForwardSpec, build: NormBuilder) -> None:
        super().__init__()
        d_model, n_experts, width = config.d_model, config.n_experts, config.expert_width
        self.top_k, self.norm_topk_prob = config.top_k, config.norm_topk_prob
        self.router = Linear(d_model, n_experts)
        self.gate_proj = GroupedLinear(n_experts, d_model, width)
        self.up_proj = GroupedLinear(n_experts, d_model, width)
        self.down_proj = GroupedLinear(n_experts, width, d_model)
        self.mid_norm = build.norm(spec.mid_norm, width)
        self.shared = None
        if config.n_shared_experts:
            wide = replace(config, d_ff=config.n_shared_experts * width, d_expert=width)
            self.shared = FeedForward(wide, spec, build)

    def forward(self, x_BTD: Tensor, routings: list[Routing]) -> Tensor:
        """The stream `(batch, seq, d_model)` to what the experts add; appends to `routings`."""
        x_ND = x_BTD.flatten(0, -2)
        weights_NK, experts_NK, routing = self._route(x_ND)
        routings.append(routing)
        ends_E = routing.counts.cumsum(0).int()
        order_R = experts_NK.flatten().argsort(stable=True)
        place_R = order_R.argsort()
        x_RD = _sorted(x_ND, order_R, place_R, self.top_k)
        hidden_RF = F.silu(self.gate_proj(x_RD, ends_E)) * self.up_proj(x_RD, ends_E)
        out_RD = self.down_proj(self.mid_norm(hidden_RF), ends_E)
        out_NKD = torch.unflatten(_sorted(out_RD, place_R, order_R, 1), 0, experts_NK.shape)
        weighted_NKD = out_NKD * weights_NK[..., None].to(out_NKD.dtype)
        routed_BTD = weighted_NKD.sum(1).view_as(x_BTD)
        return routed_BTD if self.shared is None else self.shared(x_BTD) + routed_BTD

    def _route(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """Weights and numbers of the chosen experts, both `(tokens, top_k)`."""
        logits_NE = at_least_float32(self.router(x_ND))
        log_probs_NE = logits_NE.log_softmax(-1)
        probs_NE = log_probs_NE.exp()
        weights_NK, experts_NK = probs_NE.topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        chosen_R = experts_NK.flatten()
        ones_R = probs_NE.new_ones(len(chosen_R))
        counts_E = probs_NE.new_zeros(probs_NE.shape[1]).scatter_add(0, chosen_R, ones_R)
        entropy = -(probs_NE * log_probs_NE).detach().sum(-1).mean()
        z = logits_NE.logsumexp(-1).square().mean()
        return weights_NK, experts_NK, Routing(counts_E, probs_NE.mean(0), z, entropy)
