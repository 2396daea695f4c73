"""A unit of work becomes a shard of each split, and a record that says so once they are there."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hybridnorm.data.config import PrepareConfig
from hybridnorm.data.manifest import SPLITS, WORK, Split, checksum
from hybridnorm.data.prepare.documents import Document, Tally, documents, with_tail_held_out
from hybridnorm.data.prepare.formats import Bad, Slice
from hybridnorm.data.prepare.inputs import Unit
from hybridnorm.data.tokenizer import TextTokenizer, load_tokenizer, tokenizer_file
from hybridnorm.files import read_json, write_whole
from hybridnorm.strict_toml import build

_BATCH_CHARS = 1 << 20  # tokenized at once: bounds the memory


@dataclass
class Shard:
    """What one unit gives one split."""

    file: str
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    sha256: str = ""


@dataclass
class Record:
    """What became of a unit."""

    tally: Tally = field(default_factory=Tally)
    shards: dict[str, Shard] = field(default_factory=dict)


class Job(NamedTuple):
    """A unit to tokenize."""

    number: int
    unit: Unit
    repeated: bytes
    """A byte for each document: whether it came before. Empty: none is looked at."""
    holds_tail: bool = False
    """Whether the end of its last document is held out, and nothing else."""

    @property
    def sides(self) -> set[bool]:
        """Whether its documents may be held out, and whether they may not."""
        splits = {piece.split for piece in self.unit}
        return {False, True} if None in splits else {split == "validation" for split in splits}

    def documents(self, config: PrepareConfig, tally: Tally) -> Iterator[Document]:
        """The documents of the unit, as `documents.documents` gives them."""
        found = documents(self.unit, config, tally, self.repeated)
        return with_tail_held_out(found, config.validation_fraction) if self.holds_tail else found


def dtype_of(tokenizer: TextTokenizer) -> np.dtype[Any]:
    """The dtype of token ids on disk."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def digest_unit(config: PrepareConfig, unit: Unit) -> tuple[NDArray[np.void], Tally]:
    """The first 16 bytes of the digest of each document, in order."""
    tally = Tally()
    found = [document.digest[:16] for document in documents(unit, config, tally)]
    return np.frombuffer(b"".join(found), dtype="V16"), tally


def tokenize_unit(folder: Path, config: PrepareConfig, job: Job) -> Record:
    """Write the shards of a unit, then its record; neither where a corrupt line is fatal.

    Raises:
        HybridNormError: an input cannot be read.
        OSError: a shard cannot be written.
    """
    tokenizer = _tokenizer(folder, checksum(tokenizer_file(folder)))
    record = Record()
    with contextlib.ExitStack() as files:
        parts = [files.enter_context(_Part(folder, name, job.number, tokenizer)) for name in SPLITS]
        for batch in _batches(job.documents(config, record.tally)):
            texts = [document.text for document in batch]
            encoded = tokenizer.encode_batch(texts)
            record.tally.dropped_characters += tokenizer.dropped(texts)
            for document, ids in zip(batch, encoded, strict=True):
                parts[document.held_out].add(document, ids)
        if record.tally.corrupt and config.bad_lines == "fail":
            return record
        record.shards = {p.split: p.publish() for p in parts if p.shard.tokens}
    write_whole(_record_path(folder, job.number), json.dumps(asdict(record)))
    return record


def read_record(folder: Path, index: int) -> Record | None:
    """The record of a unit whose shards are there and intact."""
    try:
        table = read_json(_record_path(folder, index))
        named = [(Slice(*piece), Bad(*bad)) for piece, bad in table["tally"]["first_corrupt"]]
        shards = {split: build(Shard, shard) for split, shard in table["shards"].items()}
        for split, shard in shards.items():
            path = folder / _shard_name(split, index)
            if path.name != shard.file or checksum(path) != shard.sha256:
                return None
        return Record(Tally(**{**table["tally"], "first_corrupt": named}), shards)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _shard_name(split: str, index: int) -> str:
    """The file of one unit and split."""
    return f"{split}-{index:05d}.bin"


def _record_path(folder: Path, index: int) -> Path:
    return folder / WORK / f"{index:05d}.json"


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, sha256: str) -> TextTokenizer:
    return load_tokenizer(folder)


class _Part:
    """The shard of one unit and split while it is written."""

    def __init__(self, folder: Path, split: Split, index: int, tokenizer: TextTokenizer) -> None:
        self.split = split
        self.shard = Shard(_shard_name(split, index))
        self._path = folder / self.shard.file
        self._partial = folder / WORK / f"{self.shard.file}.{os.getpid()}.part"
        self._dtype, self._end = dtype_of(tokenizer), tokenizer.end_of_document
        self._hash = hashlib.sha256()

    def __enter__(self) -> "_Part":
        self._file = self._partial.open("wb")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, document: Document, ids: list[int]) -> None:
        data = np.array([*ids, self._end], dtype=self._dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self.shard.tokens += len(ids) + 1
        self.shard.documents += 1
        self.shard.text_bytes += len(document.text.encode())

    def publish(self) -> Shard:
        """Give the complete shard its name."""
        self._file.close()
        self._partial.rename(self._path)
        self.shard.sha256 = self._hash.hexdigest()
        return self.shard


def _batches(items: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    chars = 0
    for document in items:
        batch.append(document)
        chars += len(document.text)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
