"""AdamW over the paper's decay groups."""

import torch
from torch import nn

from hybridnorm.train.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Fused AdamW; matrices are decayed, norms and embeddings as the config says."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decay = config.weight_decay if is_decayed(name, parameter, config) else 0.0
        groups.setdefault(decay, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "weight_decay": decay} for decay, members in groups.items()],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def is_decayed(name: str, parameter: nn.Parameter, config: OptimizerConfig) -> bool:
    """Whether weight decay applies to the parameter called `name`."""
    if name.startswith("embedding."):
        return config.decay_embeddings
    return config.decay_norms if parameter.ndim < 2 else True
