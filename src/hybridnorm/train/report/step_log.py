"""Per-step numbers that stay on the device until somebody looks."""

import torch
from torch import Tensor

from hybridnorm.train.world import World


class StepLog:
    """Collects scalars step by step without making the host wait for the device."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rows: list[dict[str, Tensor]] = []

    def add(self, **numbers: Tensor) -> None:
        """The numbers of one step, 0-dimensional, each this rank's part of a mean."""
        self._rows.append(numbers)

    def read(self) -> list[dict[str, float]]:
        """The numbers of every step since the last reading, averaged over the ranks."""
        rows, self._rows = self._rows, []
        values = torch.stack([n.double() for row in rows for n in row.values()])
        means = iter(self._world.mean(values).tolist())
        return [dict(zip(row, means, strict=False)) for row in rows]
