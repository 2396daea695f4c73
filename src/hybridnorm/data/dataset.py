"""Prepared tokens, and batches as a pure function of (data, seed, step)."""

import hashlib
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hybridnorm.data.order import Permutation
from hybridnorm.data.prepare import MANIFEST, checksum
from hybridnorm.errors import HybridNormError

Ids = NDArray[np.int64]


class Tokens:
    """One split of a prepared folder, memory-mapped, its checksums verified.

    Raises:
        HybridNormError: the manifest, the tokenizer or a shard is missing or damaged.
    """

    def __init__(self, folder: Path, split: Literal["train", "validation"]) -> None:
        self.folder, self.split = folder, split
        manifest = _read_manifest(folder)
        record = manifest["splits"][split]
        tokenizer = manifest["tokenizer"]
        _verify(folder / tokenizer["file"], tokenizer["sha256"])
        for shard in record["shards"]:
            _verify(folder / shard["file"], shard["sha256"])
        self.n_tokens: int = record["tokens"]
        self.tokens_per_byte: float = record["tokens"] / record["text_bytes"]
        """Tokens, ends of documents included, per byte of text."""
        self._shards = [
            np.memmap(folder / shard["file"], dtype=manifest["dtype"], mode="r")
            for shard in record["shards"]
        ]
        self._starts = np.cumsum([0, *map(len, self._shards)])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the content: equal for equal tokens, wherever they lie."""
        manifest = _read_manifest(self.folder)
        parts = [s["sha256"] for s in manifest["splits"][self.split]["shards"]]
        return hashlib.sha256(
            "/".join([manifest["tokenizer"]["sha256"], *parts]).encode()
        ).hexdigest()

    def slice(self, start: int, stop: int) -> Ids:
        """Tokens `start` to `stop` as int64, across shards."""
        parts = []
        for first, shard in zip(self._starts, self._shards, strict=False):
            low, high = max(start - first, 0), min(stop - first, len(shard))
            if low < high:
                parts.append(shard[low:high])
        return np.concatenate(parts).astype(np.int64)

    def n_windows(self, seq_len: int) -> int:
        """How many windows of `seq_len` tokens, each with one more as last target, there are.

        Raises:
            HybridNormError: not even one.
        """
        count = (self.n_tokens - 1) // seq_len
        if count < 1:
            raise HybridNormError(
                f"train.seq_len: {seq_len} is longer than the {self.split} text "
                f"({self.n_tokens} tokens); lower it or add text"
            )
        return count

    def window(self, index: int, seq_len: int) -> Ids:
        """Window `index`: `seq_len` tokens and the next one."""
        return self.slice(index * seq_len, (index + 1) * seq_len + 1)

    def windows(self, seq_len: int, limit: int) -> tuple[Ids, Ids]:
        """At most `limit` windows, spread evenly: ids and targets `(windows, seq_len)`."""
        count = self.n_windows(seq_len)
        chosen = np.arange(min(count, limit)) * count // min(count, limit)
        rows = np.stack([self.window(int(index), seq_len) for index in chosen])
        return rows[:, :-1], rows[:, 1:]


class Batches:
    """Batch `step` (from 0) of a run: a pure function of the tokens, the seed and the step.

    Fixed windows in an order that a keyed permutation gives anew for every epoch, so that each
    window comes once per epoch whatever the number of ranks and the size of micro-batches.
    """

    def __init__(self, tokens: Tokens, seq_len: int, batch_size: int, seed: int) -> None:
        self.tokens, self.seq_len, self.batch_size, self.seed = tokens, seq_len, batch_size, seed
        self.n_windows = tokens.n_windows(seq_len)
        self._permutation = lru_cache(maxsize=4)(
            lambda epoch: Permutation(self.n_windows, f"{seed}/{epoch}")
        )

    def batch(self, step: int) -> tuple[Ids, Ids]:
        """Ids and targets `(batch_size, seq_len)`."""
        return self.rows(step, 0, self.batch_size)

    def rows(self, step: int, start: int, stop: int) -> tuple[Ids, Ids]:
        """Rows `start` to `stop` of batch `step`: ids and targets `(stop - start, seq_len)`."""
        first = step * self.batch_size
        windows = [self.window_at(first + row) for row in range(start, stop)]
        rows = np.stack([self.tokens.window(index, self.seq_len) for index in windows])
        return rows[:, :-1], rows[:, 1:]

    def window_at(self, position: int) -> int:
        """The window at `position` in the endless sequence of epochs."""
        epoch, index = divmod(position, self.n_windows)
        return self._permutation(epoch)[index]


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manifest["splits"], manifest["tokenizer"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise HybridNormError(f"data: {path} is missing or damaged; {_remedy(folder)}") from None
    return manifest


def _verify(path: Path, expected: str) -> None:
    try:
        intact = checksum(path) == expected
    except OSError:
        raise HybridNormError(f"data: {path} is missing; {_remedy(path.parent)}") from None
    if not intact:
        raise HybridNormError(f"data: {path} is damaged (wrong checksum); {_remedy(path.parent)}")


def _remedy(folder: Path) -> str:
    return f"delete {folder} and it is prepared anew"
