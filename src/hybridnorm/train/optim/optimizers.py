"""Several torch optimizers driven as one, and a step that can be skipped."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Optimizers:
    """One or more torch optimizers, each with its own parameters."""

    def __init__(self, members: Iterable[torch.optim.Optimizer]) -> None:
        self.members = tuple(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all members; set `group["lr"]` of each to set the learning rate."""
        return [group for member in self.members for group in member.param_groups]

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for member in self.members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or fill them with zeros."""
        for member in self.members:
            member.zero_grad(set_to_none)


def step_unless(optimizer: Optimizers, skip: Tensor) -> None:
    """Step, unless `skip` (0-dimensional, on the parameters' device) is true or 1.

    A skipped step leaves weights, moments and step counts as they were. Where every member is
    fused AdamW the device decides and the host does not wait; otherwise `skip` is read, for which
    the host waits for the device.
    """
    if not all(map(_skips_on_device, optimizer.members)):
        if not skip.item():
            optimizer.step()
        return
    for member in optimizer.members:
        # What torch.amp.GradScaler sets: the fused kernels do nothing where it is 1.
        member.found_inf = skip.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        for member in optimizer.members:
            del member.found_inf  # type: ignore[attr-defined]


def _skips_on_device(member: torch.optim.Optimizer) -> bool:
    # Fused SGD reads found_inf, too, but leaves a first momentum uninitialized when it skips.
    return isinstance(member, torch.optim.AdamW) and bool(member.defaults["fused"])
