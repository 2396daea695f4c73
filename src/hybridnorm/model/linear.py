"""The linear layer of all models."""

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """A bias-free linear layer whose float32 master weight is cast to its input's dtype.

    This is the whole precision policy: the activations' dtype decides, on every device.
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def reset_parameters(self) -> None:
        """Left empty: initialization.initialize draws all weights by name."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))
