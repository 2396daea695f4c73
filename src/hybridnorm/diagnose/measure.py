"""One measurement: forward passes over held-out text with the probes looking on.

The passes are eager and keep no gradients; the model, its gradients and all random states are left
as they were.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hybridnorm.diagnose.probe import (
    AttentionView,
    GradientView,
    Probe,
    Reading,
    Start,
    StreamView,
    SublayerView,
)
from hybridnorm.diagnose.table import Row, Table
from hybridnorm.diagnose.tensors import local
from hybridnorm.model import Transformer, apply_rope
from hybridnorm.train import Batch, State

_FORWARD = ("sublayer", "attention", "stream")
_SUBLAYERS = ("attention", "feed_forward")


class _Key(NamedTuple):
    probe: str
    layer: int
    sublayer: str
    name: str
    reduce: str


Values = dict[_Key, list[float]]


def measure(
    probes: Sequence[Probe],
    state: State,
    stream_gradients: Sequence[float],
    start: Start | None = None,
) -> dict[str, Table]:
    """The rows of each probe, by its name, about the step after `state.step`; all ranks call it.

    Args:
        stream_gradients: as in `GradientView`.
        start: for probes that need trainings of their own.
    """
    found = _Collected()
    model = state.model
    gradients = GradientView(model, state.world, stream_gradients)
    with torch.no_grad(), _eager(state.recipe.train.compile == "on"):
        for probe in probes:
            found.add(probe, probe.gradients(gradients))
            found.add(probe, probe.weights(model))
        if any(probe.looks_at(what) for probe in probes for what in _FORWARD):
            for batch, rows in state.held_out(state.recipe.diagnose.sequences):
                found.is_first, found.rows = not found.rows, rows
                _pass(probes, model, batch, found)
                if isinstance(model, FSDPModule):
                    model.reshard()  # a forward pass alone leaves embedding and head whole
    if start is not None:
        for probe in probes:
            found.add(probe, probe.trial(start))
    everywhere = state.world.gather(found.values)
    return _tables(probes, everywhere, state)


def _eager(compiled: bool) -> AbstractContextManager[Any]:
    """Compiled blocks run as they were written, so that hooks inside them are called."""
    # The import of the compiler takes seconds: only where it is there already.
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


class _Collected:
    """Readings, on the device until somebody looks."""

    def __init__(self) -> None:
        self.rows, self.is_first = 0, True
        self._parts: list[tuple[_Key, Tensor]] = []

    def add(self, probe: Probe, readings: Iterable[Reading]) -> None:
        for reading in readings:
            key = _Key(probe.name, reading.layer, reading.sublayer, reading.name, reading.reduce)
            value = reading.value.detach()
            self._parts.append((key, value[: self.rows] if value.ndim else value[None]))

    def values(self) -> Values:
        """One copy to the host for all."""
        if not self._parts:
            return {}
        device = max((value.device for _, value in self._parts), key=lambda one: one.type != "cpu")
        flat = torch.cat([value.to(device).double() for _, value in self._parts]).tolist()
        numbers, found = iter(flat), defaultdict[_Key, list[float]](list)
        for key, value in self._parts:
            found[key] += [next(numbers) for _ in range(len(value))]
        return dict(found)


def _tables(probes: Sequence[Probe], everywhere: list[Values], state: State) -> dict[str, Table]:
    tables: dict[str, Table] = {probe.name: [] for probe in probes}
    keep = state.recipe.diagnose.layers
    for key in everywhere[0]:
        if keep and key.layer not in keep:
            continue
        parts = everywhere[:1] if key.reduce == "first" else everywhere
        values = [value for part in parts for value in part[key]]
        number = _reduced(values, key.reduce)
        row = Row(state.step + 1, key.layer, key.sublayer, key.name, number)
        tables[key.probe].append(row)
    return tables


def _reduced(values: Sequence[float], reduce: str) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    return max(values) if reduce == "max" else math.fsum(values) / len(values)


def _pass(probes: Sequence[Probe], model: Transformer, batch: Batch, found: _Collected) -> None:
    """A forward pass; the probes of the stream look before it is let go."""
    taps = _Taps(probes, model, batch, found)
    with taps.attached():
        loss = model.loss(*batch)

    def repeat() -> Tensor:
        return model.loss(*batch)

    view = StreamView(model, batch, taps.states, found.is_first, loss, repeat)
    for probe in probes:
        if probe.looks_at("stream"):
            found.add(probe, probe.stream(view))


class _Taps:
    """The hooks of one forward pass."""

    def __init__(
        self, probes: Sequence[Probe], model: Transformer, batch: Batch, found: _Collected
    ) -> None:
        self.probes, self.model, self.batch, self.found = probes, model, batch, found
        self.states: list[Tensor] = []
        self._handles: list[Any] = []

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Only what some probe looks at."""
        wanted = {what for probe in self.probes for what in _FORWARD if probe.looks_at(what)}
        try:
            blocks: Any = self.model.blocks
            for layer, block in enumerate(blocks, start=1):
                if "stream" in wanted:
                    self._stream(layer, block)
                if "sublayer" in wanted:
                    for name in _SUBLAYERS:
                        self._sublayer(layer, name, getattr(block, name))
                if "attention" in wanted:
                    self._attention(layer, block.attention.branch)
            yield
        finally:
            for handle in self._handles:
                handle.remove()

    def _hook(self, module: nn.Module, function: Any) -> None:
        handle = module.register_forward_hook(
            lambda module, inputs, kwargs, output: function(inputs, kwargs, output),
            with_kwargs=True,
        )
        self._handles.append(handle)

    def _stream(self, layer: int, block: nn.Module) -> None:
        def left(inputs: Any, kwargs: Any, output: Any) -> None:
            if layer == 1:
                self.states.append(local(inputs[0]))
            self.states.append(local(output[0]))

        self._hook(block, left)

    def _sublayer(self, layer: int, name: str, residual: Any) -> None:
        seen: dict[str, Tensor] = {}

        def keep(part: str, which: str) -> None:
            def hook(inputs: Any, kwargs: Any, output: Any) -> None:
                seen[part] = local(inputs[0] if which == "input" else output)

            module = getattr(
                residual, {"normed": "input_norm", "summed": "post_norm"}.get(part, part)
            )
            self._hook(module, hook)

        def done(inputs: Any, kwargs: Any, output: Any) -> None:
            view = SublayerView(
                layer=layer,
                name=name,
                module=residual,
                x=local(inputs[0]),
                normed=seen["normed"],
                contribution=seen["branch_scale"],
                summed=seen["summed"],
                out=local(output),
            )
            for probe in self.probes:
                if probe.looks_at("sublayer"):
                    self.found.add(probe, probe.sublayer(view))
            seen.clear()

        keep("normed", "output")
        keep("branch_scale", "output")
        keep("summed", "input")
        self._hook(residual, done)

    def _attention(self, layer: int, attention: Any) -> None:
        seen: dict[str, Tensor] = {}

        def keep(part: str) -> None:
            def hook(inputs: Any, kwargs: Any, output: Any) -> None:
                seen[part] = local(output)

            self._hook(getattr(attention, part), hook)

        def done(inputs: Any, kwargs: Any, output: Any) -> None:
            rope = kwargs["rope"]
            q_BTHK, k_BTGK = (apply_rope(seen[part], rope) for part in ("q_norm", "k_norm"))
            view = AttentionView(layer, attention, q_BTHK, k_BTGK, self.batch.documents)
            for probe in self.probes:
                if probe.looks_at("attention"):
                    self.found.add(probe, probe.attention(view))
            seen.clear()

        keep("q_norm")
        keep("k_norm")
        self._hook(attention, done)
