"""In which dtype statistics are taken."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Low-precision tensors as float32; float64 keeps its precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
