"""The runs of a study as processes: a few at a time, none of which outlives the study."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from hybridnorm.data import cores
from hybridnorm.errors import HybridNormError
from hybridnorm.processes import STARTED_BY, is_held
from hybridnorm.study.folder import is_started, recipe_file, run_dir
from hybridnorm.study.plan import Run
from hybridnorm.study.results import DONE, Result, read_result
from hybridnorm.text import clock, count, number
from hybridnorm.train.report import newest_row, seconds_left

_POLL = 0.5  # seconds


@dataclass
class _Job:
    run: Run
    run_dir: Path
    log: Path
    process: subprocess.Popen[bytes]
    gpu: str | None
    """As CUDA_VISIBLE_DEVICES names it; None where there is none."""

    def result(self) -> Result:
        """What became of the run; its process has ended."""
        return read_result(self.run, self.run_dir, self._why())

    def _why(self) -> str:
        """A signal, or the last thing that the process said."""
        if self.process.returncode == 0:
            return "its process ended before the run did; a launcher has to wait for it"
        if (status := self.process.returncode) < 0:
            return f"its process was ended by signal {-status} ({signal.strsignal(-status)})"
        lines = []
        with contextlib.suppress(OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else f"exit status {status}"


def threads(jobs: int) -> int:
    """A run's share of the cores, where `jobs` run at a time."""
    return max(1, cores() // jobs)


def gpus() -> list[str]:
    """The GPUs that runs may take, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def run_all(
    runs: list[Run], folder: Path, jobs: int, console: Console, launcher: Sequence[str] = ()
) -> dict[str, str]:
    """Run all; why they stopped, by name, for those that did not come to their end.

    Each run has one GPU, where there are any: that with the fewest runs. What a `launcher` starts
    has what that gives it; it may outlive a study that is killed, and is waited for by the next.

    Raises:
        HybridNormError: a log cannot be written; no run is left behind.
    """
    waiting, running, crashes = list(runs), list[_Job](), dict[str, str]()
    found = [] if launcher else gpus()
    if held := sum(is_held(run_dir(folder, run)) for run in runs):
        console.print(f"waiting for {count(held, 'run')} that an earlier call has left going")
    with (
        Live(console=console, auto_refresh=False, transient=True) as live,
        _none_left(running, console),
    ):
        while waiting or running:
            free = (run for run in waiting if not is_held(run_dir(folder, run)))
            for run in list(islice(free, jobs - len(running))):
                waiting.remove(run)
                taken = [job.gpu for job in running]
                gpu = min(found, key=taken.count, default=None)
                running.append(_start(run, folder, jobs, gpu, launcher))
            time.sleep(_POLL)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                result = job.result()
                if result.status not in DONE:
                    crashes[job.run.name] = result.reason
                left = len(waiting) + len(running)
                console.print(f"{_outcome(result)}  ({left} to go)")
            if console.is_terminal:
                live.update(_status(running), refresh=True)
    return crashes


@contextlib.contextmanager
def _none_left(running: list[_Job], console: Console) -> Iterator[None]:
    """Whatever stops the study stops its runs, which save first."""
    try:
        yield
    except BaseException as error:
        for job in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGTERM)  # what a launcher has started, too
        for job in running:
            job.process.wait()
        if isinstance(error, KeyboardInterrupt):
            console.print("stopped; the same command continues where the runs were saved")
        raise


def _start(run: Run, folder: Path, jobs: int, gpu: str | None, launcher: Sequence[str]) -> _Job:
    log = folder / "logs" / f"{run.name}.log"
    command = [*launcher, sys.executable, "-m", "hybridnorm"]
    command += ["train", str(recipe_file(folder, run))]
    command += ["--run-dir", str(run_dir(folder, run))]
    if is_started(folder, run):
        command.append("--resume")
    shared = {}
    if not launcher:
        shared = {"OMP_NUM_THREADS": str(threads(jobs)), STARTED_BY: str(os.getpid())}
    if gpu is not None:
        shared["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **shared},
                start_new_session=True,  # Ctrl-C reaches the study alone, which stops its runs
            )
    except OSError as error:
        raise HybridNormError(
            f"{log}: cannot start the run: {error.strerror}; make room, or name another --dir"
        ) from None
    return _Job(run, run_dir(folder, run), log, process, gpu)


def _outcome(result: Result) -> str:
    name, seconds = result.run.name, result.row()["seconds"] or 0
    if result.status == "finished":
        return f"{name}: held-out loss {number(result.val_loss, '.4f')} in {clock(seconds)}"
    return f"{name}: {result.status}: {result.reason}"


def _status(running: list[_Job]) -> Table:
    table = Table.grid(padding=(0, 2))
    for job in running:
        row = newest_row(job.run_dir)
        table.add_row(job.run.name, *(_progress(row, job.run) if row else ["starting"]))
    return table


def _progress(row: dict[str, Any], run: Run) -> list[str]:
    steps, speed = run.recipe.train.steps, row.get("tokens_per_second")
    left = clock(seconds_left(row, steps)) if speed and row.get("tokens") and row["step"] else "–"
    return [
        f"step {row['step']}/{steps}",
        f"loss {number(row.get('loss'), '.4f')}",
        f"{number(speed, ',.0f')} tokens/s",
        f"{left} left",
    ]
