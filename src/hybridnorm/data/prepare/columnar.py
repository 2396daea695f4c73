"""Parquet files and Hugging Face datasets saved to disk; each needs an extra."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridnorm.data.prepare.formats import Bad, Format, Slice, Text, checked, optional_module
from hybridnorm.errors import HybridNormError

_ROWS = 1000  # read at a time


def is_dataset(path: Path) -> bool:
    """Whether a folder is what `Dataset.save_to_disk` writes."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _parquet(path: Path) -> Any:
    parquet = optional_module("pyarrow.parquet", "parquet", path)
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
        raise HybridNormError(f"{path} is not a parquet file: {_first_line(error)}") from None


def _cut_parquet(path: Path, target: int) -> list[tuple[int, int, int]]:
    metadata = _parquet(path).metadata
    slices, start, size = [], 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= target or group == metadata.num_row_groups - 1:
            slices.append((start, group + 1, size))
            start, size = group + 1, 0
    return slices


def _read_parquet(piece: Slice, text_field: str) -> Iterator[Text | Bad]:
    file = _parquet(Path(piece.path))
    _require_column(text_field, file.schema_arrow.names, piece.path)
    row = sum(file.metadata.row_group(group).num_rows for group in range(piece.start))
    batches = file.iter_batches(
        batch_size=_ROWS,
        row_groups=range(piece.start, piece.stop),
        columns=[text_field],
        use_threads=False,
    )
    try:
        for batch in batches:
            for text in batch.column(0).to_pylist():
                row += 1
                yield checked(text, text_field, row)
    except (OSError, ValueError) as error:
        yield Bad(row + 1, f"the row group is corrupt from here on: {_first_line(error)}")


def _dataset(path: str) -> Any:
    datasets = optional_module("datasets", "datasets", path)
    try:
        return datasets.load_from_disk(path)
    except (OSError, ValueError) as error:
        raise HybridNormError(f"{path} is a damaged dataset: {_first_line(error)}") from None


def _cut_dataset(path: Path, target: int) -> list[tuple[int, int, int]]:
    rows = len(_dataset(str(path)))
    size = sum(file.stat().st_size for file in path.glob("*.arrow"))
    step = max(1, rows * target // max(size, 1))
    return [(start, min(start + step, rows), size * step // rows) for start in range(0, rows, step)]


def _read_dataset(piece: Slice, text_field: str) -> Iterator[Text | Bad]:
    dataset = _dataset(piece.path)
    _require_column(text_field, dataset.column_names, piece.path)
    dataset = dataset.select_columns([text_field])
    for start in range(piece.start, piece.stop, _ROWS):
        rows = dataset[start : min(start + _ROWS, piece.stop)][text_field]
        for row, text in enumerate(rows, start=start + 1):
            yield checked(text, text_field, row)


def _require_column(name: str, names: list[str], path: str) -> None:
    if name not in names:
        raise HybridNormError(
            f"{path}: no column {name!r}, only {', '.join(names)}; set text_field"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


PARQUET = Format(_cut_parquet, _read_parquet)
DATASET = Format(_cut_dataset, _read_dataset)
