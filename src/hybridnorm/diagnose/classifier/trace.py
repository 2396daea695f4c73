"""One forward pass as a graph of operations with the values that they gave."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Call = tuple[str, nn.Module, "Node", "Node"]
"""A module without children that was called: its name, itself, what it read and gave."""


@dataclass(eq=False)
class Node:
    """A tensor: an operation's result, or an input of the block."""

    op: str
    value: Tensor
    operands: list["Node | Tensor"]
    """Of the operation: nodes, and the tensors that depend on no input (weights, constants)."""
    numbers: list[float]
    module: str
    index: int
    of_x: bool
    """Whether it depends on the stream; an integer (an expert's number) does not."""
    of_memory: bool
    """Whether it depends on another sequence of inputs."""

    @property
    def depends(self) -> bool:
        return self.of_x or self.of_memory

    @property
    def nodes(self) -> list["Node"]:
        """The operands that depend on an input."""
        return [o for o in self.operands if isinstance(o, Node) and o.depends]

    @property
    def constants(self) -> list[Tensor]:
        """The other operands."""
        return [
            o.value if isinstance(o, Node) else o
            for o in self.operands
            if not (isinstance(o, Node) and o.depends)
        ]


@dataclass
class Trace:
    """What a forward pass did."""

    x: Node
    output: Node | None
    nodes: list[Node] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    """Names of all modules that were called."""


class _Recorder(TorchDispatchMode):
    def __init__(self, replace: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.replace = replace
        self.nodes: list[Node] = []
        self.by_id: dict[int, Node] = {}
        self.kept: list[Any] = []  # no id is used again
        self.path: list[str] = [""]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        leaves = tree_leaves(args)
        before = {id(t): self.by_id.get(id(t)) for t in leaves if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        operands: list[Node | Tensor] = [
            before.get(id(t)) or t for t in leaves if isinstance(t, Tensor)
        ]
        numbers = [
            float(n) for n in leaves if isinstance(n, int | float) and not isinstance(n, bool)
        ]

        def record(out: Any) -> Any:
            if not isinstance(out, Tensor):
                return out
            change = self.replace.get(len(self.nodes))
            out = out if change is None else change(out)
            self.add(out, func.__name__.split(".")[0], operands, numbers)
            return out

        return tree_map(record, result)

    def add(
        self,
        out: Tensor,
        op: str,
        operands: list[Node | Tensor],
        numbers: list[float],
    ) -> Node:
        nodes = [o for o in operands if isinstance(o, Node)]
        is_float = out.is_floating_point() or out.is_complex()
        node = Node(
            op=op,
            value=out.detach().clone(),
            operands=operands,
            numbers=numbers,
            module=self.path[-1],
            index=len(self.nodes),
            of_x=is_float and any(n.of_x for n in nodes),
            of_memory=is_float and any(n.of_memory for n in nodes),
        )
        self.nodes.append(node)
        self.by_id[id(out)] = node
        self.kept.append(out)
        return node


def trace(
    block: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    replace: Mapping[int, Callable[[Tensor], Tensor]] | None = None,
) -> Trace:
    """Run `block(x, *args, **kwargs)` and record it.

    Args:
        replace: by a node's index, what becomes of its value.
    """
    recorder = _Recorder(replace or {})
    entry = recorder.add(x, "input", [], [])
    entry.of_x = True
    for other in tree_leaves((args, dict(kwargs))):
        if isinstance(other, Tensor) and id(other) not in recorder.by_id:
            node = recorder.add(other, "input", [], [])
            # Another sequence for attention, not the cosines of a rotary embedding or a mask.
            is_sequence = other.ndim == x.ndim and other.shape[-1] == x.shape[-1]
            node.of_memory = is_sequence and other.is_floating_point()
    found = Trace(entry, None)
    with _watched(block, recorder, found), torch.no_grad(), _slow_path(), recorder:
        output = block(x, *args, **kwargs)
    same = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.shape == x.shape]
    found.output = recorder.by_id.get(id(same[0])) if same else None
    found.nodes = recorder.nodes
    return found


@contextmanager
def _slow_path() -> Iterator[None]:
    """Without torch.nn's fused inference, which hides a whole layer in one operation."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _watched(block: nn.Module, recorder: _Recorder, found: Trace) -> Iterator[None]:
    """Record which modules were called, and what those without children read and gave."""
    reads: list[Any] = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            recorder.path.append(name)
            found.called.add(name)
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            reads.append(recorder.by_id.get(id(tensors[0])) if tensors else None)

        return hook

    def leave(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            recorder.path.pop()
            read = reads.pop()
            gave = recorder.by_id.get(id(output)) if isinstance(output, Tensor) else None
            if read and gave and not list(module.children()):
                found.calls.append((name, module, read, gave))

        return hook

    handles = []
    for name, module in block.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), with_kwargs=True))
        handles.append(module.register_forward_hook(leave(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
