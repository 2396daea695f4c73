"""Workers that stay alive and take turns, so that a noisy machine is noisy to all of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from contenders import PEERS, Arm, Shape
from peers.worker import timed

WORKER = Path(__file__).parent / "peers" / "worker.py"
# Of glibc: what is freed stays with the process, and the next step takes no page faults for it.
KEEP_MEMORY = (
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647:glibc.malloc.top_pad=67108864"
)
GEMM_SECONDS = 0.3


class FailedError(Exception):
    """A peer does not run in a setting; the message is one line."""


class Worker:
    """An arm in its own process and interpreter.

    Raises:
        FailedError: no environment, or an error while it is built.
    """

    def __init__(self, arm: Arm, setup: str, environments: Path, logs: Path) -> None:
        self.arm = arm
        self.log = logs / f"{str(arm).replace(', ', '-').replace(' ', '-')}.log"
        logs.mkdir(parents=True, exist_ok=True)
        name = PEERS[arm.peer].environment
        python = Path(sys.executable) if name is None else environments / name / "bin" / "python"
        if not python.exists():
            raise FailedError(f"no {python}: python benchmarks/environments.py builds it")
        environment = dict(os.environ)
        if '"device": "cpu"' in setup:
            # Idle compilers of many workers would fill the memory.
            environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        if arm.kept:
            environment["GLIBC_TUNABLES"] = KEEP_MEMORY
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(python), "-P", str(WORKER), setup],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        self.parameters: int = self._answer()["parameters"]

    def turn(self, steps: int) -> dict:
        """One step that does not count, then `steps`; see `peers/worker.py`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process died; see {self.log}"}
        if "error" in answer:
            self.close()
            raise FailedError(answer["error"])
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def gemm(shape: Shape, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of the product of a batch with a feed-forward matrix."""
    x = torch.randn(shape.tokens, shape.d_model, device=device).to(dtype)
    weight = torch.randn(shape.d_model, shape.d_ff, device=device).to(dtype)
    out = torch.empty(shape.tokens, shape.d_ff, device=device, dtype=dtype)

    def products(n: int) -> None:
        for _ in range(n):
            torch.mm(x, weight, out=out)

    products(3)
    n = max(3, int(3 * GEMM_SECONDS / timed(device, lambda: products(3))))
    return n * 2 * x.numel() * shape.d_ff / timed(device, lambda: products(n))


def available_memory(device: str) -> int:
    """Bytes that the workers together may take."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
