"""The one exception a user sees: a single line that names what is wrong and the remedy."""

import difflib
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any


class HybridNormError(ValueError):
    """Bad input (a config field, a file, a device). The command line prints it as one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A `did you mean` clause for an unknown name, or the known names where none is near."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}"


def in_a_line(error: BaseException) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


def check_unused(config: Any, why: str, *names: str) -> None:
    """Raise `HybridNormError` for a field of a dataclass that is set though it has no effect."""
    for field in fields(config):
        if field.name in names and getattr(config, field.name) != field.default:
            raise HybridNormError(f"{field.name}: has no effect {why}; leave it out")


@contextmanager
def naming(file: object) -> Iterator[None]:
    """Errors in here begin with `file`."""
    try:
        yield
    except HybridNormError as error:
        raise HybridNormError(f"{file}: {error}") from None
