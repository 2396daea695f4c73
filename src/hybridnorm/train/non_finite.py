"""Steps that are not finite: skipped, counted, and diagnosed when there are too many in a row."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hybridnorm.errors import HybridNormError
from hybridnorm.model import Transformer
from hybridnorm.train.batches import Batch
from hybridnorm.train.world import World

_WEIGHT = "the weight "


class DivergedError(HybridNormError):
    """Training cannot go on: step after step is not finite."""


class SkipGuard:
    """Counts skipped steps; `limit` of them in a row are fatal."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total, self.in_row = limit, 0, 0

    def is_fatal(self, grad_norm: float, *, last: bool) -> bool:
        """Take note of a step's gradient norm; whether the run of skipped steps is too long.

        Of the last step, one is: a run that ends in skipped steps has not trained to its end.
        """
        if math.isfinite(grad_norm):
            self.in_row = 0
            return False
        self.total += 1
        self.in_row += 1
        return self.in_row >= (1 if last else self.limit)

    def diverged(
        self,
        model: Transformer,
        batch: Batch,
        step: int,
        loss: float,
        saved_at: int | None,
        world: World,
    ) -> DivergedError:
        """The one line that says when, where and what to do; all ranks must call it.

        Args:
            saved_at: the step of the last checkpoint.
        """
        found = world.gather(lambda: first_nonfinite(model, batch))
        where = next((place for place in found if place), "the gradient")
        what = "gradient is not finite" if math.isfinite(loss) else f"loss is {_word(loss)}"
        row = f" ({self.in_row} steps in a row)" if self.in_row > 1 else ""
        cause = "an earlier step did that" if where.startswith(_WEIGHT) else "no weight was touched"
        kept = "there is no checkpoint yet"
        if saved_at is not None:
            kept = f"the last checkpoint, of step {saved_at}, is intact"
        return DivergedError(
            f"step {step}: the {what}{row}; first non-finite value in {where}. "
            "Lower optimizer.lr, raise schedule.warmup_steps, or try model.init megatron; "
            f"{cause}, and {kept}"
        )


def all_finite(model: nn.Module, world: World) -> bool:
    """Whether every weight is, on all ranks, which must all call it."""
    flags = torch.stack([torch.isfinite(_local(p)).all() for p in model.parameters()])
    return not world.max(int(not flags.all()))


def first_nonfinite(model: Transformer, batch: Batch) -> str:
    """The first module, in the order of the forward pass, with a non-finite weight or output.

    Runs the forward pass once more; empty if everything in it is finite.
    """
    found = [
        f"{_WEIGHT}{name}"
        for name, parameter in model.named_parameters()
        if not torch.isfinite(_local(parameter)).all()
    ]

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(_local(output)).all():
                found.append(f"the output of {name}")

        return hook

    handles = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            logits = model(batch.input_ids, documents=batch.documents)
    finally:
        for handle in handles:
            handle.remove()
    if not found and not torch.isfinite(logits).all():
        return "the logits"
    return found[0] if found else ""


def _local(tensor: Tensor) -> Tensor:
    return getattr(tensor, "to_local", lambda: tensor)().detach()


def _word(loss: float) -> str:
    return "nan" if math.isnan(loss) else "infinite"
