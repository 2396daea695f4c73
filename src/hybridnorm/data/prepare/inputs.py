"""From the names a user gives to units of work, cut by content alone."""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hybridnorm.data.prepare.columnar import DATASET, PARQUET, is_dataset
from hybridnorm.data.prepare.demo import DEMO, demo_path
from hybridnorm.data.prepare.formats import TEXT_FORMATS, Slice
from hybridnorm.errors import HybridNormError

FORMATS = {**TEXT_FORMATS, ".parquet": PARQUET, "dataset": DATASET, "demo": DEMO}
_SUFFIXES = tuple(name for name in FORMATS if name.startswith("."))
_UNITS = 64  # of an input, where that makes units of a size between these
_SMALLEST, _LARGEST = 1 << 20, 1 << 25  # bytes


class Source(NamedTuple):
    """A file, or the folder of a dataset."""

    path: Path
    format: str

    @property
    def files(self) -> list[Path]:
        return sorted(self.path.glob("*")) if self.format == "dataset" else [self.path]


Unit = tuple[Slice, ...]


def size_of(unit: Unit) -> int:
    """Bytes on disk, about."""
    return sum(piece.size for piece in unit)


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The sources that the inputs name: demo, files, folders, globs and saved datasets.

    Files come in the order of the inputs, those of a folder or glob sorted.

    Raises:
        HybridNormError: an input that does not exist, or holds nothing that can be read.
    """
    if not inputs:
        raise HybridNormError("inputs: name demo, a file, a folder or a glob")
    return [source for name in inputs for source in _named(name)]


def _named(name: str) -> Iterator[Source]:
    path = Path(name)
    if name == "demo":
        yield Source(demo_path(), "demo")
    elif path.is_file():
        if not (suffix := _suffix(path)):
            raise HybridNormError(f"{path} is none of {', '.join(_SUFFIXES)}")
        yield Source(path, suffix)
    elif path.is_dir():
        yield from _folder(path)
    elif glob.has_magic(name):
        found = [Path(match) for match in sorted(glob.glob(name, recursive=True))]  # noqa: PTH207
        usable = [match for match in found if match.is_dir() or _suffix(match)]
        if not usable:
            raise HybridNormError(f"{name} matches no folder and no {', '.join(_SUFFIXES)} file")
        for match in usable:
            yield from _named(str(match))
    else:
        raise HybridNormError(f"{path} does not exist; name demo, a file, a folder or a glob")


def _folder(path: Path) -> Iterator[Source]:
    if is_dataset(path):
        yield Source(path, "dataset")
        return
    if (path / "dataset_dict.json").is_file():
        found = [Source(p, "dataset") for p in sorted(path.iterdir()) if is_dataset(p)]
    else:
        files = sorted(p for p in path.rglob("*") if p.is_file())
        found = [Source(p, suffix) for p in files if (suffix := _suffix(p))]
    if not found:
        raise HybridNormError(f"{path} has no {', '.join(_SUFFIXES)} file")
    yield from found


def _suffix(path: Path) -> str:
    return next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), "")


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
    for path, kind in sources:
        try:
            for start, stop, size in FORMATS[kind].cut(path, target):
                yield Slice(str(path), kind, start, stop, size)
        except OSError as error:
            raise HybridNormError(f"cannot read {path}: {error.strerror}") from None
