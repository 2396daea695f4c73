"""What blocks are given: the example inputs, or what a model gives three blocks of its own."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hybridnorm.diagnose.classifier.norms import FoundNorm, probe_module
from hybridnorm.errors import HybridNormError, in_a_line

Inputs = Tensor | tuple[Any, ...] | dict[str, Any] | None


@dataclass
class Block:
    """A block and how to call it: `block(x, *args, **kwargs)`."""

    module: nn.Module
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layer: int
    n_layers: int


@dataclass
class Captured:
    """The blocks of a module, and the norms around them."""

    blocks: list[Block]
    of_model: bool
    embed_norm: FoundNorm | None = None
    final_norm: FoundNorm | None = None


@dataclass
class _Watched:
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    calls: int = 0


def capture(module: nn.Module, example_inputs: Inputs) -> Captured:
    """A block alone, or three blocks of a model that was run once.

    Raises:
        HybridNormError: the module does not run on its example inputs, or on guessed ones.
    """
    module = copy.deepcopy(module).float().eval()
    given = _guessed(module) if example_inputs is None else [example_inputs]
    problem = ""
    for inputs in given:
        args, kwargs = _as_call(inputs)
        try:
            watched = _run(module, args, kwargs)
        except Exception as error:  # the module's own
            problem = problem or in_a_line(error)
            continue
        blocks = _stack(module, watched)
        if blocks:
            return _of_model(module, watched, blocks)
        return Captured([_block(module, args, kwargs, 0, 1)], of_model=False)
    raise HybridNormError(f"example_inputs: the module does not run on them: {problem}")


def _as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = tree_map(_as_float, inputs)
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _as_float(value: Any) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.float() if is_float else value


def _guessed(module: nn.Module) -> Iterator[Inputs]:
    """Token ids for what has an embedding; else a stream of a width that its weights have."""
    generator = torch.Generator().manual_seed(0)
    embeddings = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    if embeddings:
        yield torch.randint(embeddings[0].num_embeddings, (2, 8), generator=generator)
    sizes = Counter(size for p in module.parameters() for size in p.shape)
    for width, _ in sizes.most_common(8):
        yield torch.randn(2, 8, width, generator=generator)
    raise HybridNormError("example_inputs: none of the module's widths fits it; pass some")


@torch.no_grad()
def _run(module: nn.Module, args: Any, kwargs: Any) -> dict[nn.Module, _Watched]:
    """Run the module once and note what its parts were given."""
    watched: dict[nn.Module, _Watched] = {}

    def enter(part: nn.Module, args: Any, kwargs: Any) -> None:
        found = watched.setdefault(part, _Watched(args, dict(kwargs)))
        found.calls += 1

    def leave(part: nn.Module, args: Any, output: Any) -> None:
        watched[part].output = output

    handles = [p.register_forward_pre_hook(enter, with_kwargs=True) for p in module.modules()]
    handles += [p.register_forward_hook(leave) for p in module.modules()]
    try:
        module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return watched


def _stack(module: nn.Module, watched: dict[nn.Module, _Watched]) -> list[nn.Module]:
    """The blocks of a model: the first list of modules of one class, each from stream to stream."""
    for part in module.modules():
        if not isinstance(part, nn.ModuleList) or len(part) < 2:
            continue
        alike = len({type(block) for block in part}) == 1
        if alike and all(block in watched and _keeps_shape(watched[block]) for block in part):
            return [*part]
    return []


def _keeps_shape(call: _Watched) -> bool:
    entry = _first_float((call.args, call.kwargs))
    if call.calls != 1 or entry is None or entry.ndim != 3:
        return False
    return any(isinstance(t, Tensor) and t.shape == entry.shape for t in tree_leaves(call.output))


def _of_model(
    module: nn.Module, watched: dict[nn.Module, _Watched], blocks: list[nn.Module]
) -> Captured:
    n_layers = len(blocks)
    layers = sorted({0, n_layers // 2, n_layers - 1})
    found = [
        _block(blocks[i], watched[blocks[i]].args, watched[blocks[i]].kwargs, i, n_layers)
        for i in layers
    ]
    first = _first_float((watched[blocks[0]].args, watched[blocks[0]].kwargs))
    last = _first_float(watched[blocks[-1]].output)
    captured = Captured(found, of_model=True)
    inside = {part for block in blocks for part in block.modules()}
    for name, part in module.named_modules():
        if part in inside or part not in watched or list(part.children()):
            continue
        entry, output = _first_float(watched[part].args), watched[part].output
        if entry is None or not isinstance(output, Tensor) or output.shape != entry.shape:
            continue
        norm = probe_module(name, part, entry)
        if norm and _same(entry, last):
            captured.final_norm = norm
        elif norm and _same(output, first):
            captured.embed_norm = norm
    return captured


def _block(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int, n_layers: int
) -> Block:
    # A cache has seen these inputs already.
    args = tuple(None if hasattr(value, "get_seq_length") else value for value in args)
    kwargs = {n: v for n, v in kwargs.items() if not hasattr(v, "get_seq_length")}
    if args:
        x, args = args[0], args[1:]
    else:
        name = next((n for n, v in kwargs.items() if _first_float(v) is not None), None)
        if name is None:
            raise HybridNormError("example_inputs: no stream is among them, a tensor of numbers")
        x = kwargs.pop(name)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise HybridNormError("example_inputs: a block's first input is its stream, of numbers")
    # Its own noise, of rows of different size: a model's own stream may be too small for its eps.
    generator = torch.Generator().manual_seed(0)
    rows = 0.5 + 1.5 * torch.rand(*x.shape[:-1], 1, generator=generator)
    noise = (rows * torch.randn(x.shape, generator=generator)).to(x.device)
    return Block(module, noise, args, kwargs, layer, n_layers)


def _first_float(values: Any) -> Tensor | None:
    leaves = tree_leaves(values)
    return next((t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()), None)


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)
