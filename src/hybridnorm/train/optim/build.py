"""From a recipe to an optimizer: AdamW, Muon with AdamW, or any other by import path."""

from functools import partial
from typing import Any

import torch
from torch import nn

from hybridnorm.recipe import OptimizerConfig
from hybridnorm.train.optim.custom import Construct, imported_optimizer
from hybridnorm.train.optim.decay_groups import decay_groups
from hybridnorm.train.optim.optimizers import Optimizers


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimizer that `config` names, with one parameter group per decay group of `model`.

    Raises:
        HybridNormError: an import path that leads to no usable optimizer, or a wrong option.
    """
    by_optimizer: dict[str, list[dict[str, Any]]] = {}
    for group in decay_groups(model, config):
        members = {"params": list(group.members.values()), "weight_decay": group.weight_decay}
        by_optimizer.setdefault(group.optimizer, []).append(members)
    return Optimizers(_constructor(name, config)(groups) for name, groups in by_optimizer.items())


def _constructor(name: str, config: OptimizerConfig) -> Construct:
    match name:
        case "adamw":
            return partial(
                torch.optim.AdamW, lr=config.lr, betas=config.betas, eps=config.eps, fused=True
            )
        case "muon":
            # Updates with the root mean square of AdamW's, so that its learning rate carries over.
            return partial(
                torch.optim.Muon,
                lr=config.lr,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
    return imported_optimizer(config)
