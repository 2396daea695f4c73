"""What each rank reads: together exactly the batch, whatever the ranks and micro-batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hybridnorm.data.config import DataConfig
from hybridnorm.data.mixture import Batches, Mixture
from hybridnorm.data.prepare.folder import open_data
from hybridnorm.errors import HybridNormError
from hybridnorm.recipe.config import TrainConfig
from hybridnorm.train.batches import MicroBatches
from hybridnorm.train.world import World

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(corpus: Path) -> tuple[Mixture, Mixture]:
    config = DataConfig(source=str(corpus), tokenizer="byte", cache=str(corpus / "prepared"))
    prepared = open_data(config, console=Console(quiet=True))
    return Mixture(prepared, "train"), Mixture(prepared, "validation")


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.integers(1, 6),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    step=st.integers(0, 300),
)
def test_the_ranks_together_read_the_batch_in_order(
    data: tuple[Mixture, Mixture], ranks: int, micro: int, accumulation: int, step: int
) -> None:
    size = ranks * micro * accumulation
    batches = Batches(data[0], 16, size, seed=3)
    config = TrainConfig(batch_size=size, micro_batch_size=micro, seq_len=16)
    parts = [
        batch.input_ids.numpy()
        for rank in range(ranks)
        for batch in MicroBatches(batches, World(CPU, rank, ranks), config).step(step)
    ]
    assert len(parts) == ranks * accumulation and {len(part) for part in parts} == {micro}
    assert np.array_equal(np.concatenate(parts), batches.rows(step, 0, batches.batch_size)[0])


@settings(max_examples=40, deadline=None)
@given(ranks=st.integers(1, 6), micro=st.integers(1, 4), limit=st.integers(1, 30))
def test_every_held_out_window_counts_once_and_every_rank_works_as_often(
    data: tuple[Mixture, Mixture], ranks: int, micro: int, limit: int
) -> None:
    batches = Batches(data[0], 16, ranks * micro, seed=3)
    config = TrainConfig(batch_size=ranks * micro, micro_batch_size=micro, seq_len=16)
    windows = data[1].windows(16, limit)[0].tolist()
    workers = [MicroBatches(batches, World(CPU, rank, ranks), config) for rank in range(ranks)]
    found = [list(worker.held_out(data[1], limit)) for worker in workers]
    assert len({len(part) for part in found}) == 1
    # In turns of the ranks they are in order: `Trainer` relies on it.
    turns = [turn for turns in zip(*found, strict=True) for turn in turns]
    counted = [row.tolist() for batch, rows in turns for row in batch.input_ids[:rows]]
    assert counted == windows


def test_documents_are_numbered_only_where_they_are_masked(data: tuple[Mixture, Mixture]) -> None:
    batches = Batches(data[0], 512, 4, seed=0)
    for masked in (False, True):
        config = TrainConfig(batch_size=4, seq_len=512, mask_documents=masked)
        documents = next(MicroBatches(batches, World(CPU), config).step(0)).documents
        assert (documents is not None) == masked
    assert documents is not None and documents.max() > 0


def test_a_batch_that_cannot_be_cut_is_refused(data: tuple[Mixture, Mixture]) -> None:
    batches = Batches(data[0], 16, 6, seed=0)
    with pytest.raises(HybridNormError, match=r"train\.batch_size: 6 sequences do not divide amo"):
        MicroBatches(batches, World(CPU, 0, 4), TrainConfig(batch_size=6))
    with pytest.raises(HybridNormError, match=r"train\.micro_batch_size: 2 does not divide the 3"):
        MicroBatches(batches, World(CPU, 0, 2), TrainConfig(batch_size=6, micro_batch_size=2))
