"""Small things about tensors that several probes need."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor-parallel activation."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(parameter: Tensor) -> Tensor:
    """A parameter put together from the ranks, float32; every rank calls it."""
    full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return full.detach().float()


def rms(x: Tensor) -> Tensor:
    """Of the last dimension, in float32."""
    mean: Tensor = x.float().square().mean(-1)
    return mean.sqrt()


def norms(x: Tensor) -> Tensor:
    """Euclidean, of the last dimension, in float32."""
    return x.float().square().sum(-1).sqrt()
