"""The ranks that torchrun started, as one object; a single process is a world of one.

A single process never touches torch.distributed, so it needs nothing of it (macOS).
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from hybridnorm.errors import HybridNormError
from hybridnorm.model import MESH_DIMENSIONS
from hybridnorm.recipe import ParallelConfig

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run.

    Tensor-parallel ranks see the same data; `data_rank` counts the groups that see different data.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def node_share(self) -> tuple[int, int]:
        """This rank among those of its node, and their number; (0, 1) where nobody says it."""
        if self.mesh is None or "LOCAL_WORLD_SIZE" not in os.environ:  # torchrun sets it
            return 0, 1
        return int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])

    @property
    def data_size(self) -> int:
        return self.size // (self.mesh["tensor"].size() if self.mesh else 1)

    @property
    def data_rank(self) -> int:
        return self.rank // (self.mesh["tensor"].size() if self.mesh else 1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all ranks, in place."""
        if self.mesh is not None:
            dist.all_reduce(values, group=self.group)
            values /= self.size
        return values

    def max(self, number: int) -> int:
        """The largest on any rank; the host waits for the ranks, not for the device."""
        if self.mesh is None:
            return number
        votes = torch.tensor(number)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.group)
        return int(votes)

    def gather(self, action: Callable[[], T]) -> list[T]:
        """The results of `action` on all ranks, by rank.

        Raises:
            HybridNormError, OSError: the first one that `action` raised, on all ranks alike.
        """
        if self.mesh is None:
            return [action()]
        outcomes: list[Any] = [None] * self.size
        dist.all_gather_object(outcomes, _attempt(action), group=self.group)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action` returns (or raises) on rank 0, on all ranks."""
        return cast(T, self.gather(lambda: action() if self.is_main else None)[0])

    def with_own_group(self) -> "World":
        """The same world with a process group of its own, for use in another thread."""
        return self if self.mesh is None else replace(self, group=dist.new_group(backend="gloo"))


def _attempt(action: Callable[[], T]) -> T | HybridNormError | OSError:
    try:
        return action()
    except (HybridNormError, OSError) as error:
        return error


@contextmanager
def open_world(device: str, layout: ParallelConfig) -> Iterator[World]:
    """Join the ranks of torchrun, laid out as `layout` says, or stay alone.

    Raises:
        HybridNormError: no such device, or the layout does not fit the number of ranks.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    mesh_shape = _mesh_shape(layout, size)
    if "RANK" not in os.environ:
        yield World(pick_device(device))
        return
    local = pick_device(device, int(os.environ["LOCAL_RANK"]))
    if local.type == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if local.type == "cuda" else "gloo")
    try:
        mesh = init_device_mesh(local.type, mesh_shape, mesh_dim_names=MESH_DIMENSIONS)
        sharded = mesh["shard", "tensor"]
        sharded._flatten()  # one reduction over both for the gradient norm, not one after the other
        yield World(local, dist.get_rank(), size, mesh)
    finally:
        dist.destroy_process_group()


def end_rank(status: int) -> NoReturn:
    """End the process with an exit status: a rank at once.

    Threads of gloo can outlive their groups, and then Python's own way out aborts now and again,
    which torchrun takes for a failed run.
    """
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device called `name`; auto takes CUDA where there is one, each rank its own.

    Raises:
        HybridNormError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        ranks, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if ranks > devices:
            raise HybridNormError(
                f"train.device: {ranks} ranks on this node, but it has {devices} CUDA devices; "
                f"start torchrun with --nproc-per-node {devices}"
            )
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # of meta, there is nothing to read
    except Exception:  # each backend has its own
        raise HybridNormError(f"train.device: {name!r} is not available here; try cpu") from None
    return device


def _mesh_shape(layout: ParallelConfig, size: int) -> tuple[int, int, int]:
    rest = layout.replicate * layout.tensor
    shard = layout.shard if layout.shard is not None else max(1, size // rest)
    if rest * shard != size:
        raise HybridNormError(
            f"parallel: replicate {layout.replicate} x shard {shard} x tensor {layout.tensor} is "
            f"{rest * shard} ranks, but there are {size}; start that many with torchrun "
            f"--nproc-per-node {rest * shard} -m hybridnorm train ..., or change parallel.*"
        )
    return layout.replicate, shard, layout.tensor
