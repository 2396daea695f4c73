"""What an optimizer carries from step to step, as named tensors for checkpoints.

That is its state, and what a parameter group holds without being an argument of the optimizer (a
step count, an estimate). Tensors are themselves, so that loading fills them in place. What a
checkpoint cannot hold as it is (Python numbers, transposed or shared tensors) travels as a copy,
and `restore` puts it back.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridnorm.errors import HybridNormError
from hybridnorm.train.optim.optimizers import Optimizers


class _Entry(NamedTuple):
    """A tensor or number: `holder[key]`, called `name` in a checkpoint."""

    name: str
    holder: Any
    key: Any


def optimizer_state(model: nn.Module, optimizer: Optimizers) -> dict[str, Tensor]:
    """The state to save, or to load into, as `optimizer.<parameter>.<key>`.

    Raises:
        HybridNormError: the state holds something that is neither tensor, number, text nor a list
            or dict of these.
    """
    state: dict[str, Tensor] = {}
    seen = set[int]()
    for name, holder, key in _entries(model, optimizer):
        value = holder[key]
        if not isinstance(value, Tensor):
            state[name] = torch.tensor(value, dtype=torch.float64)
        elif id(value) in seen or not value.is_contiguous():
            state[name] = value.clone(memory_format=torch.contiguous_format)
        else:
            state[name] = value
            seen.add(id(value))
    return state


@torch.no_grad()
def materialize(optimizer: Optimizers) -> None:
    """Create the state, to be loaded into, by a step that leaves the weights as they were.

    Needs memory for gradients and for a copy of the weights.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    weights = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        # Ones, as some optimizers do nothing, and create nothing, where all gradients are zero.
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for parameter, weight in zip(parameters, weights, strict=True):
        parameter.copy_(weight)


@torch.no_grad()
def restore(model: nn.Module, optimizer: Optimizers, state: Mapping[str, Tensor]) -> None:
    """Put what `optimizer_state` had to copy back into the optimizer, once `state` is loaded."""
    for name, holder, key in _entries(model, optimizer):
        if isinstance(holder[key], Tensor):
            if holder[key] is not state[name]:
                holder[key].copy_(state[name])
        else:
            number = float(state[name])
            # A whole number stays what it is here: an int, a bool or a float.
            holder[key] = type(holder[key])(number) if number.is_integer() else number


def _entries(model: nn.Module, optimizer: Optimizers) -> Iterator[_Entry]:
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    for number, member in enumerate(optimizer.members):
        for parameter in member.state:
            name = names.get(parameter, parameter)  # or text, for what all parameters share
            yield from _walk(f"optimizer.{name}", member.state, parameter)
        arguments = _arguments(type(member))
        for index, group in enumerate(member.param_groups):
            for key in sorted(group.keys() - arguments):
                yield from _walk(f"optimizer.groups.{number}.{index}.{key}", group, key)


def _arguments(cls: type) -> set[str]:
    """The arguments of an optimizer and its bases: settings of the recipe, not state."""
    constructors = [vars(base)["__init__"] for base in cls.__mro__[:-1] if "__init__" in vars(base)]
    return {name for init in constructors for name in inspect.signature(init).parameters}


def _walk(name: str, holder: Any, key: Any) -> Iterator[_Entry]:
    match holder[key]:
        case Tensor() | bool() | int() | float():
            yield _Entry(name, holder, key)
        case dict() as inner:
            for inner_key in inner:
                yield from _walk(f"{name}.{inner_key}", inner, inner_key)
        case list() as items:
            for index in range(len(items)):
                yield from _walk(f"{name}.{index}", items, index)
        case None | str():
            pass
        case other:
            raise HybridNormError(
                f"its state holds a {type(other).__name__} ({name}), which no checkpoint can hold"
            )
