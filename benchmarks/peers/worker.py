"""One peer in one process, which trains or generates whenever it is told to.

    python -P worker.py '{"peer": "litgpt", "task": "train", "dtype": "bf16", ...}'

Plain torch and no hybridnorm, so that the interpreter of every peer can run it. All that could
favour a peer is here and the same for all: tokens, seeds, precision, clipping, optimizer, clock.
It answers in JSON lines: first with its parameters, then to each line `N` with a turn of N steps.
"""

import ctypes
import gc
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

N_BATCHES = 4  # trained on again and again: the loss falls, as far as the model is in order
LEARNING_RATE = 1e-3


class Training:
    """Forward, backward, clip, AdamW; a peer module has `build(setup) -> (model, objective)`.

    The objective takes ids and targets `(batch, seq)` and returns the mean cross-entropy. A module
    with `OWN_PRECISION` lowers the precision itself; the others run under autocast, which is
    mixed precision with float32 weights as well.
    """

    def __init__(self, peer: ModuleType, setup: SimpleNamespace) -> None:
        shape = setup.shape
        self.device = setup.device
        self.model, self.objective = peer.build(setup)
        self.autocast = setup.dtype == "bf16" and not hasattr(peer, "OWN_PRECISION")
        self.optimizer = getattr(peer, "optimizer", adamw)(self.model, LEARNING_RATE)
        size = (N_BATCHES, shape.batch, shape.seq + 1)
        tokens = torch.randint(shape.vocab_size, size, generator=torch.Generator().manual_seed(0))
        tokens = tokens.to(setup.device)
        self.batches = [(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in tokens]
        self.steps = 0

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def step(self) -> Tensor:
        ids, targets = self.batches[self.steps % N_BATCHES]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            loss: Tensor = self.objective(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return loss.detach()

    def turn(self, steps: int) -> dict[str, Any]:
        losses = [self.step()]
        seconds = timed(self.device, lambda: losses.extend(self.step() for _ in range(steps)))
        return {"seconds": seconds / steps, "losses": [float(loss) for loss in losses]}


class Generation:
    """Greedy; a peer module has `generator(setup) -> (model, generate)`.

    `generate` takes a prompt `(batch, seq)` and returns the new tokens, `(batch, new)`.
    """

    def __init__(self, peer: ModuleType, setup: SimpleNamespace) -> None:
        shape = setup.shape
        self.device = setup.device
        self.model, self.generate = peer.generator(setup)
        self.expected = (setup.batch, setup.new)
        size = (setup.batch, setup.prompt)
        generator = torch.Generator().manual_seed(0)
        self.prompt = torch.randint(shape.vocab_size, size, generator=generator).to(setup.device)

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def turn(self, steps: int) -> dict[str, Any]:
        new = self.generate(self.prompt)
        if tuple(new.shape) != self.expected:
            raise RuntimeError(f"{tuple(new.shape)} new tokens instead of {self.expected}")

        def again() -> None:
            for _ in range(steps):
                self.generate(self.prompt)

        return {"seconds": timed(self.device, again) / steps, "tokens": new[0].tolist()}


def adamw(model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )


def timed(device: str, work: Callable[[], None]) -> float:
    """Seconds of wall clock, to the end of what was queued on the device."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def peak_memory(device: str) -> int:
    """The most bytes held so far: by tensors on the GPU, or resident in the process (Linux)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM")


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def release_memory(device: str) -> int:
    """Give all that is free back: the next process needs it. Returns the bytes that are left."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()
    return resident("VmRSS")


def load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"peer_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(setup: SimpleNamespace) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    task = {"train": Training, "generate": Generation}[setup.task]
    worker = task(load(setup.peer), setup)
    yield {"parameters": worker.parameters(), "torch": torch.__version__}
    for line in sys.stdin:
        turn = worker.turn(int(line))
        peak = peak_memory(setup.device)
        yield turn | {"peak": peak, "idle": release_memory(setup.device)}


def main() -> None:
    setup = json.loads(sys.argv[1], object_hook=lambda table: SimpleNamespace(**table))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        for answer in answers(setup):
            print(json.dumps(answer), file=out, flush=True)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {lines[0][:200]}"
        print(json.dumps({"error": reason}), file=out, flush=True)


if __name__ == "__main__":
    main()
