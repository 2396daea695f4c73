"""Small files, written whole or not at all, and read with errors that name them."""

import contextlib
import json
import os
import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError


def write_whole(path: Path, content: str) -> None:
    """Write `content` (UTF-8) to `path`; at every moment the old file or the new one is there.

    Raises:
        HybridNormError: it cannot be written (a full disk); what was there before is untouched.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise HybridNormError(
            f"{path}: cannot write: {error.strerror}; make room, or name another place"
        ) from None


def read_text(path: Traversable) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        HybridNormError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise HybridNormError(f"{path}: cannot read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise HybridNormError(f"{path}: is not UTF-8 text") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        HybridNormError: it cannot be read, or holds anything else.
    """
    try:
        table = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, HybridNormError):
            raise
        raise HybridNormError(f"{path}: is not JSON; it is damaged or was edited") from None
    if not isinstance(table, dict):
        raise HybridNormError(f"{path}: expected a JSON object, got {type(table).__name__}")
    return table


def read_toml(path: Traversable) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        HybridNormError: it cannot be read, is not TOML, or has no name: that of `...toml` is `..`.
    """
    if not Path(path.name).stem.strip("."):
        raise HybridNormError(f"{path}: the file has no name before .toml; rename it")
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise HybridNormError(f"{path}: is not TOML: {error}") from None
