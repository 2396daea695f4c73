"""Parquet files and Hugging Face datasets saved to disk; each needs an extra."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from hybridnorm.data.prepare.formats import Bad, Format, Slice, Text, checked, optional_module
from hybridnorm.errors import HybridNormError, in_a_line

_ROWS = 1000  # read at a time


def is_dataset(path: Path) -> bool:
    """Whether a folder is what `Dataset.save_to_disk` writes."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _damage() -> tuple[type[Exception], ...]:
    """What pyarrow raises."""
    pyarrow = import_module("pyarrow")
    return (OSError, ValueError, OverflowError, pyarrow.ArrowException)


def _parquet(path: Path) -> Any:
    parquet = optional_module("pyarrow.parquet", "parquet", path)
    try:
        return parquet.ParquetFile(path)
    except _damage() as error:
        raise HybridNormError(f"{path} is not a parquet file: {in_a_line(error)}") from None


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
    rows = [file.metadata.row_group(group).num_rows for group in range(piece.stop)]
    for group in range(piece.start, piece.stop):
        row, end = sum(rows[:group]), sum(rows[: group + 1])
        batches = file.iter_batches(
            batch_size=_ROWS, row_groups=[group], columns=[text_field], use_threads=False
        )
        try:
            for batch in batches:
                yield from _texts(batch.column(0), text_field, row)
                row += len(batch)
        except _damage() as error:
            reason = f"row group {group} is corrupt from here on: {in_a_line(error)}"
            yield Bad(row + 1, reason, max(end - row, 1))


def _texts(column: Any, text_field: str, row: int) -> Iterator[Text | Bad]:
    """The values of a column, whose first is row `row` + 1; each is checked before it is read."""
    damage = _damage()
    try:
        column.validate(full=True)
        is_sound = True
    except damage:
        is_sound = False
    for place in range(len(column)):
        try:
            if not is_sound:
                column.slice(place, 1).validate(full=True)
            yield checked(column[place].as_py(), text_field, row + place + 1)
        except damage as error:
            yield Bad(row + place + 1, f"{text_field!r} is corrupt: {in_a_line(error)}")


def _dataset(path: str) -> Any:
    datasets = optional_module("datasets", "datasets", path)
    try:
        dataset = datasets.load_from_disk(path)
    except Exception as error:  # the library raises whatever it stumbles over
        raise HybridNormError(f"{path} is a damaged dataset: {in_a_line(error)}") from None
    for file in dataset.cache_files:
        if Path(file["filename"]).resolve().parent != Path(path).resolve():
            raise HybridNormError(f"{path} is a damaged dataset: it names {file['filename']}")
    return dataset


def _cut_dataset(path: Path, target: int) -> list[tuple[int, int, int]]:
    rows = len(_dataset(str(path)))
    size = sum(file.stat().st_size for file in path.glob("*.arrow"))
    step = max(1, rows * target // max(size, 1))
    return [(start, min(start + step, rows), size * step // rows) for start in range(0, rows, step)]


def _read_dataset(piece: Slice, text_field: str) -> Iterator[Text | Bad]:
    dataset = _dataset(piece.path)
    _require_column(text_field, dataset.column_names, piece.path)
    dataset = dataset.select_columns([text_field]).with_format("arrow")
    for start in range(piece.start, piece.stop, _ROWS):
        rows = dataset[start : min(start + _ROWS, piece.stop)]
        yield from _texts(rows.column(0), text_field, start)


def _require_column(name: str, names: list[str], path: str) -> None:
    if name not in names:
        raise HybridNormError(
            f"{path}: no column {name!r}, only {', '.join(names)}; set text_field"
        )


PARQUET = Format(_cut_parquet, _read_parquet)
DATASET = Format(_cut_dataset, _read_dataset)
