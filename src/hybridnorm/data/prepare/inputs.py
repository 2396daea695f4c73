"""Units of work, cut by content alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hybridnorm.data.prepare.columnar import DATASET, PARQUET
from hybridnorm.data.prepare.demo import DEMO
from hybridnorm.data.prepare.formats import TEXT_FORMATS, Slice
from hybridnorm.errors import HybridNormError

FORMATS = {**TEXT_FORMATS, ".parquet": PARQUET, "dataset": DATASET, "demo": DEMO}
_UNITS = 64  # of an input, where that makes units of a size between these
_SMALLEST, _LARGEST = 1 << 20, 1 << 25  # bytes


class Source(NamedTuple):
    """A file, or the folder of a dataset."""

    path: Path
    format: str
    split: str | None = None
    """The split it belongs to. None: a hash decides for each document."""

    @property
    def files(self) -> list[Path]:
        return sorted(self.path.glob("*")) if self.format == "dataset" else [self.path]


Unit = tuple[Slice, ...]


def size_of(unit: Unit) -> int:
    """Bytes on disk, about."""
    return sum(piece.size for piece in unit)


def cut_units(sources: Sequence[Source]) -> list[Unit]:
    """Units of about the same size: parts of large inputs, small inputs together.

    Raises:
        HybridNormError: an input cannot be read.
    """
    total = sum(file.stat().st_size for source in sources for file in source.files)
    target = min(max(total // _UNITS, _SMALLEST), _LARGEST)
    units: list[Unit] = []
    group: list[Slice] = []
    size = 0
    for piece in _slices(sources, target):
        group.append(piece)
        size += piece.size
        if size >= target // 2:
            units.append(tuple(group))
            group, size = [], 0
    return [*units, tuple(group)] if group else units


def _slices(sources: Sequence[Source], target: int) -> Iterator[Slice]:
    for path, kind, split in sources:
        try:
            for start, stop, size in FORMATS[kind].cut(path, target):
                yield Slice(str(path), kind, start, stop, size, split)
        except OSError as error:
            raise HybridNormError(f"cannot read {path}: {error.strerror}") from None
