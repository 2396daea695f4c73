"""An optimizer class by import path, with options from the recipe."""

import inspect
import math
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from hybridnorm.errors import HybridNormError, in_a_line, nearest
from hybridnorm.recipe import OptimizerConfig
from hybridnorm.train.import_path import import_class
from hybridnorm.train.optim.optimizers import Optimizers
from hybridnorm.train.optim.state import materialize, optimizer_state

Construct = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def imported_optimizer(config: OptimizerConfig) -> Construct:
    """What builds the optimizer at the import path `config.name` from parameter groups.

    Raises:
        HybridNormError: no such module or class, not an optimizer, a setting it does not take, or
            one that does not work by `step()` alone on matrices and vectors alike.
    """
    cls: Any = import_class(config.name, torch.optim.Optimizer, "optimizer.name")
    options = _parse(config.options)
    _check_settings(cls, config, options)
    if "weight_decay" in inspect.signature(cls).parameters:
        options["weight_decay"] = config.weight_decay
    construct = partial(cls, lr=config.lr, **options)
    _try_out(construct, config)
    return construct


def _parse(options: Sequence[str]) -> dict[str, Any]:
    """`("eps=1e-6", "nesterov=true")` as keyword arguments; arrays become tuples."""
    values: dict[str, Any] = {}
    for option in options:
        try:
            [(name, value)] = tomllib.loads(option).items()
        except ValueError:  # not TOML, or not one pair
            raise HybridNormError(
                f"optimizer.options: {option!r} is not name=value with a TOML value, such as "
                'eps=1e-6, nesterov=true or mode="fast"'
            ) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise HybridNormError(f"optimizer.options: {name} must be finite, got {value}")
        if name in values:
            raise HybridNormError(f"optimizer.options: {name} is given twice")
        values[name] = tuple(value) if isinstance(value, list) else value
    return values


def _check_settings(
    cls: Callable[..., torch.optim.Optimizer], config: OptimizerConfig, options: dict[str, Any]
) -> None:
    parameters = inspect.signature(cls).parameters
    known = [name for name in list(parameters)[1:] if name not in ("lr", "weight_decay")]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in options:
        if name in ("lr", "weight_decay"):
            raise HybridNormError(f"optimizer.options: set optimizer.{name} instead of {name}")
        if name not in known and not takes_any:
            hint = nearest(name, known)
            raise HybridNormError(f"optimizer.options: {config.name} takes no {name!r}; {hint}")
    if config.weight_decay and "weight_decay" not in parameters and not takes_any:
        raise HybridNormError(f"optimizer.weight_decay: {config.name} has none; set it to 0")


def _try_out(construct: Construct, config: OptimizerConfig) -> None:
    """Steps on a matrix and a vector, so that what cannot work fails before the run."""
    layer = nn.Linear(4, 4)
    groups = [
        {"params": [layer.weight], "weight_decay": config.weight_decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    try:
        optimizer = Optimizers([construct(groups)])
        materialize(optimizer)
        created = optimizer_state(layer, optimizer).keys()
        materialize(optimizer)
        if created != optimizer_state(layer, optimizer).keys():
            raise HybridNormError("its state is incomplete after the first step")
        if hasattr(optimizer.members[0], "eval"):
            raise HybridNormError("it wants other weights for evaluation than for training")
    except Exception as error:  # the class is the user's: anything can go wrong in it
        raise HybridNormError(
            f"optimizer.name: {config.name} cannot be used here: {in_a_line(error)}"
        ) from None
