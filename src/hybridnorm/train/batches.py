"""This rank's share of the batches, on its device."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridnorm.data import Batches, Mixture
from hybridnorm.errors import HybridNormError
from hybridnorm.model import document_ids
from hybridnorm.recipe import TrainConfig
from hybridnorm.train.world import World


class Batch(NamedTuple):
    """What a forward pass reads: all `(rows, seq)`; `documents` where attention is masked."""

    input_ids: Tensor
    targets: Tensor
    documents: Tensor | None


class MicroBatches:
    """Cuts every global batch into the rows of this rank and those into micro-batches.

    Rank r of R takes the r-th of R equal parts, so that the tokens of a step are the same for any
    number of ranks and any size of micro-batches.

    Raises:
        HybridNormError: the batch cannot be cut so.
    """

    def __init__(self, batches: Batches, world: World, config: TrainConfig) -> None:
        self.batches, self.world = batches, world
        self.share, rest = divmod(config.batch_size, world.data_size)
        if rest:
            raise HybridNormError(
                f"train.batch_size: {config.batch_size} sequences do not divide among "
                f"{world.data_size} data-parallel ranks"
            )
        self.micro = config.micro_batch_size or self.share
        if self.share % self.micro:
            raise HybridNormError(
                f"train.micro_batch_size: {self.micro} does not divide the {self.share} sequences "
                f"of one of {world.data_size} data-parallel ranks"
            )
        self.end_of_document = batches.tokens.end_of_document if config.mask_documents else None

    @property
    def n_micro(self) -> int:
        """Micro-batches per step."""
        return self.share // self.micro

    def step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of step `step` (from 0)."""
        start = self.world.data_rank * self.share
        for first in range(start, start + self.share, self.micro):
            yield self._batch(self.batches.rows(step, first, first + self.micro))

    def held_out(self, tokens: Mixture, limit: int) -> Iterator[tuple[Batch, int]]:
        """At most `limit` held-out sequences, in turns of the ranks.

        Yields batches, and how many rows of each count. Every rank gets as many batches as the
        others; a surplus one counts nothing.
        """
        ids, targets = tokens.windows(self.batches.seq_len, limit)
        stride = self.micro * self.world.data_size
        for first in range(self.world.data_rank * self.micro, len(ids), stride):
            rows = slice(first, first + self.micro)
            yield self._batch((ids[rows], targets[rows])), len(ids[rows])
        last_round = (len(ids) - 1) // stride * stride
        if last_round + self.world.data_rank * self.micro >= len(ids):
            yield self._batch((ids[:1], targets[:1])), 0

    def _batch(self, arrays: Sequence[NDArray[np.int64]]) -> Batch:
        device = self.world.device
        host = (torch.from_numpy(part) for part in arrays)
        if device.type == "cuda":
            host = (part.pin_memory() for part in host)
        ids, targets = (part.to(device, non_blocking=True) for part in host)
        end = self.end_of_document
        return Batch(ids, targets, None if end is None else document_ids(ids, end))
