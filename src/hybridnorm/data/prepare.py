"""Text to a folder of token shards, written once and found again by what determines it.

prepared/demo-bpe4096-1a2b3c4d/manifest.json     dtype, counts, checksums, tokenizer
prepared/demo-bpe4096-1a2b3c4d/train-00000.bin   token ids, little-endian, documents end to end
prepared/demo-bpe4096-1a2b3c4d/tokenizer.json
"""

import contextlib
import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from hybridnorm.data.config import DataConfig
from hybridnorm.data.corpus import Document, documents, is_held_out, source_files
from hybridnorm.data.tokenizer import (
    BYTE,
    JSON,
    ByteTokenizer,
    TextTokenizer,
    load_tokenizer,
    train_bpe,
)
from hybridnorm.errors import HybridNormError

MANIFEST = "manifest.json"
VERSION = 1
_SHARD_TOKENS = 1 << 26
_BATCH = 1000  # documents tokenized at once


def prepare(config: DataConfig, *, console: Console) -> Path:
    """The folder of the config's token shards; made if it is not there yet.

    Raises:
        HybridNormError: a missing or corrupt source or tokenizer, no text in a split, or a cache
            folder that cannot be written.
    """
    folder = Path(config.cache) / _name(config)
    if not (folder / MANIFEST).exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
            try:
                _write(config, partial, console)
                _publish(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise HybridNormError(
                f"data.cache: cannot write {folder}: {error.strerror}; set another --data.cache"
            ) from None
    return folder


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(config: DataConfig) -> str:
    """A readable name and a hash of everything that determines the content."""
    stats = [(str(path), path.stat()) for path in source_files(config)]
    parts: list[Any] = [VERSION, config.tokenizer, config.tokenizer_vocab_size, config.text_field]
    parts += [config.validation_fraction, *[(n, s.st_size, s.st_mtime_ns) for n, s in stats]]
    kind = config.tokenizer
    if kind not in ("bpe", "byte"):
        load_tokenizer(Path(kind))
        parts.append(checksum(Path(kind)))
        kind = Path(kind).stem
    size = config.tokenizer_vocab_size if kind == "bpe" else ""
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]
    return f"{Path(config.source).stem}-{kind}{size}-{digest}"


def _write(config: DataConfig, folder: Path, console: Console) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("training the tokenizer" if config.tokenizer == "bpe" else "")
        tokenizer = _tokenizer(config)
        tokenizer.save(folder)
        splits = {name: _Split(folder, name, tokenizer) for name in ("train", "validation")}
        with contextlib.ExitStack() as files:
            for split in splits.values():
                files.callback(split.close)
            for batch in _batched(documents(config), _BATCH):
                ids = tokenizer.encode_batch([document.text for document in batch])
                for document, tokens in zip(batch, ids, strict=True):
                    held_out = is_held_out(document, config.validation_fraction)
                    splits["validation" if held_out else "train"].add(document, tokens)
                counts = sum(split.tokens for split in splits.values())
                progress.update(task, description=f"tokenizing: {counts:,} tokens")
    for split in splits.values():
        if not split.tokens:
            raise HybridNormError(
                f"data.source: {config.source} leaves the {split.name} split empty; add text, or "
                "change data.validation_fraction (documents are split as wholes)"
            )
    file = JSON if (folder / JSON).exists() else BYTE
    manifest = {
        "version": VERSION,
        "dtype": splits["train"].dtype.str,
        "tokenizer": {
            "file": file,
            "sha256": checksum(folder / file),
            "vocab_size": tokenizer.vocab_size,
            "end_of_document": tokenizer.end_of_document,
        },
        "splits": {name: split.record() for name, split in splits.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _tokenizer(config: DataConfig) -> TextTokenizer:
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer != "bpe":
        return load_tokenizer(Path(config.tokenizer))
    texts = (
        document.text
        for document in documents(config)
        if not is_held_out(document, config.validation_fraction)
    )
    return train_bpe(texts, config.tokenizer_vocab_size)


@dataclass
class _Split:
    """The shards of one split while they are written."""

    folder: Path
    name: str
    tokenizer: TextTokenizer
    tokens: int = 0
    documents: int = 0
    text_bytes: int = 0
    shards: list[Path] = field(default_factory=list)
    file: BinaryIO | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    def add(self, document: Document, tokens: list[int]) -> None:
        if self.file is None or self.file.tell() >= _SHARD_TOKENS * self.dtype.itemsize:
            self.close()
            self.shards.append(self.folder / f"{self.name}-{len(self.shards):05d}.bin")
            self.file = self.shards[-1].open("wb")
        ids = np.array([*tokens, self.tokenizer.end_of_document], dtype=self.dtype)
        self.file.write(ids.tobytes())
        self.tokens += len(ids)
        self.documents += 1
        self.text_bytes += len(document.text.encode("utf-8", "replace"))

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def record(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "shards": [
                {"file": p.name, "bytes": p.stat().st_size, "sha256": checksum(p)}
                for p in self.shards
            ],
        }


def _batched(items: Iterable[Document], size: int) -> Iterator[list[Document]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _publish(partial: Path, folder: Path) -> None:
    """Give the complete folder its name, unless another process was faster."""
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / MANIFEST).exists():
            raise
