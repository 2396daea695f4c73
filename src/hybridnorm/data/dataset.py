"""One split of a prepared folder."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hybridnorm.data.manifest import Split, read_manifest
from hybridnorm.errors import HybridNormError

Ids = NDArray[np.int64]


class Tokens:
    """One split of a prepared folder, memory-mapped; `prepared.verify` reads its checksums.

    Raises:
        HybridNormError: the manifest or a shard is missing, or is damaged at first sight.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder, self.split = folder, split
        manifest = read_manifest(folder)
        record, tokenizer = manifest.split(split), manifest.tokenizer
        self.n_tokens = record.tokens
        self.tokens_per_byte = record.tokens / record.text_bytes
        """Tokens, ends of documents included, per byte of text."""
        self.end_of_document = tokenizer.end_of_document
        """The id that ends every document."""
        parts = [tokenizer.sha256, *(shard.sha256 for shard in record.shards)]
        self.fingerprint = hashlib.sha256("/".join(parts).encode()).hexdigest()
        """A hash of the content: equal for equal tokens, wherever they lie."""
        self._shards = [_mapped(path, manifest.dtype) for path in manifest.shards(folder, split)]
        self._starts = np.cumsum([0, *map(len, self._shards)])

    def slice(self, start: int, stop: int) -> Ids:
        """Tokens `start` to `stop` as int64, across shards."""
        parts = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            part = self._shards[first][start - self._starts[first] : stop - self._starts[first]]
            parts.append(part)
            start, first = start + len(part), first + 1
        return np.concatenate(parts).astype(np.int64)

    def n_windows(self, seq_len: int) -> int:
        """How many windows of `seq_len` tokens, each with one more as last target, there are.

        Raises:
            HybridNormError: not even one.
        """
        count = (self.n_tokens - 1) // seq_len
        if count < 1:
            raise HybridNormError(
                f"train.seq_len: {seq_len} is longer than the {self.split} text of {self.folder} "
                f"({self.n_tokens} tokens); lower it or add text"
            )
        return count

    def window(self, index: int, seq_len: int) -> Ids:
        """Window `index`: `seq_len` tokens and the next one, `(seq_len + 1,)`."""
        return self.slice(index * seq_len, (index + 1) * seq_len + 1)


def _mapped(path: Path, dtype: str) -> NDArray[np.unsignedinteger]:
    """The ids of a shard. Unlike NumPy's map, PyTorch's keeps no descriptor open."""
    of = {"<u2": torch.uint16, "<u4": torch.uint32}[dtype]
    size = path.stat().st_size // np.dtype(dtype).itemsize
    ids: NDArray[np.unsignedinteger] = torch.from_file(
        str(path), shared=False, size=size, dtype=of
    ).numpy()
    return ids
