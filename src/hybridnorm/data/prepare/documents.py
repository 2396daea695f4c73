"""The documents of a unit: read, cut, filtered, and counted."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from hybridnorm.data.config import PrepareConfig
from hybridnorm.data.prepare.formats import Bad, Slice
from hybridnorm.data.prepare.inputs import FORMATS, Unit
from hybridnorm.errors import HybridNormError

_SHOWN = 5  # corrupt lines that are named


class Document(NamedTuple):
    """A text to tokenize."""

    text: str
    digest: bytes
    """SHA-256 of the text: equal documents have equal ones."""
    held_out: bool
    """Whether it belongs to the validation split: as its input does, or by a hash of its key."""


@dataclass
class Tally:
    """What was not taken as it was."""

    duplicates: int = 0
    near_empty: int = 0
    over_long: int = 0
    corrupt: int = 0
    dropped_characters: int = 0
    first_corrupt: list[tuple[Slice, Bad]] = field(default_factory=list)

    def __iadd__(self, other: "Tally") -> "Tally":
        self.duplicates += other.duplicates
        self.near_empty += other.near_empty
        self.over_long += other.over_long
        self.corrupt += other.corrupt
        self.dropped_characters += other.dropped_characters
        self.first_corrupt = [*self.first_corrupt, *other.first_corrupt][:_SHOWN]
        return self


def documents(
    unit: Unit, config: PrepareConfig, tally: Tally, repeated: bytes = b""
) -> Iterator[Document]:
    """The documents of a unit in order.

    `repeated` says of each, by a byte that is not 0, whether it is left out as a duplicate. What is
    dropped or cut is counted in `tally`. Where corrupt lines are fatal, it ends at the first.

    Raises:
        HybridNormError: an input cannot be read.
    """
    place = -1
    for text, key, split in _texts(unit, config, tally):
        if len(text.strip()) < config.min_chars:
            tally.near_empty += 1
            continue
        place += 1
        if repeated and repeated[place]:
            tally.duplicates += 1
            continue
        digest = hashlib.sha256(text.encode()).digest()
        side = digest if key is None else hashlib.sha256(key.encode()).digest()
        held_out = int.from_bytes(side[:8], "little") < config.validation_fraction * 2**64
        yield Document(text, digest, split == "validation" if split else held_out)


def with_tail_held_out(found: Iterable[Document], fraction: float) -> Iterator[Document]:
    """All documents for training but the end of the last one, which is held out.

    For an input of so few documents that their hashes put all of them on one side.
    """
    last: Document | None = None
    for document in found:
        if last:
            yield last._replace(held_out=False)
        last = document
    if last:
        text, length = last.text, len(last.text.rstrip())
        start = int(length * (1 - fraction))
        ends = (text.find(mark, start) + len(mark) for mark in ("\n\n", "\n", " "))
        cut = next((end for end in ends if start < end < (start + length) // 2), start)
        yield last._replace(text=text[:cut], held_out=False)
        yield last._replace(text=text[cut:], held_out=True)


def _texts(
    unit: Unit, config: PrepareConfig, tally: Tally
) -> Iterator[tuple[str, str | None, str | None]]:
    """Every text, cut where it is too long, with the key of its whole document and its split."""
    for piece in unit:
        try:
            for found in FORMATS[piece.format].read(piece, config.text_field):
                if isinstance(found, Bad):
                    tally += Tally(corrupt=found.lines, first_corrupt=[(piece, found)])
                    if config.bad_lines == "fail":
                        return
                    continue
                parts = list(cut_text(found.text, config.max_chars))
                tally.over_long += len(parts) > 1
                for part in parts:
                    yield part, found.key, piece.split
        except OSError as error:
            raise HybridNormError(f"cannot read {piece.path}: {error.strerror}") from None


def cut_text(text: str, max_chars: int) -> Iterator[str]:
    """Pieces of at most `max_chars` that make up `text`: whole paragraphs, else lines, if any."""
    start = 0
    while len(text) - start > max_chars:
        limit = start + max_chars
        ends = (text.rfind(mark, start, limit) + len(mark) for mark in ("\n\n", "\n"))
        stop = next((end for end in ends if end > start + 2), limit)
        yield text[start:stop]
        start = stop
    yield text[start:]
