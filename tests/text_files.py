"""The same documents in every format, and what preparation reads of a file."""

import gzip
import json
from pathlib import Path

import pytest

from hybridnorm.data.config import PrepareConfig
from hybridnorm.data.prepare.documents import Tally, documents
from hybridnorm.data.prepare.inputs import cut_units
from hybridnorm.data.prepare.sources import find_sources

TEXTS = [f"Document {i}: naïve ∂x 🙂\n\n{'words ' * (i % 50)}end" for i in range(300)]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))


def write_jsonl(folder: Path) -> Path:
    (folder / "t.jsonl").write_text(LINES)
    return folder / "t.jsonl"


def write_txt(folder: Path) -> Path:
    (folder / "t.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    return folder / "t.txt"


def write_gzip(folder: Path) -> Path:
    with gzip.open(folder / "t.json.gz", "wb") as file:
        file.write(LINES.encode())
    return folder / "t.json.gz"


def write_zstd(folder: Path) -> Path:
    zstandard = pytest.importorskip("zstandard")
    # Two frames one after the other, as parallel compressors write them.
    half = LINES.index("\n", len(LINES) // 2) - 3
    frames = (zstandard.ZstdCompressor().compress(s.encode()) for s in (LINES[:half], LINES[half:]))
    (folder / "t.jsonl.zst").write_bytes(b"".join(frames))
    return folder / "t.jsonl.zst"


def write_parquet(folder: Path) -> Path:
    import pyarrow.parquet

    table = pyarrow.table({"id": range(len(TEXTS)), "text": TEXTS})
    pyarrow.parquet.write_table(table, folder / "t.parquet", row_group_size=70)
    return folder / "t.parquet"


def write_dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved")
    return folder / "saved"


def read(*names: object, tally: Tally | None = None, **fields: object) -> list[str]:
    config = PrepareConfig(**{"bad_lines": "skip", **fields})  # type: ignore[arg-type]
    units = cut_units(find_sources([str(name) for name in names]).sources)
    tally = tally or Tally()
    return [d.text for unit in units for d in documents(unit, config, tally)]
