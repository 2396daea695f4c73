"""Whether a kernel has to be a plain formula."""

import torch


def transformed() -> bool:
    """Whether torch.func (vmap, grad) is at work: it sees through formulas, not through kernels."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
