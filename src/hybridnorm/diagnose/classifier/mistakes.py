"""Known mistakes, and what a placement is known not to bear."""

import re
from collections.abc import Iterator

from torch import nn

from hybridnorm.diagnose.classifier.graph import Graph
from hybridnorm.diagnose.classifier.sublayers import FoundBlock
from hybridnorm.placements import Placement

_PRE_FLAGS = ("norm_first", "pre_norm", "prenorm", "pre_ln", "normalize_before")
_QK_FLAGS = ("qk_norm", "use_qk_norm", "qk_layernorm", "qk_ln")
_DEMANDS = re.compile("warm-up|stability|not to be combined")
_SKIP_FLAG = "apply_residual_connection_post_layernorm"


def mistakes(
    block: FoundBlock, graph: Graph, module: nn.Module, known: Placement, exact: bool
) -> Iterator[str]:
    """One sentence each."""
    yield from _idle(graph, module)
    yield from _flags(block, module)
    yield from _misnamed(block)
    yield from _skips(block)
    if exact and known.init in ("megatron", "depth-scaled"):
        yield from _initialization(block, graph, known)
    if exact and _DEMANDS.search(known.note):
        yield f"{known.name}: {known.note}"


def _idle(graph: Graph, module: nn.Module) -> Iterator[str]:
    """Norms that act on nothing."""
    used, waiting = {graph.trace.output}, [graph.trace.output]
    while waiting:
        node = waiting.pop()
        for operand in node.nodes if node else ():
            if operand not in used:
                used.add(operand)
                waiting.append(operand)
    found = {norm.where: node for node, (norm, _) in graph.norms.items()}
    for name, part in module.named_modules():
        is_norm = "norm" in type(part).__name__.lower() and not list(part.children())
        if is_norm and name not in graph.trace.called:
            yield f"{name}: this norm is never called"
        elif name in found and found[name] not in used:
            yield f"{name}: this norm acts on nothing; the output does not depend on it"


def _flags(block: FoundBlock, module: nn.Module) -> Iterator[str]:
    """Flags that say one thing where the other was measured."""
    has_input = any("input" in s.norms for s in block.sublayers)
    on_qk = any({"q", "k"} & {*s.norms} for s in block.sublayers)
    normed = any(s.skip == "normed" for s in block.sublayers)
    measured = {
        **dict.fromkeys(_PRE_FLAGS, ("norms before the branches", has_input)),
        **dict.fromkeys(_QK_FLAGS, ("norms on q and k", on_qk)),
        _SKIP_FLAG: ("skips of normed states", normed),
    }
    for name, part in module.named_modules():
        for flag, (what, holds) in measured.items():
            value = vars(part).get(flag)
            if isinstance(value, bool) and value != holds:
                place = ".".join(filter(None, (name, flag)))
                are = "are" if holds else "are no"
                yield f"{place} = {value} changes nothing: there {are} {what}"


def _misnamed(block: FoundBlock) -> Iterator[str]:
    for s in {s.role: s for s in reversed(block.sublayers)}.values():
        output = s.norms.get("output")
        if output and not {"input", "post"} & {*s.norms} and re.search("post", output.where, re.I):
            yield (
                f"{output.where}: called post, but {s.role} is x + N(F(x)): the norm is on the "
                "branch's output, and no norm is on the stream (Post-Norm is N(x + F(x)))"
            )


def _skips(block: FoundBlock) -> Iterator[str]:
    by_role = {s.role: s for s in block.sublayers}
    attention, network = by_role.get("attention"), by_role.get("feed-forward")
    if attention is None or network is None:
        return
    carried = attention.norms.get("post") if "post" not in network.norms else None
    has_inner = {"q", "k", "v"} <= {*attention.norms}
    if attention.skip == "normed":
        yield "attention: its skip carries the normed state; for Pre-Norm add x, not N(x)"
    elif carried and not has_inner:
        yield (
            f"feed-forward: its skip carries {carried.where}'s result, the normed state; for "
            "Pre-Norm add y, not N(y); for HybridNorm attention needs norms on q, k and v"
        )


def _initialization(block: FoundBlock, graph: Graph, known: Placement) -> Iterator[str]:
    """Whether what writes to the stream starts smaller than what reads it."""
    ratios = []
    for s in block.sublayers:
        _, core = graph.back(s.exits) if s.exits else ([], None)
        if core is None or not graph.is_projection(core):
            continue
        others = [n for n in graph.within(core) if graph.is_projection(n) and n is not core]
        weights = [c for n in (core, *others) for c in n.constants if c.ndim == 2]
        if len(weights) > 1:
            ratios.append((weights[0].std() / weights[1].std()).item())
    if ratios and max(ratios) > 0.75:  # of one block alone it would be 0.71
        yield (
            f"{known.name} was published with {known.init} initialization, W_o and FFN-down "
            f"smaller by 1/√(2L); here they are up to {max(ratios):.2f} times what the others are"
        )
