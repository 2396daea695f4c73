"""The terminal: what users have named is shown as they wrote it, on any terminal, or it fails."""

import codecs
import io
import os
import sys
import unicodedata
from typing import Any

from rich.console import Console

from hybridnorm.errors import HybridNormError

_SIGNS = {"¼": "1/4", "¾": "3/4", "²": "^2", "³": "^3", "·": "*", "⊙": "*", "×": "x", "√": "sqrt "}


class Screen(Console):
    """A console that finds no markup, no emoji and no numbers to colour, and breaks no line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)


def printable(text: str) -> str:
    """`text` on one line, without what would steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def open_output() -> None:
    """Let both streams spell what their encoding lacks: `γ` is `gamma` on a terminal in ASCII.

    Raises:
        HybridNormError: there is no standard output.
    """
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")
    if sys.stdout is None:
        raise HybridNormError("standard output: closed; send it to a file or to /dev/null")


def close_output() -> None:
    """Write what is still to be written; where that fails, let Python not try again as it exits.

    Raises:
        OSError: a full disk, or a reader (head, less) that has gone.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(character: str) -> str:
    """In ASCII: by its sign, without its accent or place, or by the name of a Greek letter."""
    name = unicodedata.name(character, "")
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    greek = name.rpartition(" ")[2].lower() if name.startswith("GREEK SMALL LETTER") else "?"
    return _SIGNS.get(character) or bare or greek
