"""A block's sublayers, read from its graph."""

from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from hybridnorm.diagnose.classifier.graph import Graph, Step
from hybridnorm.diagnose.classifier.norms import FoundNorm
from hybridnorm.diagnose.classifier.trace import Node
from hybridnorm.errors import HybridNormError
from hybridnorm.placements import Norm, Scale

Role = Literal["attention", "cross-attention", "feed-forward"]
Axis = Literal["head", "full"]
NORMS = ("input", "q", "k", "v", "context", "mid", "output", "post")
"""The places, in the order in which they act."""


@dataclass
class FoundSublayer:
    """One branch around the stream."""

    role: Role
    module: str
    """Where its sum with the stream is computed; the module of the block, or empty."""
    norms: dict[str, FoundNorm] = field(default_factory=dict)
    """By place: input, q, k, v, context, mid, output, post."""
    axes: dict[str, Axis] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    """By place: input, branch, skip."""
    skip: str = "raw"
    skip_evidence: str = ""
    unknown: list[str] = field(default_factory=list)
    """What cannot be told."""
    after_rope: list[str] = field(default_factory=list)
    parallel: bool = False
    """Whether it reads the same stream as the sublayer before."""
    exits: Node | None = None
    """The last operation of the branch."""

    def spec(self, place: str) -> Norm | None:
        found = self.norms.get(place)
        return None if found is None else found.spec(self.axes.get(place, "head"))


@dataclass
class FoundBlock:
    """Sublayers in the order in which they are added."""

    sublayers: list[FoundSublayer]

    @property
    def parallel(self) -> bool:
        return any(sublayer.parallel for sublayer in self.sublayers)


def read_block(graph: Graph) -> FoundBlock:
    """The sublayers of a block.

    Raises:
        HybridNormError: no stream goes from its input to its output.
    """
    output = graph.trace.output
    if output is None or output not in graph.on_stream:
        raise HybridNormError(
            "module: no sum connects its input with its output, so it is no residual block"
        )
    found: list[FoundSublayer] = []
    bases: list[Node] = [graph.trace.x]
    sums = _sums(graph, output)
    for total in sums:
        skips = [o for o in total.nodes if o in graph.on_stream]
        branch = next((o for o in total.nodes if o not in graph.on_stream), None)
        if branch is None:
            continue  # two streams: seen from the sum that takes their result
        sign = -1.0 if total.op.startswith("sub") else 1.0
        for number, term in enumerate(_terms(graph, branch)):
            sublayer = _sublayer(graph, term, skips[0], bases, found, sign)
            sublayer.parallel |= number > 0
            sublayer.module = total.module
            found.append(sublayer)
        bases.append(total)
    if not found:
        raise HybridNormError("module: it adds nothing to its input, so it has no sublayers")
    steps, _ = graph.back(output)
    _place(found[-1], "post", steps)
    return FoundBlock(found)


def _sums(graph: Graph, output: Node) -> list[Node]:
    """The sums of stream and branch that `output` depends on, in order."""
    seen, waiting = {output}, [output]
    while waiting:
        for operand in waiting.pop().nodes:
            if operand not in seen:
                seen.add(operand)
                waiting.append(operand)
    sums = [node for node in seen if node in graph.on_stream and graph.is_sum(node)]
    return sorted(sums, key=lambda node: node.index)


def _terms(graph: Graph, branch: Node) -> list[Node]:
    """Attention and feed-forward of a sum of both; else the branch alone."""
    _, core = graph.back(branch)
    if graph.is_sum(core):
        terms = [term for operand in core.nodes for term in _terms(graph, operand)]
        if len({bool(_attention_of(graph, graph.within(term))) for term in terms}) == 2:
            return sorted(terms, key=lambda term: not _attention_of(graph, graph.within(term)))
    return [branch]


def _attention_of(graph: Graph, branch: list[Node]) -> list[Node]:
    """Its products of queries, keys and values."""
    return [n for n in branch if "scaled_dot_product" in n.op or graph.is_mixing(n)]


def _sublayer(
    graph: Graph,
    term: Node,
    skip: Node,
    bases: list[Node],
    before: list[FoundSublayer],
    sign: float,
) -> FoundSublayer:
    branch = graph.within(term)
    attends = _attention_of(graph, branch)
    memory = any(operand.of_memory for node in branch for operand in node.nodes)
    role: Role = "feed-forward"
    if attends:
        role = "cross-attention" if memory else "attention"
    sublayer = FoundSublayer(role, "")
    sublayer.exits = term
    steps, core = graph.back(term)
    _branch_scale(sublayer, steps, sign)
    entries = graph.entries(branch)
    _entry(graph, sublayer, entries, skip, bases, before)
    if attends:
        _inner_attention(graph, sublayer, attends, core)
    elif graph.is_projection(core):
        _place(sublayer, "mid", graph.back(core.nodes[0])[0])
    else:
        sublayer.unknown.append("mid norm: the network does not end in one product (experts)")
    return sublayer


def _branch_scale(sublayer: FoundSublayer, steps: list[Step], sign: float) -> None:
    _place(sublayer, "output", steps)
    _scale(sublayer, "branch", [step for step in steps if step.norm is None], sign)


def _scale(sublayer: FoundSublayer, place: str, steps: list[Step], sign: float = 1.0) -> None:
    """The product of the factors on a way."""
    value, learned = sign, "none"
    for step in steps:
        if isinstance(step.factor, nn.Parameter):
            learned = "scalar" if step.factor.numel() == 1 else "channel"
            value *= float(step.factor.detach().double().mean())
        elif step.factor is None:
            sublayer.unknown.append(f"{place} scale: it is multiplied by a tensor")
        else:
            value *= step.factor
    scale = Scale(value=float(f"{value:.6g}"), learned=learned)  # type: ignore[arg-type]
    if not scale.is_one:
        sublayer.scales[place] = scale


def _entry(
    graph: Graph,
    sublayer: FoundSublayer,
    entries: list[Node],
    skip: Node,
    bases: list[Node],
    before: list[FoundSublayer],
) -> None:
    """What the branch reads and the skip carries, from the last sum on."""
    ways = [graph.back(entry) for entry in entries]
    if not ways:
        sublayer.unknown.append("input norm: the branch does not read the stream")
        return
    if len({base for _, base in ways}) > 1:
        sublayer.unknown.append("input norm: the branch reads the stream at several places")
    read, base = ways[0]
    sublayer.parallel = base is not bases[-1] and bool(before)
    carried, skip_base = graph.back(skip)
    carries = [(carried, skip_base)]
    if graph.is_sum(skip_base) and all(o in graph.on_stream for o in skip_base.nodes):
        carries = [graph.back(operand) for operand in skip_base.nodes]
    same = [steps for steps, start in carries if start is base]
    # Where no skip carries it otherwise, all that comes of the sum before passes these.
    shared = [step for step in read if not same or step in same[0]]
    own = [step for step in read if step not in shared]
    if before and base is not graph.trace.x and any(step.norm for step in shared):
        _place(before[-1], "post", shared)
    else:
        own = [*own, *shared]
        sublayer.skip = "normed" if same and any(step.norm for step in shared) else "raw"
    for step in own:
        if step.norm:
            sublayer.norms["input"] = step.norm
    _scale(sublayer, "input", [step for step in own if not step.norm])
    rest = [step for steps, _ in carries for step in steps if step not in shared]
    _scale(sublayer, "skip", [step for step in carried if step in rest and not step.norm])
    if not sublayer.parallel and len(carries) > 1:
        sublayer.skip = "raw+block_input"
    elif not sublayer.parallel and not same:
        sublayer.skip = "block_input"
    lost = [step.norm.where for step in rest if step.norm]
    if lost:
        sublayer.unknown.append(f"skip: it passes the norm {lost[0]}, which the branch does not")
    sublayer.skip_evidence = {
        "raw": "the sum adds the stream itself",
        "normed": "the sum adds what the branch reads, normed",
        "block_input": "the sum adds the block's input",
        "raw+block_input": "the sum adds the stream and the block's input",
    }[sublayer.skip]


def _place(sublayer: FoundSublayer, place: str, steps: list[Step]) -> None:
    for step in steps:
        if step.norm:
            sublayer.norms[place] = step.norm


def _inner_attention(
    graph: Graph, sublayer: FoundSublayer, attends: list[Node], core: Node
) -> None:
    """The norms on q, k, v and the context."""
    last = attends[-1]
    if "scaled_dot_product" in last.op:
        heads = dict(zip("qkv", last.operands[:3], strict=True))
    elif len(attends) > 1:
        first, second = _factors(attends[0]), _factors(last)
        heads = dict(zip("qkv", (*first, second[1]), strict=True))
    else:
        sublayer.unknown.append("q, k, v norms: no attention by products of q, k and v is there")
        return
    widths = [node.value.shape[-1] for node in heads.values() if isinstance(node, Node)]
    for letter, node in heads.items():
        if isinstance(node, Node):
            _head_norm(graph, sublayer, letter, node, min(widths))
    if graph.is_projection(core):
        steps, _ = graph.back(core.nodes[0])
        _place(sublayer, "context", steps)
        if "context" in sublayer.norms:
            _axis(sublayer, "context", min(widths))
    else:
        sublayer.unknown.append("context norm: no product follows attention")


def _factors(node: Node) -> list[Node]:
    return node.nodes[-2:]


def _head_norm(graph: Graph, sublayer: FoundSublayer, letter: str, node: Node, width: int) -> None:
    """Back to the projection, through a rotary embedding."""
    rotated = False
    for _ in range(40):
        steps, node = graph.back(node)
        found = [step for step in steps if step.norm]
        if found and found[-1].norm:
            sublayer.norms[letter] = found[-1].norm
            _axis(sublayer, letter, width)
            if not rotated and letter != "v" and _rotates(graph, found[-1].node):
                sublayer.after_rope.append(letter)
            return
        if graph.is_projection(node) or not node.nodes:
            return
        rotated = rotated or node.op in (*("add", "cat", "view_as_real", "addcmul"),)
        node = node.nodes[0]
    sublayer.unknown.append(f"{letter} norm: no projection was found behind it")


def _rotates(graph: Graph, node: Node) -> bool:
    """Whether a rotary embedding comes before this norm."""
    _, before = graph.back(graph.norms[node][1])
    return not graph.is_projection(before)


def _axis(sublayer: FoundSublayer, place: str, width: int) -> None:
    sublayer.axes[place] = "full" if sublayer.norms[place].width > width else "head"
