"""Runs a function over jobs in processes that never outlive the one that started them."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from hybridnorm.errors import HybridNormError
from hybridnorm.processes import end_when

Job = TypeVar("Job")
Result = TypeVar("Result")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def mapped(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Iterator[Iterator[Result]]:
    """The results in the order of the jobs; a single job, or worker, runs in this process.

    Raises:
        HybridNormError: a worker was killed.
    """
    if min(workers, len(jobs)) < 2:
        yield map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    leash, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start, initargs=(leash,)
    )
    try:
        yield pool.map(function, jobs)
    except BrokenProcessPool:
        raise HybridNormError(
            "a worker process was killed, perhaps for want of memory; the same command "
            "continues, and needs less with fewer workers"
        ) from None
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)


def _start(leash: Connection) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for each worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    end_when(lambda: leash.poll(None))  # closed on an error, and when the parent is killed
