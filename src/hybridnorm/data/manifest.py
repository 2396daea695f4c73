"""What a prepared folder says about itself: read strictly, whoever wrote it."""

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from hybridnorm.data.config import MAX_VOCAB
from hybridnorm.errors import HybridNormError, naming
from hybridnorm.files import read_json, read_text, write_whole
from hybridnorm.ranges import Count, Natural, Ranged
from hybridnorm.strict_toml import build

MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
"""The checksum of the manifest; older folders have none."""
VERSION = 2
WORK = "unfinished"
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class ShardRecord(Ranged):
    """A file of token ids."""

    file: str
    tokens: Count
    sha256: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(rf"({'|'.join(SPLITS)})-\d+\.bin", self.file):
            raise HybridNormError(f"file: {self.file!r} is no name of a shard")


@dataclass(frozen=True, kw_only=True)
class SplitRecord(Ranged):
    """One split: what it was made from, and its files."""

    tokens: Count
    documents: Count
    text_bytes: Count
    shards: tuple[ShardRecord, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if (held := sum(shard.tokens for shard in self.shards)) != self.tokens:
            raise HybridNormError(f"tokens: {self.tokens}, but its shards hold {held}")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Both splits."""

    train: SplitRecord
    validation: SplitRecord


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord(Ranged):
    """The tokenizer that made the ids."""

    file: Literal["tokenizer.json", "tokenizer.byte"]
    sha256: str
    vocab_size: Count
    end_of_document: Natural

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.end_of_document < self.vocab_size <= MAX_VOCAB:
            raise HybridNormError(
                f"end_of_document: {self.end_of_document} of {self.vocab_size} ids cannot be"
            )


@dataclass(frozen=True, kw_only=True)
class Counts(Ranged):
    """What was not taken as it was."""

    duplicates: Natural
    near_empty: Natural
    over_long: Natural
    corrupt: Natural
    dropped_characters: Natural = 0
    first_corrupt: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest(Ranged):
    """All that a prepared folder says about itself."""

    version: Natural
    dtype: Literal["<u2", "<u4"]
    """Of the ids on disk."""
    tokenizer: TokenizerRecord
    splits: Splits
    counts: Counts
    plan: dict[str, Any]
    """What determined the content."""

    def split(self, name: Split) -> SplitRecord:
        """The record of a split."""
        record: SplitRecord = getattr(self.splits, name)
        return record

    def shards(self, folder: Path, name: Split) -> list[Path]:
        """The files of a split.

        Raises:
            HybridNormError: one is missing, is no file of the folder itself, or has another length
                than is said here.
        """
        found = []
        for shard in self.split(name).shards:
            path = own_file(folder, shard.file)
            if path.stat().st_size != shard.tokens * np.dtype(self.dtype).itemsize:
                raise HybridNormError(
                    f"{path} is damaged (not {shard.tokens} tokens long); {remedy(folder)}"
                )
            found.append(path)
        return found


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder.

    Raises:
        HybridNormError: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.exists():
        left = "its preparation is unfinished" if (folder / WORK).exists() else f"no {MANIFEST}"
        raise HybridNormError(
            f"{folder} is not a prepared folder ({left}); make it with: "
            f"hybridnorm prepare TEXT --out {folder}"
        )
    own_file(folder, MANIFEST)
    try:
        seal = folder / SEAL
        if seal.exists() and read_text(own_file(folder, SEAL)) != checksum(path):
            raise HybridNormError(f"{path} is damaged (wrong checksum)")
        table = read_json(path)
        if table.get("version") != VERSION:
            raise HybridNormError(f"{path} is of another version of hybridnorm")
        with naming(path):
            return build(Manifest, table)
    except HybridNormError as error:
        raise HybridNormError(f"{error}; {remedy(folder)}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it and its checksum; a folder with it is complete.

    Raises:
        HybridNormError: it cannot be written.
    """
    content = json.dumps(asdict(manifest), indent=1)
    write_whole(folder / SEAL, hashlib.sha256(content.encode()).hexdigest())
    write_whole(folder / MANIFEST, content)


def own_file(folder: Path, name: str) -> Path:
    """`folder/name`, which must be a file there: no link to elsewhere, no device, no pipe.

    Raises:
        HybridNormError: it is not.
    """
    path = folder / name
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        raise HybridNormError(f"{path} is missing; {remedy(folder)}") from None
    if not is_file:
        raise HybridNormError(f"{path} is no regular file; put a copy in its place")
    return path


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remedy(folder: Path) -> str:
    """What to do about a damaged folder."""
    return f"delete {folder} and prepare it anew"


def report(folder: Path, manifest: Manifest) -> Table:
    """The counts of a prepared folder as a table."""
    splits = [vars(manifest.split(name)) for name in SPLITS]
    total = {k: sum(s[k] for s in splits) for k in ("documents", "tokens", "text_bytes")}
    columns = [*splits, total]
    table = Table(title=str(folder), title_justify="left", caption_justify="left")
    for heading in ("", *SPLITS, "total"):
        table.add_column(heading, justify="right" if heading else "left")
    for title, key in (("documents", "documents"), ("tokens", "tokens"), ("bytes", "text_bytes")):
        table.add_row(title, *(f"{column[key]:,}" for column in columns))
    ratios = (column["tokens"] / column["text_bytes"] for column in columns)
    table.add_row("tokens per byte", *(f"{ratio:.4f}" for ratio in ratios), end_section=True)
    counts = manifest.counts
    for title, count in (
        ("duplicates, dropped", counts.duplicates),
        ("near-empty, dropped", counts.near_empty),
        ("over-long, cut", counts.over_long),
        ("corrupt lines, skipped", counts.corrupt),
    ):
        table.add_row(title, "", "", f"{count:,}")
    if counts.dropped_characters:
        table.add_row("characters without a token", "", "", f"{counts.dropped_characters:,}")
    if lines := counts.first_corrupt:
        table.caption = "\n".join(["first corrupt lines:", *lines])
    return table
