"""One model on many ranks, applied from outside, in this order:

    tensor parallel -> activation checkpointing -> compile per block -> FSDP2

The model is single-device maths and knows of none of this, except that parameters may be DTensors.
"""

import warnings
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from hybridnorm.errors import HybridNormError
from hybridnorm.model.matrices import INPUTS, OUTPUTS
from hybridnorm.model.norms import FullWidthNorm, Norm, Scale
from hybridnorm.model.transformer import Transformer
from hybridnorm.placements import HEAD_NORMS

MESH_DIMENSIONS = ("replicate", "shard", "tensor")
Recompute = Literal["none", "selective", "full"]
_MATRIX_PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.hybridnorm.grouped_linear.default,
)


def parallelize(
    model: Transformer,
    mesh: DeviceMesh | None,
    *,
    recompute: Recompute = "none",
    compile_blocks: bool = False,
) -> None:
    """Lay the model (on the meta device, uninitialized) out over `mesh`, in place.

    Args:
        mesh: ranks with the dimensions `MESH_DIMENSIONS`; None for a single process.
        compile_blocks: through torch.compile, and the loss, too.
        recompute: what the backward pass computes again instead of keeping it: nothing, all but
            matrix products, or whole blocks.

    Raises:
        HybridNormError: the tensor-parallel degree does not divide the heads or `d_ff`, or the
            model has experts.
    """
    if mesh is not None and mesh["tensor"].size() > 1:
        shard_matrices(model, mesh["tensor"])
    model.compiled_loss = compile_blocks
    for block in model.blocks:
        if recompute != "none":
            _recompute(block, recompute)
        if compile_blocks:
            block.forward = torch.compile(block.forward)  # hooks of FSDP stay outside
    if mesh is not None:
        shard_data(model, mesh)


def shard_data(model: Transformer, mesh: DeviceMesh) -> None:
    """FSDP2, one unit per block; with copies (`replicate` > 1) HSDP."""
    dimensions = ("replicate", "shard") if mesh["replicate"].size() > 1 else ("shard",)
    low = model.dtype != torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=model.dtype if low else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the rotary embedding stays float32
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh[dimensions], mp_policy=policy)
    fully_shard(model, mesh=mesh[dimensions], mp_policy=policy)
    for method in ("loss", "losses", "row_losses", "logits_at", "next_logits"):
        register_fsdp_forward_method(model, method)


def shard_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Megatron's tensor parallelism: columns of q, k, v, up and gate; rows of W_o and FFN-down.

    A per-head norm works on its rank's heads; a norm over the full width of sharded activations
    (OLMo 2's q and k norms) sums its statistic over the ranks. Embedding, head and all norms of
    the stream are the same on every tensor rank.
    """
    # FSDP warns that a local tensor is a view; nothing here writes to one in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    config, degree = model.config, mesh.size()
    if config.n_experts:
        raise HybridNormError(
            "parallel.tensor: experts are not split over tensor-parallel ranks; use parallel.shard"
        )
    for name, size in (("n_kv_heads", config.kv_heads), ("d_ff", config.d_ff)):
        if size % degree:
            raise HybridNormError(
                f"parallel.tensor: {degree} ranks do not divide model.{name} {size}"
            )
    for block in model.blocks:
        parallelize_module(block, mesh, _plan(block))
    stream = (model.embedding, model.embed_scale, model.embed_norm, model.final_norm, model.head)
    for module in stream:
        if module is not None:
            parallelize_module(module, mesh, OnActivations(Replicate()))


def _plan(block: nn.Module) -> dict[str, ParallelStyle]:
    whole = PrepareModuleInput(
        input_layouts=(Replicate(),), desired_input_layouts=(Replicate(),), use_local_output=False
    )
    plan: dict[str, ParallelStyle] = {
        "attention.branch": whole,
        "feed_forward.branch": whole,
        "feed_forward.branch.mid_norm": OnActivations(Shard(-1), Shard(0)),
    }
    for name, module in block.named_modules():
        last = name.rpartition(".")[2]
        if last in INPUTS:
            plan[name] = ColwiseParallel()
        elif last in OUTPUTS:
            plan[name] = RowwiseParallel()
        elif isinstance(module, FullWidthNorm):
            plan[name] = OnActivations(Shard(2), Shard(0))
        elif isinstance(module, Norm) and last in HEAD_NORMS:
            plan[name] = OnActivations(Shard(2))
        elif isinstance(module, Norm | Scale) and "branch." not in name:
            plan[name] = OnActivations(Replicate())
    return plan


class OnActivations(ParallelStyle):
    """Runs a module on local tensors that are parts (or copies) of one activation.

    Args:
        activation: how the ranks' inputs and outputs make up the whole.
        vector: how a parameter as wide as the activation is laid out; shorter ones are copied.
    """

    def __init__(self, activation: Placement, vector: Placement | None = None) -> None:
        self.activation, self.vector = activation, vector or Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(
            module,
            device_mesh,
            self._distribute,
            self._distribute_input,
            self._local_output,  # type: ignore[arg-type]
        )

    def _distribute(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            placement = self.vector if parameter.numel() > 1 else Replicate()
            module.register_parameter(
                key, nn.Parameter(distribute_tensor(parameter, mesh, [placement]))
            )

    def _distribute_input(self, module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
        return DTensor.from_local(inputs[0], mesh, [self.activation], run_check=False)

    def _local_output(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
        local: Tensor = output.redistribute(placements=[self.activation]).to_local()
        return local


def _recompute(block: nn.Module, recompute: Recompute) -> None:
    options: dict[str, Any] = {"use_reentrant": False}
    if recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)
    block.forward = partial(checkpoint, block.forward, **options)


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operation in _MATRIX_PRODUCTS:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
