"""Where a trace's norms are, and the ways back from an operation that change no direction."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from hybridnorm.diagnose.classifier.norms import FoundNorm, fit_tensors, probe_module, with_gain
from hybridnorm.diagnose.classifier.trace import Node, Trace

_SAME = {
    *("view", "_unsafe_view", "reshape", "transpose", "permute", "t", "expand", "contiguous"),
    *("clone", "_to_copy", "detach", "alias", "unsqueeze", "squeeze", "slice", "select", "split"),
    *("split_with_sizes", "unbind", "chunk", "native_dropout", "lift_fresh", "lift_fresh_copy"),
    *("copy_", "copy", "_reshape_alias", "unsafe_split", "as_strided", "repeat", "movedim"),
}
_PRODUCTS = {
    *("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "convolution", "addbmm", "mv", "addmv"),
    *("_grouped_mm", "grouped_mm", "_addmm_activation", "einsum"),
}
_MULTIPLY = {"mul", "mul_", "div", "div_", "true_divide"}
_SUM = {"add", "add_", "sub", "sub_"}
_NATIVE = {"native_layer_norm": "layer", "_fused_rms_norm": "rms", "rms_norm": "rms"}


class Step(NamedTuple):
    """What happens on a way: a norm, or a multiplication."""

    node: Node
    norm: FoundNorm | None = None
    factor: "float | nn.Parameter | None" = None


class Graph:
    """A trace, with its norms found and its stream marked."""

    def __init__(self, trace: Trace, block: nn.Module) -> None:
        self.trace = trace
        self.parameters = {id(p): name for name, p in block.named_parameters()}
        self.norms: dict[Node, tuple[FoundNorm, Node]] = {}
        """By result: the norm, and what it reads."""
        self.inside: set[Node] = set()
        """Steps of a norm's formula."""
        self.users: dict[Node, list[Node]] = {}
        for node in trace.nodes:
            for operand in node.nodes:
                self.users.setdefault(operand, []).append(node)
        self._find_modules()
        self._find_functions()
        self.on_stream: set[Node] = set()
        for node in trace.nodes:
            if self._is_on_stream(node):
                self.on_stream.add(node)

    def back(self, node: Node) -> tuple[list[Step], Node]:
        """Steps from `node` back to the first operation that is none of them, and that one."""
        steps: list[Step] = []
        while True:
            if node in self.norms:
                norm, node_before = self.norms[node]
                steps.append(Step(node, norm=norm))
                node = node_before
            elif node.op in _SAME and node.nodes:
                node = node.nodes[0]
            elif node.op in _MULTIPLY and len(node.nodes) == 1:
                steps.append(Step(node, factor=self._factor(node)))
                node = node.nodes[0]
            elif node.op in _SUM and len(node.nodes) == 1:
                node = node.nodes[0]  # a bias
            else:
                return steps, node

    def is_sum(self, node: Node) -> bool:
        return node.op in _SUM and len(node.nodes) == 2 and node not in self.norms

    def is_projection(self, node: Node) -> bool:
        """A product with a constant: a linear layer."""
        return node.op in _PRODUCTS and len(node.nodes) == 1

    def is_mixing(self, node: Node) -> bool:
        """A product of two things that depend on inputs: attention."""
        return node.op in _PRODUCTS and len(node.nodes) >= 2

    def within(self, top: Node) -> list[Node]:
        """The operations of a branch whose last one is `top`, up to where it reads the stream."""
        found, waiting = {top}, [top]
        while waiting:
            for operand in waiting.pop().nodes:
                if operand not in found and operand not in self.on_stream:
                    found.add(operand)
                    waiting.append(operand)
        return sorted(found, key=lambda node: node.index)

    def entries(self, branch: list[Node]) -> list[Node]:
        """Where a branch reads the stream."""
        reads = {o: None for node in branch for o in node.nodes if o in self.on_stream}
        return [*reads]

    def _factor(self, node: Node) -> "float | nn.Parameter | None":
        """What is multiplied by; None where it cannot be told."""
        value: float | None = None
        if node.constants:
            constant = node.constants[0]
            if id(constant) in self.parameters and isinstance(constant, nn.Parameter):
                return constant
            value = float(constant) if constant.numel() == 1 else None
        elif node.numbers:
            value = node.numbers[0]
        is_quotient = node.op.startswith(("div", "true"))
        return 1 / value if value and is_quotient else value

    def _is_on_stream(self, node: Node) -> bool:
        if node is self.trace.x:
            return True
        if node in self.norms:
            return self.norms[node][1] in self.on_stream
        if node in self.inside:
            return False
        if node.op in _SUM:
            return any(o in self.on_stream for o in node.nodes)
        one = node.op in _SAME or (node.op in _MULTIPLY and len(node.nodes) == 1)
        return one and bool(node.nodes) and node.nodes[0] in self.on_stream

    def _find_modules(self) -> None:
        for name, module, read, gave in self.trace.calls:
            if read.value.shape == gave.value.shape and read is not gave:
                norm = probe_module(name, module, read.value)
                if norm:
                    self.norms[gave] = norm, read
                    self.inside |= set(self.trace.nodes[read.index + 1 : gave.index])

    def _find_functions(self) -> None:
        """Norms that are no modules: native operations, and plain formulas."""
        for node in self.trace.nodes:
            if node in self.norms or node in self.inside or not node.nodes:
                continue
            read = node.nodes[0]
            if node.op in _NATIVE and node.value.shape == read.value.shape:
                self._add_function(node, read, _NATIVE[node.op])
            elif node.op in _MULTIPLY and len(node.nodes) == 2:
                whole = [o for o in node.nodes if o.value.shape == node.value.shape]
                part = [o for o in node.nodes if o.value.shape[-1:] == (1,)]
                source = self._source(whole[0], part[0]) if whole and part else None
                kind = fit_tensors(source.value, node.value) if source else None
                if source and kind:
                    self._add_function(node, source, kind)

    def _source(self, whole: Node, part: Node) -> Node | None:
        """What a formula's statistic and its numerator are both made of."""
        before = set(self._ancestors(part, 8))
        _, start = self.back(whole)
        if start.op in _SUM and len(start.nodes) == 2:  # minus its mean
            _, start = self.back(start.nodes[0])
        near = [n for n in (*self._casts(whole), start) if n.value.shape == whole.value.shape]
        near = [n for n in near if n in before]
        return near[-1] if near else None

    def _casts(self, node: Node) -> Iterator[Node]:
        while node.op in ("_to_copy", "sub") and node.nodes:
            yield node
            node = node.nodes[0]
        yield node

    def _ancestors(self, node: Node, depth: int) -> Iterator[Node]:
        for operand in node.nodes if depth else ():
            yield operand
            yield from self._ancestors(operand, depth - 1)

    def _add_function(self, node: Node, read: Node, kind: str) -> None:
        where = f"{node.op} in {node.module or 'the block'}"
        weights = [c for c in node.constants if c.ndim]
        small = [n for n in node.numbers if 0 < n < 0.01]
        eps = small[-1] if small else self._eps_before(node)
        norm = FoundNorm(
            where=where,
            kind=kind,
            width=read.value.shape[-1],
            gain="plain" if weights and node.op in _NATIVE else "none",
            eps=eps,
            evidence=f"operation {where}: its result is that norm of what it reads",
        )
        self.inside |= {n for n in self._ancestors(node, 8) if n.index > read.index}
        gained = node
        while (users := self.users.get(gained)) and users[0].op == "_to_copy":
            gained = users[0]
        if users and users[0].op in _MULTIPLY and len(users[0].nodes) == 1:
            vectors = [c for c in users[0].constants if c.ndim == 1]
            if vectors:
                norm, node = with_gain(norm, vectors[0]), users[0]
        self.norms[node] = norm, read

    def _eps_before(self, node: Node) -> float | None:
        numbers = [
            n for a in self._ancestors(node, 6) if a.op in (*_SUM, "clamp_min") for n in a.numbers
        ]
        return next((n for n in numbers if 0 < n < 0.01), None)
