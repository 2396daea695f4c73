"""Where a non-finite value first appears, and what to do about it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hybridnorm.errors import HybridNormError
from hybridnorm.model.transformer import Transformer


class DivergedError(HybridNormError):
    """Training cannot go on: the loss is not finite."""


def first_nonfinite(model: Transformer, input_ids: Tensor) -> str:
    """The first module, in the order of the forward pass, with a non-finite weight or output.

    Runs the forward pass once more on `input_ids` `(batch, seq)`.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name}"
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        with torch.no_grad():
            logits = model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of {found[0]}"
    return "the loss" if torch.isfinite(logits).all() else "the logits"


def diverged(model: Transformer, input_ids: Tensor, step: int, loss: float) -> DivergedError:
    """The one line that says when, where and what to do."""
    word = "nan" if math.isnan(loss) else "infinite"
    return DivergedError(
        f"step {step}: the loss is {word}; first non-finite value in "
        f"{first_nonfinite(model, input_ids)}. Lower optimizer.lr, raise schedule.warmup_steps, or "
        "try model.init megatron; the weights and the last checkpoint are as before this step"
    )
