"""Processes that end with the one that started them, and folders that one process holds."""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hybridnorm.errors import HybridNormError

STARTED_BY = "HYBRIDNORM_STARTED_BY"  # in the environment: the process whose end is this one's
_POLL = 0.1  # seconds


def end_when(gone: Callable[[], object]) -> None:
    """Leave this process at once, whatever it is doing, when `gone` returns."""

    def watch() -> None:
        gone()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with_starter() -> None:
    """From now on end with the study or the torchrun that started this process, killed or not."""
    starter = int(os.environ.pop(STARTED_BY, 0))
    if not starter and "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets it
        starter = os.getppid()
    if starter:
        end_when(lambda: _outlived(starter))


def _outlived(parent: int) -> None:
    """Return when `parent` has ended: its children have another one then."""
    while os.getppid() == parent:
        time.sleep(_POLL)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if need be, against other processes; it is free when this one ends.

    Raises:
        HybridNormError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise HybridNormError(
            f"{folder}: cannot write here: {error.strerror}; name another place"
        ) from None
    try:
        if not lock(held):
            raise HybridNormError(
                f"{folder}: another process works here; stop it first, or name another place"
            )
        yield
    finally:
        os.close(held)


def is_held(folder: Path) -> bool:
    """Whether another process holds `folder`, as `alone_in` does."""
    if not folder.is_dir():
        return False
    probe = os.open(folder, os.O_RDONLY)
    try:
        return not lock(probe)
    finally:
        os.close(probe)


def lock(descriptor: int) -> bool:
    """Lock for this process; False where another one has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True
