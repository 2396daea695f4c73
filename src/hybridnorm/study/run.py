"""Carries a study out: every run a process and a run directory of its own."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w
from rich.console import Console
from rich.live import Live
from rich.table import Table

from hybridnorm.data import cores
from hybridnorm.errors import HybridNormError
from hybridnorm.recipe import dump_recipe, load_recipe
from hybridnorm.study.plan import Run, Study
from hybridnorm.study.report import write_report
from hybridnorm.study.results import Result, read_results, results_table
from hybridnorm.terminal import Screen
from hybridnorm.text import clock
from hybridnorm.train.report import read_metrics, seconds_left

_POLL = 0.5  # seconds


@dataclass
class _Job:
    run: Run
    run_dir: Path
    process: subprocess.Popen[bytes]


def run_study(study: Study, folder: Path, *, jobs: int, command: str) -> None:
    """Run what is not finished, then print the table and write results.csv and report.html.

    Raises:
        HybridNormError: a folder of another study, or one that cannot be written.
    """
    console = Screen()
    for stop in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)  # as Ctrl-C: no run is left behind
    _prepare_data(study, console)
    study = _settled(study, folder, jobs, console)
    _claim(study, folder, command)
    waiting = [run for run in study.runs if not _is_done(folder / "runs" / run.name)]
    skipped = len(study.runs) - len(waiting)
    done = f", {skipped} finished before" if skipped else ""
    console.print(f"{study.title}: {len(waiting)} runs{done}, {jobs} at a time", highlight=False)
    crashes = _run_all(waiting, folder, jobs, console)
    results = read_results(study, folder, crashes)
    _write_csv(results, folder / "results.csv")
    console.print(results_table(study, results))
    report = write_report(study, folder, results)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)


def _claim(study: Study, folder: Path, command: str) -> None:
    """Write every run's recipe; refuse a folder whose runs have other recipes."""
    try:
        (folder / "recipes").mkdir(parents=True, exist_ok=True)
        for run in study.runs:
            path, text = folder / "recipes" / f"{run.name}.toml", dump_recipe(run.recipe)
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise HybridNormError(
                    f"{path}: this folder holds the run with another recipe; name another --dir"
                )
            path.write_text(text, encoding="utf-8")
        (folder / "command.txt").write_text(command + "\n", encoding="utf-8")
        (folder / "study.toml").write_text(tomli_w.dumps(study.to_table()), encoding="utf-8")
    except OSError as error:
        raise HybridNormError(
            f"{folder}: cannot write a study here: {error.strerror}; name another --dir"
        ) from None


def _prepare_data(study: Study, console: Console) -> None:
    """Once, before several processes would do it at the same time."""
    from hybridnorm.data import open_data

    for config in {run.recipe.data for run in study.runs}:
        open_data(config, console=console)


def _settled(study: Study, folder: Path, jobs: int, console: Console) -> Study:
    """The study with one choice of dtype and compilation for all runs, the first run's."""
    from hybridnorm.data import open_data
    from hybridnorm.placements import placement
    from hybridnorm.train import (
        keep_choices,
        pick_device,
        resolve_auto,
        set_threads,
        with_vocabulary,
    )

    first = study.runs[0]
    recorded = folder / "recipes" / f"{first.name}.toml"
    if recorded.exists():
        chosen = load_recipe(recorded)
    else:
        set_threads(_threads(jobs))
        recipe = with_vocabulary(
            first.recipe, open_data(first.recipe.data, console=console).tokenizer
        )
        device = pick_device(recipe.train.device)
        chosen, reasons = resolve_auto(recipe, placement(recipe.model.placement), device)
        for reason in reasons:
            console.print(reason, highlight=False, soft_wrap=True)
    runs = [replace(run, recipe=keep_choices(run.recipe, chosen)) for run in study.runs]
    return replace(study, runs=runs)


def _threads(jobs: int) -> int:
    return max(1, cores() // jobs)


def _is_done(run_dir: Path) -> bool:
    try:
        return read_metrics(run_dir).status in ("finished", "diverged")
    except HybridNormError:
        return False


def _run_all(runs: list[Run], folder: Path, jobs: int, console: Console) -> dict[str, str]:
    """Run all; the last line of stderr by name for those that crashed."""
    waiting, running, crashes = list(runs), list[_Job](), dict[str, str]()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(waiting.pop(0), folder, jobs))
                time.sleep(_POLL)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    line = _outcome(job, crashes)
                    left = len(waiting) + len(running)
                    console.print(f"{line}  ({left} to go)", highlight=False, soft_wrap=True)
                if console.is_terminal:
                    live.update(_status(running), refresh=True)
        except KeyboardInterrupt:
            for job in running:
                job.process.terminate()
            for job in running:
                job.process.wait()
            console.print("stopped; the same command continues where the runs were saved")
            raise
    return crashes


def _start(run: Run, folder: Path, jobs: int) -> _Job:
    run_dir = folder / "runs" / run.name
    recipe = folder / "recipes" / f"{run.name}.toml"
    command = [sys.executable, "-m", "hybridnorm", "train", str(recipe), "--run-dir", str(run_dir)]
    if (run_dir / "recipe.toml").exists():
        command.append("--resume")
    (folder / "logs").mkdir(exist_ok=True)
    with (folder / "logs" / f"{run.name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(_threads(jobs))},
            start_new_session=True,  # Ctrl-C reaches the study alone, which stops its runs
        )
    return _Job(run, run_dir, process)


def _outcome(job: _Job, crashes: dict[str, str]) -> str:
    if _is_done(job.run_dir):
        event = read_metrics(job.run_dir).events[-1]
        if event["event"] == "diverged":
            return f"{job.run.name}: diverged at step {event['step']}"
        return f"{job.run.name}: held-out loss {event['val_loss']:.4f} in {clock(event['seconds'])}"
    log = job.run_dir.parent.parent / "logs" / f"{job.run.name}.log"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    crashes[job.run.name] = lines[-1] if lines else f"exit status {job.process.returncode}"
    return f"{job.run.name}: crashed: {crashes[job.run.name]}"


def _status(running: list[_Job]) -> Table:
    table = Table.grid(padding=(0, 2))
    for job in running:
        try:
            row = read_metrics(job.run_dir).train[-1]
        except (HybridNormError, IndexError):
            table.add_row(job.run.name, "starting")
            continue
        steps = job.run.recipe.train.steps
        table.add_row(
            job.run.name,
            f"step {row['step']}/{steps}",
            f"loss {row['loss']:.4f}",
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"{clock(seconds_left(row, steps))} left",
        )
    return table


def _write_csv(results: list[Result], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [result.row() for result in results]
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
