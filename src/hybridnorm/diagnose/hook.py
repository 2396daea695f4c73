"""The hook that lets probes look at a run at its steps, and keeps what they found."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from hybridnorm.diagnose.catalogue import catalogue, named_probes
from hybridnorm.diagnose.measure import measure
from hybridnorm.diagnose.memory import check_memory
from hybridnorm.diagnose.probe import Probe, Start
from hybridnorm.diagnose.table import Table, TableWriter, read_table
from hybridnorm.errors import HybridNormError
from hybridnorm.recipe import Recipe
from hybridnorm.train import Hook, State

FOLDER = "diagnose"


def table_path(run_dir: Path, probe: str) -> Path:
    """Where a run keeps the table of a probe."""
    return run_dir / FOLDER / f"{probe}.csv"


def probing_hooks(recipe: Recipe) -> list[Hook]:
    """The hook of a recipe's `[diagnose]`; none where it names no probes.

    Raises:
        HybridNormError: an unknown probe, or one that needs trainings of its own.
    """
    probes = named_probes(recipe.diagnose.probes)
    for probe in probes:
        if probe.looks_at("trial"):
            raise HybridNormError(
                f"diagnose.probes: {probe.name} needs trainings of its own; leave it out here, and "
                f"ask for it with hybridnorm diagnose --probes {probe.name}"
            )
    return [Recording(probes)] if probes else []


def recorded_probes(runs: Path, names: Sequence[str] = ()) -> dict[str, dict[str, list[Table]]]:
    """What the runs below a folder recorded: by probe, by arm, a table for each seed.

    An arm is the name of a run without its seed.

    Args:
        names: of the probes that count; none: all.

    Raises:
        HybridNormError: a damaged table.
    """
    found: dict[str, dict[str, list[Table]]] = {}
    for name in names or catalogue():
        for run_dir in sorted(runs.glob("*/")):
            path = table_path(run_dir, name)
            if path.exists() and (table := read_table(path)):
                arm = re.sub(r"-?seed\d+", "", run_dir.name)
                found.setdefault(name, {}).setdefault(arm, []).append(table)
    return found


class Probing(Hook):
    """Measures at the steps that are due; `tables` has the rows of the last one, by probe."""

    def __init__(self, probes: Sequence[Probe], start: Start | None = None) -> None:
        """With `start`, probes may have trainings of their own."""
        self.probes, self._start = probes, start
        self.tables: dict[str, Table] = {}
        self._gradients = StreamNorms()
        self._wants_stream = any(probe.looks_at("gradients") for probe in probes)

    def start(self, state: State) -> None:
        check_memory(self.probes, state)

    def is_due(self, state: State) -> bool:
        """Whether the step after `state.step` is measured."""
        return True

    def before_forward(self, state: State) -> None:
        if self._wants_stream and self.is_due(state):
            self._gradients.attach(state)

    def after_backward(self, state: State) -> None:
        if self.is_due(state):
            gradients = self._gradients.read(state)
            self.tables = measure(self.probes, state, gradients, self._start)


class Recording(Probing):
    """Along a run, at the steps its recipe names; rows are appended to <run>/diagnose/*.csv."""

    def start(self, state: State) -> None:
        super().start(state)
        if state.world.is_main:
            self._writers = {
                probe.name: TableWriter(table_path(state.run_dir, probe.name), state.step)
                for probe in self.probes
            }

    def is_due(self, state: State) -> bool:
        return state.recipe.diagnose.is_due(state.step + 1)

    def after_backward(self, state: State) -> None:
        super().after_backward(state)
        if state.world.is_main and self.is_due(state):
            for name, table in self.tables.items():
                self._writers[name].add(table)


class StreamNorms:
    """||dL/dh|| after the embedding and after every block, summed over the micro-batches."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._squares: list[Tensor] = []

    def attach(self, state: State) -> None:
        """Before the first forward pass of a step; later calls of the step do nothing."""
        if self._handles:
            return
        blocks = state.model.blocks
        self._squares = [torch.zeros((), device=state.world.device) for _ in range(len(blocks) + 1)]

        # Blocks alone are hooked: inside, they may be compiled or computed again.
        def entered(block: Any, inputs: Any) -> None:
            self._watch(inputs[0], 0)

        def left(layer: int) -> Any:
            return lambda block, inputs, output: self._watch(output[0], layer)

        self._handles = [
            blocks[0].register_forward_pre_hook(entered),
            *(block.register_forward_hook(left(i)) for i, block in enumerate(blocks, start=1)),
        ]

    def _watch(self, h_BTD: Tensor, layer: int) -> None:
        def add(gradient: Tensor) -> None:
            self._squares[layer] += gradient.detach().float().square().sum()

        if h_BTD.requires_grad:  # another hook may run the model without gradients
            h_BTD.register_hook(add)  # type: ignore[no-untyped-call]

    def read(self, state: State) -> list[float]:
        """Of the mean loss over all ranks; every rank calls it, after the backward pass."""
        for handle in self._handles:
            handle.remove()
        if not self._handles:
            return []
        self._handles = []
        # A rank's loss is the mean over its own tokens; the batch's, the mean of the ranks' losses.
        squares = state.world.mean(torch.stack(self._squares).double())
        return (squares / state.world.data_size).sqrt().tolist()
