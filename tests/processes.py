"""Other processes, as tests look at them."""

import contextlib
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def hangup(handler: signal.Handlers) -> Iterator[None]:
    """Processes started in here have this of SIGHUP, whether or not nohup runs the tests."""
    previous = signal.signal(signal.SIGHUP, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, previous)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def wait_for_end(pids: Iterable[int], seconds: float = 30) -> None:
    """Fail if one of the processes is still there after so long."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"{left} outlived the process that started them"
        time.sleep(0.01)
