"""The manifest of a folder, from the records of its units."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridnorm.data.manifest import (
    SPLITS,
    VERSION,
    Counts,
    Manifest,
    ShardRecord,
    Split,
    SplitRecord,
    Splits,
    TokenizerRecord,
    checksum,
)
from hybridnorm.data.prepare.documents import Tally
from hybridnorm.data.prepare.formats import lines_before
from hybridnorm.data.prepare.shards import Record, dtype_of
from hybridnorm.data.tokenizer import BYTE, load_tokenizer, tokenizer_file


def manifest_of(out: Path, plan: dict[str, Any], records: Sequence[Record]) -> Manifest:
    """What the folder `out` will say about itself: its shards are there, and its tokenizer."""
    tally = Tally()
    for record in records:
        tally += record.tally
    tokenizer, file = load_tokenizer(out), tokenizer_file(out)
    return Manifest(
        version=VERSION,
        dtype="<u2" if dtype_of(tokenizer).itemsize == 2 else "<u4",
        tokenizer=TokenizerRecord(
            file="tokenizer.byte" if file.name == BYTE else "tokenizer.json",
            sha256=checksum(file),
            vocab_size=tokenizer.vocab_size,
            end_of_document=tokenizer.end_of_document,
        ),
        splits=Splits(**{name: _split(name, records) for name in SPLITS}),
        counts=Counts(**{**asdict(tally), "first_corrupt": tuple(located(tally))}),
        plan=plan,
    )


def _split(name: Split, records: Sequence[Record]) -> SplitRecord:
    shards = [record.shards[name] for record in records if name in record.shards]
    return SplitRecord(
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        text_bytes=sum(shard.text_bytes for shard in shards),
        shards=tuple(
            ShardRecord(file=it.file, tokens=it.tokens, sha256=it.sha256) for it in shards
        ),
    )


def located(tally: Tally) -> list[str]:
    """The corrupt lines that are named, with their files."""
    return [
        f"{piece.path}: line {lines_before(piece) + bad.line}: {bad.reason}"
        for piece, bad in tally.first_corrupt
    ]
