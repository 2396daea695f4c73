"""Initial weights, drawn by parameter name.

`(seed, name) -> generator -> full tensor -> shard`: bit-equal on any number of ranks, and two
placements with the same seed share every weight they have in common, up to its scale.
"""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hybridnorm.model.config import ModelConfig
from hybridnorm.model.matrices import OUTPUTS
from hybridnorm.model.norms import Norm, Scale
from hybridnorm.placements import Placement

_CUTOFF = 3.0  # in standard deviations
_DEEPNORM = ("v_proj", "up_proj", *OUTPUTS)


def standard_deviation(config: ModelConfig, init: str, name: str) -> float:
    """The standard deviation of the weight matrix called `name` under scheme `init`.

    - normal: sigma everywhere.
    - megatron: W_o and FFN-down divided by sqrt(2L), an untied head 1/sqrt(d) (the authors'
      `full_megatron`).
    - depth-scaled: W_o and FFN-down of block l (from 1) divided by sqrt(2l) (paper, Table 5).
    - deepnorm, subln: normal, with v, o, up and down times (8L)^(-1/4) (arXiv 2203.00555),
      sqrt(ln 2L) (arXiv 2210.06423); the gate keeps sigma, as in torchscale.
    - tiny: 1/sqrt(2 d L), embedding 0.5 (arXiv 2504.07866).

    The second matrix of a norm's gate is zero in all.
    """
    sigma, n_layers = config.sigma, config.n_layers
    *path, matrix, _ = name.split(".")
    if matrix == "gate_up":
        return 0.0
    if init == "tiny":
        return 0.5 if matrix == "embedding" else 1 / math.sqrt(2 * config.d_model * n_layers)
    if init == "megatron" and matrix == "head":
        return 1 / math.sqrt(config.d_model)
    if init == "megatron" and matrix in OUTPUTS:
        return sigma / math.sqrt(2 * n_layers)
    if init == "depth-scaled" and matrix in OUTPUTS:
        return sigma / math.sqrt(2 * (int(path[1]) + 1))
    if init == "deepnorm" and matrix in _DEEPNORM:
        return sigma * math.pow(8 * n_layers, -0.25)
    if init == "subln" and matrix in _DEEPNORM:
        return sigma * math.sqrt(math.log(2 * n_layers))
    return sigma


def scheme(config: ModelConfig, placement: Placement) -> str:
    """The initialization in force: the configured one, or the placement's published one."""
    return placement.init if config.init == "published" else config.init


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, init: str, seed: int) -> None:
    """Fill every parameter of `model`, sharded (DTensor) or not, on any device.

    Args:
        init: the scheme that is in force (`scheme`).
    """
    for module in model.modules():
        if isinstance(module, Norm | Scale):
            module.reset_parameters()
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            std = standard_deviation(config, init, name)
            _assign(parameter, _truncated_normal(parameter.shape, std, seed, name))


def _truncated_normal(shape: torch.Size, std: float, seed: int, name: str) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    weight = torch.empty(shape)
    # Drawn with unit scale, so that two schemes differ in scale alone.
    nn.init.trunc_normal_(weight, a=-_CUTOFF, b=_CUTOFF, generator=generator)
    return weight.mul_(std)


def _assign(parameter: nn.Parameter, full: Tensor) -> None:
    if isinstance(parameter, DTensor):
        mesh, placements = parameter.device_mesh, parameter.placements
        shard = distribute_tensor(full.to(parameter.device), mesh, placements, src_data_rank=None)
        parameter.copy_(shard)
    else:
        parameter.copy_(full)
