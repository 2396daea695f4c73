"""The command line, as tests call it."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from unittest import mock

from hybridnorm.cli import main

Cli = Callable[..., subprocess.CompletedProcess[str]]


def in_own_process(*args: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "hybridnorm", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def in_process(*args: object) -> subprocess.CompletedProcess[str]:
    """The command line in this process: no seconds for the import of torch.

    Only for verbs that need no process of their own: signals and ranks do.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code = 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with (
        mock.patch.object(sys, "argv", ["hybridnorm", *map(str, args)]),
        mock.patch.dict(os.environ, COLUMNS="200"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:  # as Python itself ends
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=err)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    out.seek(0), err.seek(0)
    return subprocess.CompletedProcess(args, code, out.read(), err.read())
