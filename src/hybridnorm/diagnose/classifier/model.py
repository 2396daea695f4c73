"""`classify`: what a block, or a model's blocks, do with their norms."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import tomli_w
import torch
from torch import Tensor, nn

from hybridnorm.diagnose.classifier.capture import Block, Captured, Inputs, capture
from hybridnorm.diagnose.classifier.graph import Graph
from hybridnorm.diagnose.classifier.mistakes import mistakes
from hybridnorm.diagnose.classifier.nearest import Nearest, Placed, block_spec, nearest
from hybridnorm.diagnose.classifier.norms import FoundNorm
from hybridnorm.diagnose.classifier.sublayers import NORMS, FoundBlock, read_block
from hybridnorm.diagnose.classifier.trace import trace
from hybridnorm.placements import Placement, placement, placement_to_dict
from hybridnorm.placements.show import block_lines


@dataclass(frozen=True)
class Statement:
    """Something that was found, and what shows it."""

    text: str
    evidence: str = ""


@dataclass(frozen=True)
class Report:
    """What `classify` found.

    `blocks` holds one block, or the first, middle and last of a model, by index from 0;
    `statements` what was found in each, `placement` the same in our vocabulary.
    """

    blocks: dict[int, FoundBlock]
    n_layers: int
    statements: dict[int, list[Statement]]
    nearest: Nearest
    warnings: list[str]
    of_model: bool
    embed_norm: FoundNorm | None
    final_norm: FoundNorm | None

    @property
    def placement(self) -> Placement:
        """What was found, in our vocabulary."""
        return self.nearest.placement

    @property
    def topology(self) -> str:
        """sequential or parallel."""
        return "parallel" if any(b.parallel for b in self.blocks.values()) else "sequential"

    @property
    def is_exact(self) -> bool:
        """Whether it is the nearest built-in placement, up to RMSNorm or LayerNorm."""
        return not self.nearest.differences

    def toml(self) -> str:
        """The placement's TOML, which every verb takes."""
        table = placement_to_dict(self.placement)
        return tomli_w.dumps({k: v for k, v in table.items() if k != "name"})

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        is_same = self.is_exact
        differing = "" if is_same else f"; nearest built-in {self.nearest.name}"
        yield f"{self.topology}; {self.nearest.name}" if is_same else f"{self.topology}{differing}"
        for difference in self.nearest.differences:
            yield f"  differs: {difference}"
        shown: list[list[Statement]] = []
        for layer, statements in self.statements.items():
            title = f"block {layer + 1} of {self.n_layers}" if self.of_model else "the block"
            if statements in shown:
                yield f"\n{title}: as block {[*self.statements][shown.index(statements)] + 1}"
                continue
            shown.append(statements)
            yield f"\n{title}"
            for s in statements:
                yield f"  {s.text}"
                if s.evidence:
                    yield f"      {s.evidence}"
        if self.of_model:
            yield "\naround the blocks"
            for name, norm in (("embedding", self.embed_norm), ("final", self.final_norm)):
                yield f"  {name} norm: {norm.words() if norm else 'none was found'}"
        yield from self._in_our_words()
        if self.warnings:
            yield "\nmind"
            yield from (f"  {warning}" for warning in self.warnings)

    def _in_our_words(self) -> Iterator[str]:
        yield "\nequations"
        yield from (f"  {line}" for line in block_lines(self.placement, self.n_layers))
        yield "\nTOML"
        yield from (f"  {line}".rstrip() for line in self.toml().splitlines())


def classify(module: nn.Module, example_inputs: Inputs = None) -> Report:
    """Say where the norms of a block sit and what its residual carries.

    The module runs a few times on the CPU, as a float32 copy in evaluation mode; noise takes the
    place of its stream. Of a model with a list of blocks the first, middle and last are read.

    Args:
        module: a block, stream `(batch, seq, width)` in and out, or a model.
        example_inputs: of `module`: a tensor, a tuple, or keywords. None: guessed.

    Raises:
        HybridNormError: it does not run on its inputs, or is no residual block.
    """
    captured = capture(module, example_inputs)
    n_layers = captured.blocks[0].n_layers if captured.of_model else 3
    found: dict[int, FoundBlock] = {}
    graphs: dict[int, Graph] = {}
    statements: dict[int, list[Statement]] = {}
    placed: list[Placed] = []
    for block in captured.blocks:
        recorded = trace(block.module, block.x, block.args, block.kwargs)
        graph = Graph(recorded, block.module)
        read = read_block(graph)
        # Alone, a block is taken for one in the middle, which no placement makes an exception of.
        layer = block.layer if captured.of_model else 1
        found[block.layer], graphs[block.layer] = read, graph
        statements[block.layer] = [*_statements(read), _of_the_stream(block, read)]
        placed.append(Placed(layer, n_layers, block_spec(read)))
    near = nearest(placed, captured.blocks[0].x.shape[-1], **_ends(captured))
    report = Report(
        blocks=found,
        n_layers=captured.blocks[0].n_layers,
        statements=statements,
        nearest=near,
        warnings=[],
        of_model=captured.of_model,
        embed_norm=captured.embed_norm,
        final_norm=captured.final_norm,
    )
    known = placement(near.name)
    said = {
        warning: None
        for block in captured.blocks
        for warning in mistakes(
            found[block.layer], graphs[block.layer], block.module, known, report.is_exact
        )
    }
    return replace(report, warnings=[*said])


def _ends(captured: Captured) -> dict[str, Any]:
    if not captured.of_model:
        return {}
    embed, final = captured.embed_norm, captured.final_norm
    return {
        "embed_norm": embed and embed.spec(),
        "final_norm": final and final.spec(),
    }


def _statements(block: FoundBlock) -> Iterator[Statement]:
    seen: set[str] = set()
    for s in block.sublayers:
        further = s.role in seen or s.role == "cross-attention"
        seen.add(s.role)
        beside = ", parallel: it reads what the one before reads" if s.parallel else ""
        left_out = " (the vocabulary has one: it is left out below)" if further else ""
        yield Statement(f"{s.role}{beside}{left_out}")
        for place in (place for place in NORMS if place in s.norms):
            norm = s.norms[place]
            axis = {"head": " per head", "full": " over all heads"}.get(s.axes.get(place, ""), "")
            late = " after the rotary embedding" if place in s.after_rope else ""
            yield Statement(f"  {place} norm{axis}{late}: {norm.words()}", f"  {norm.evidence}")
        for place, scale in s.scales.items():
            how = {"none": "", "scalar": ", learned", "channel": ", learned per channel"}
            yield Statement(f"  {place} scale: {scale.value:g}{how[scale.learned]}")
        yield Statement(f"  skip: {s.skip}", f"  {s.skip_evidence}")
        for unknown in s.unknown:
            yield Statement(f"  cannot tell: {unknown}")


def _of_the_stream(block: Block, read: FoundBlock) -> Statement:
    """The finite difference on the skip: the output for x and 2x, without what branches add."""
    zero = {s.exits.index: torch.zeros_like for s in read.sublayers if s.exits}
    outputs = []
    for x in (block.x, 2 * block.x):
        output = trace(block.module, x, block.args, block.kwargs, zero).output
        if output is None:
            return Statement("stream: cannot tell")
        outputs.append(output.value)
    growth = _size(outputs[1]) / max(_size(outputs[0]), 1e-30)
    change = _size(outputs[0] - block.x) / _size(block.x)
    evidence = f"branches set to 0: f(2x) is {growth:.3f} times f(x), |f(x) - x| {change:.1e} |x|"
    if growth < 1.1:
        return Statement("stream: it passes a norm", evidence)
    if growth > 1.9:
        return Statement("stream: it passes no norm", evidence)
    return Statement("stream: cannot tell", evidence)


def _size(x: Tensor) -> float:
    return float(x.double().norm())
