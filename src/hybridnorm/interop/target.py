"""Folders that appear whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridnorm.errors import HybridNormError


def check_absent(target: Path) -> None:
    """Raise `HybridNormError` if there is something at `target`."""
    if target.exists():
        raise HybridNormError(f"{target} exists already; name another --to")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which is `target` once the block is left without an error.

    Raises:
        HybridNormError: `target` exists, or cannot be written.
    """
    check_absent(target)
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.rename(target)
    except OSError as error:
        raise HybridNormError(
            f"{target}: cannot write: {error.strerror or error}; make room, or name another --to"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
