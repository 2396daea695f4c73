"""One block for all placements: two residual sublayers that read their specs."""

from typing import Any

from torch import Tensor, nn

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.kernels import Mask
from hybridnorm.model.layers import Attention, FeedForward, KVCache, Rope
from hybridnorm.model.moe import MoE, Routing
from hybridnorm.model.norms import Leak, NormBuilder
from hybridnorm.placements import BlockSpec, Sublayer


class Residual(nn.Module):
    """A branch (attention or feed-forward) with the norms, scales and skip around it.

    What the branch adds to the stream is the output of `branch_scale`: hook that, not `branch`.
    """

    def __init__(self, branch: nn.Module, spec: Sublayer, build: NormBuilder) -> None:
        super().__init__()
        self.skip = spec.skip
        self.input_norm = build.norm(spec.input_norm)
        self.input_scale = build.scale(spec.input_scale)
        self.branch = branch
        self.output_norm = build.norm(spec.output_norm)
        self.skip_scale = build.scale(spec.skip_scale)
        self.branch_scale = build.scale(spec.branch_scale)
        self.post_norm = build.norm(spec.post_norm)

    def forward(self, x: Tensor, x_block: Tensor, read: Tensor, **inputs: Any) -> Tensor:
        """Streams `(batch, seq, d_model)` in and out; `inputs` go to the branch.

        `read` is x, or what both branches of a parallel block read.
        """
        n = self.input_norm(read)
        b = self.output_norm(self.branch(self.input_scale(n), **inputs))
        match self.skip:
            case "raw":
                r = x
            case "normed":
                r = n
            case "block_input":
                r = x_block
            case "raw+block_input":
                r = x + x_block
        return self.post_norm(self.skip_scale(r) + self.branch_scale(b))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward (or experts), each around the residual stream."""

    def __init__(self, config: ModelConfig, spec: BlockSpec, build: NormBuilder) -> None:
        super().__init__()
        attention = Attention(config, spec.attention, build)
        self.has_experts = config.has_experts(build.layer)
        network = MoE if self.has_experts else FeedForward
        feed_forward = network(config, spec.feed_forward, build)
        self.is_parallel = spec.topology == "parallel"
        self.shared_norm = build.norm(spec.shared_norm)
        self.leak = Leak() if spec.leak else nn.Identity()
        self.attention = Residual(attention, spec.attention, build)
        self.feed_forward = Residual(feed_forward, spec.feed_forward, build)

    def forward(
        self,
        x_BTD: Tensor,
        rope: Rope,
        cache: KVCache | None = None,
        mask: Mask | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """The stream `(batch, seq, d_model)`, and what the router did, if there is one."""
        routings: list[Routing] = []
        extra = {"routings": routings} if self.has_experts else {}
        n_BTD = self.shared_norm(x_BTD)
        y_BTD = self.leak(self.attention(x_BTD, x_BTD, n_BTD, rope=rope, cache=cache, mask=mask))
        read_BTD = n_BTD if self.is_parallel else y_BTD
        return self.leak(self.feed_forward(y_BTD, x_BTD, read_BTD, **extra)), routings
