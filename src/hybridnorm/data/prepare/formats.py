"""Text files and JSON lines: how each format is cut into slices, and how a slice is read.

A format never reads a whole large file: what can be cut is cut where a line or a document ends,
and what cannot (a compressed stream) is read as it comes.
"""

import codecs
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from hybridnorm.data.tokenizer import END_OF_DOCUMENT
from hybridnorm.errors import HybridNormError

_LINE_LIMIT = 1 << 26  # bytes; what goes on longer without an end is no line
_LARGEST_WINDOW = 1 << 31  # of zstd --ultra --long=31, the largest there is
_WINDOW = 1 << 20  # bytes looked through for a place to cut a text
_SEPARATOR = re.compile(rf"(?m)(?:^|\r?\n){re.escape(END_OF_DOCUMENT)}\r?(?:\n|\Z)")
_SEPARATOR_BYTES = re.compile(_SEPARATOR.pattern.encode())


class Slice(NamedTuple):
    """A part of one input, small enough to work on, unless its format cannot be cut."""

    path: str
    format: str
    start: int
    """First byte of a text file, row group of a parquet file, row of a dataset."""
    stop: int
    size: int
    """Bytes on disk, about."""
    split: str | None
    """The split it belongs to, all of it. None: a hash decides for each document."""


class Text(NamedTuple):
    """A document, before it is cut and filtered."""

    text: str
    key: str | None
    """Its hash decides whether the document is held out. None: that of each of its pieces."""


class Bad(NamedTuple):
    """A line that cannot be read; counted from 1 at the start of the slice's text."""

    line: int
    reason: str
    lines: int = 1
    """How many lines are lost with it, from it on."""


class Format(NamedTuple):
    """`cut(path, target)` gives slices of about `target` bytes; `read(slice, text_field)` what is
    in one."""

    cut: Callable[[Path, int], list[tuple[int, int, int]]]
    """Start, stop and size of each slice."""
    read: Callable[[Slice, str], Iterator[Text | Bad]]


def optional_module(name: str, extra: str, path: object) -> Any:
    """A module of an extra.

    Raises:
        HybridNormError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise HybridNormError(
            f"{path}: needs {name.partition('.')[0]}; run: pip install 'hybridnorm[{extra}]'"
        ) from None


def checked(text: object, field: str, line: int) -> Text | Bad:
    """The value of a document's field, if it is text."""
    if not isinstance(text, str):
        return Bad(line, f"{field!r} is not a string")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return Bad(line, f"{field!r} is not Unicode (half of a surrogate pair)")
    return Text(text, text)


def lines_before(piece: Slice) -> int:
    """Lines of the file before the slice, for formats whose slices start at a byte."""
    if piece.format not in (".txt", ".md", ".jsonl"):
        return 0
    with Path(piece.path).open("rb") as file:
        blocks = iter(lambda: file.read(min(_WINDOW, max(piece.start - file.tell(), 0))), b"")
        return sum(block.count(b"\n") for block in blocks)


def _cut_text(path: Path, target: int) -> list[tuple[int, int, int]]:
    return _cut(path, target, _after_document)


def _cut_lines(path: Path, target: int) -> list[tuple[int, int, int]]:
    return _cut(path, target, _after_line)


def uncut(path: Path, target: int) -> list[tuple[int, int, int]]:
    """One slice: the whole file."""
    size = path.stat().st_size
    return [(0, size, size)]


def _cut(
    path: Path, target: int, after: Callable[[BinaryIO, int], int]
) -> list[tuple[int, int, int]]:
    size, edges = path.stat().st_size, [0]
    with path.open("rb") as file:
        _refuse_binary(path, file.read(_WINDOW))
        while edges[-1] + target < size:
            edges.append(min(after(file, edges[-1] + target), size))
    if edges[-1] < size:
        edges.append(size)
    return [(a, b, b - a) for a, b in itertools.pairwise(edges)]


def _refuse_binary(path: Path, head: bytes) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise HybridNormError(
            f"{path} is UTF-16, not UTF-8; convert it (iconv -f UTF-16 -t UTF-8), or leave it out"
        )
    if b"\0" in head:
        raise HybridNormError(f"{path} is not text (it holds NUL bytes); leave it out")


def _after_line(file: BinaryIO, at: int) -> int:
    file.seek(at)
    while (line := file.readline(_WINDOW)) and not line.endswith(b"\n"):
        pass
    return file.tell()


def _after_document(file: BinaryIO, at: int) -> int:
    """Where a document, else a paragraph, else a line, else at least a character ends."""
    file.seek(at)
    window = file.read(_WINDOW)
    if found := _SEPARATOR_BYTES.search(window):
        return at + found.end()
    if len(window) < _WINDOW:  # the last document
        return at + len(window)
    for ending in (b"\n\n", b"\n"):
        if (position := window.find(ending)) >= 0:
            return at + position + len(ending)
    return at + next((i for i, byte in enumerate(window) if byte & 0xC0 != 0x80), len(window))


def _read_text(piece: Slice, text_field: str) -> Iterator[Text | Bad]:
    with Path(piece.path).open("rb") as file:
        file.seek(piece.start)
        data = file.read(piece.stop - piece.start)
    try:
        text = _decoded(data)
    except ValueError:
        kept = []
        for number, line in enumerate(data.split(b"\n"), start=1):
            try:
                kept.append(_decoded(line))
            except ValueError:
                yield Bad(number, "not UTF-8")
        text = "\n".join(kept)
    *documents, rest = _SEPARATOR.split(text)
    for document in [*documents, rest] if rest else documents:
        yield Text(document.removeprefix("\ufeff"), None)


def _decoded(data: bytes) -> str:
    """The text of UTF-8; what holds NUL is UTF-16 or no text at all, though it decodes."""
    if b"\0" in data:
        raise ValueError("NUL")
    return data.decode("utf-8")


def _read_lines(piece: Slice, text_field: str) -> Iterator[Text | Bad]:
    with Path(piece.path).open("rb") as file:
        file.seek(piece.start)
        yield from _json_lines(file, piece.stop - piece.start, text_field)


def _read_gzip(piece: Slice, text_field: str) -> Iterator[Text | Bad]:
    with gzip.open(piece.path) as file:
        damage = (EOFError, zlib.error, gzip.BadGzipFile)
        yield from _json_lines(cast(BinaryIO, file), sys.maxsize, text_field, damage)


def _read_zstd(piece: Slice, text_field: str) -> Iterator[Text | Bad]:
    zstandard = optional_module("zstandard", "zstd", piece.path)
    with Path(piece.path).open("rb") as raw:
        file = io.BufferedReader(
            _Zstd(raw, zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)), _WINDOW
        )
        damage = (EOFError, zstandard.ZstdError)
        yield from _json_lines(file, sys.maxsize, text_field, damage)


class _Zstd(io.RawIOBase):
    """Decompressed frames; unlike the library's reader it raises where a file was cut off."""

    def __init__(self, file: BinaryIO, decompressor: Any) -> None:
        self._file, self._decompressor = file, decompressor
        self._frame: Any = None
        self._compressed = b""
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            data = self._compressed or self._file.read(1 << 17)
            if not data and self._frame is not None:
                raise EOFError("it ends in the middle of a frame")
            if not data:
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._rest = memoryview(self._frame.decompress(data))
            self._compressed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _json_lines(
    file: BinaryIO, size: int, text_field: str, damage: tuple[type[Exception], ...] = ()
) -> Iterator[Text | Bad]:
    """The documents of the next `size` bytes; `damage` is what a corrupt file raises."""
    number = 0
    try:
        for number, line in enumerate(_lines(file, size), start=1):
            if len(line) > _LINE_LIMIT:
                yield Bad(number, f"longer than {_LINE_LIMIT >> 20} MiB")
            elif line.strip():
                yield _document(line, text_field, number)
    except damage as error:
        yield Bad(number + 1, f"the file is corrupt from here on: {error}")


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Lines; of one that is longer than the limit, its first bytes."""
    while size > 0 and (line := file.readline(min(size, _LINE_LIMIT + 1))):
        size -= len(line)
        part = line
        while len(part) > _LINE_LIMIT and not part.endswith(b"\n"):
            part = file.readline(min(size, _LINE_LIMIT + 1))
            size -= len(part)
        yield line


def _document(line: bytes, text_field: str, number: int) -> Text | Bad:
    try:
        record = json.loads(line.decode("utf-8-sig"))
        return checked(record[text_field], text_field, number)
    except UnicodeDecodeError:
        return Bad(number, "not UTF-8")
    except KeyError:
        return Bad(number, f"no field {text_field!r} (set text_field)")
    except (ValueError, TypeError, IndexError, RecursionError):
        return Bad(number, "not a JSON object")


TEXT_FORMATS = {
    ".txt": Format(_cut_text, _read_text),
    ".md": Format(_cut_text, _read_text),
    ".jsonl": Format(_cut_lines, _read_lines),
    ".json.gz": Format(uncut, _read_gzip),
    ".jsonl.gz": Format(uncut, _read_gzip),
    ".json.zst": Format(uncut, _read_zstd),
    ".jsonl.zst": Format(uncut, _read_zstd),
}
