"""From the names a user gives to the files behind them: text for training, text held out."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hybridnorm.data.prepare.columnar import is_dataset
from hybridnorm.data.prepare.demo import demo_path
from hybridnorm.data.prepare.inputs import FORMATS, Source
from hybridnorm.errors import HybridNormError

_SUFFIXES = tuple(name for name in FORMATS if name.startswith("."))
_SHOWN = 8  # names in a list
_SPLITS = {
    word: split
    for split, words in {
        "train": "train training",
        "validation": "validation valid val dev",
        "test": "test testing eval evaluation",
    }.items()
    for word in words.split()
}
_NUMBER = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?([-_.][0-9a-f]+)?$")  # -00000-of-00008
_RUN = {"recipe.toml", "environment.json"}
_ABOUT = ("readme", "license", "licence")  # of the files beside them


class Found(NamedTuple):
    """What the inputs come to."""

    sources: list[Source]
    passed_over: list[str]
    """What a folder holds that is no training text."""

    def lines(self) -> Iterator[str]:
        """Which files are taken, and which are not."""
        held_out = [str(source.path) for source in self.sources if source.split == "validation"]
        text = [str(source.path) for source in self.sources if source.split != "validation"]
        for title, names in (
            ("text", text),
            ("held out", held_out),
            ("passed over", self.passed_over),
        ):
            if names:
                more = f", and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
                yield f"{title} ({len(names):,}): {', '.join(names[:_SHOWN])}{more}"


def find_sources(inputs: Sequence[str], validation: str | None = None) -> Found:
    """The sources that the inputs name: demo, files, folders, globs and saved datasets.

    Files come in the order of the inputs, those of a folder or glob sorted; one that is named twice
    comes once. Of a folder with a split called train, the one called validation is held out and the
    one called test is passed over, as are hidden files, read-me files and runs of ours.

    Args:
        validation: names what is held out in place of that.

    Raises:
        HybridNormError: an input that does not exist, or holds nothing that can be read, or a
            folder with a validation or test split and none to train on.
    """
    if not inputs:
        raise HybridNormError("inputs: name demo, a file, a folder or a glob")
    passed: list[str] = []
    found = [] if validation is None else _named(validation, passed)
    found = [source._replace(split="validation") for source in found]
    held_out = {source.path.resolve() for source in found}
    for name in inputs:
        for source in _training(_named(name, passed), held_out, passed):
            if held_out and source.split == "validation":
                passed.append(f"{source.path} (validation split)")
            else:
                found.append(source)
    # Held-out text first: of duplicates, the first is kept.
    found.sort(key=lambda source: source.split != "validation")
    unique: dict[Path, Source] = {}
    for source in found:
        if unique.setdefault(source.path.resolve(), source) is not source:
            passed.append(f"{source.path} (named twice)")
    others = "train" if found[0].split == "validation" else None
    taken = [
        it if it.split == "validation" else it._replace(split=others) for it in unique.values()
    ]
    return Found(taken, passed)


def _training(found: list[Source], held_out: set[Path], passed: list[str]) -> Iterator[Source]:
    """What a name stands for, without what is held out and a test split."""
    found = [source for source in found if source.path.resolve() not in held_out]
    other = next((source for source in found if source.split not in (None, "train")), None)
    if other and all(source.split != "train" for source in found):
        everything = other.path.parent / f"*{_suffix(other.path)}"
        raise HybridNormError(
            f"{other.path} looks like a {other.split} split, and nothing beside it is called train;"
            f" name the files to train on, or all of them by a glob such as '{everything}'"
        )
    for source in found:
        if source.split == "test":
            passed.append(f"{source.path} (test split)")
        else:
            yield source


def _named(name: str, passed: list[str]) -> list[Source]:
    """What a name stands for; in a folder, with the splits that its files are called by."""
    path, known = Path(name), ", ".join(_SUFFIXES)
    if name == "demo":
        return [Source(demo_path(), "demo")]
    try:
        if name and path.is_file():
            found, problem = _files([path]), f"is none of {known}"
        elif name and path.is_dir():
            found, problem = _folder(path, passed), f"has no {known} file"
        elif glob.has_magic(name):
            matches = map(Path, sorted(glob.glob(name, recursive=True)))  # noqa: PTH207
            found = [source for match in matches for source in _matched(match, passed)]
            problem = f"matches no folder and no {known} file"
        else:
            found, problem = [], "is no file or folder" if path.exists() else "does not exist"
            problem = f"{problem}; name demo, a file, a folder or a glob"
    except OSError as error:
        raise HybridNormError(f"cannot read {name}: {error.strerror}") from None
    if not found:
        besides = f" (passed over: {', '.join(passed[:_SHOWN])})" if passed else ""
        raise HybridNormError(f"{name or 'the empty name'} {problem}{besides}")
    return found


def _matched(path: Path, passed: list[str]) -> list[Source]:
    if path.is_dir():
        return _folder(path, passed)
    if _is_run(path.parent):
        passed.append(f"{path} (of a run)")
        return []
    return _files([path])


def _folder(path: Path, passed: list[str]) -> list[Source]:
    """All text below a folder, or the datasets in it."""
    if is_dataset(path):
        return [Source(path, "dataset")]
    if (path / "dataset_dict.json").is_file():
        parts = [part for part in sorted(path.iterdir()) if is_dataset(part)]
        return [Source(part, "dataset", split_of(part.name)) for part in parts]
    found = []
    for source in _files(sorted(_walked(path, passed))):
        file = source.path.relative_to(path)
        stem = file.name[: -len(source.format)]
        if stem.lower() in _ABOUT:
            passed.append(str(source.path))
            continue
        folders = (_SPLITS.get(part.lower()) for part in reversed(file.parts[:-1]))
        found.append(source._replace(split=split_of(stem) or next(filter(None, folders), None)))
    return found


def _walked(path: Path, passed: list[str]) -> Iterator[Path]:
    """Every file below a folder that is not hidden and not of a run.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(path, onerror=fail):
        folder = Path(here)
        if _is_run(folder):
            passed.append(f"{folder} (a run)")
            folders.clear()
            continue
        passed += [str(folder / name) for name in (*folders, *files) if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (folder / name for name in files if not name.startswith("."))


def _is_run(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _RUN)


def _files(paths: Iterable[Path]) -> list[Source]:
    """Those of a known format."""
    return [Source(path, kind) for path in paths if (kind := _suffix(path)) and path.is_file()]


def _suffix(path: Path) -> str:
    return next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), "")


def split_of(stem: str) -> str | None:
    """The split that a name begins or ends with, the number of a shard aside: c4-train.00000."""
    words = re.split(r"[-_.]", _NUMBER.sub("", stem.lower()))
    return _SPLITS.get(words[0]) or _SPLITS.get(words[-1])
