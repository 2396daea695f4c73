"""Carries a study out, step by step."""

import contextlib
import csv
import io
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hybridnorm.errors import HybridNormError
from hybridnorm.files import write_whole
from hybridnorm.processes import alone_in
from hybridnorm.study.folder import claim, recorded_recipe
from hybridnorm.study.jobs import run_all, threads
from hybridnorm.study.plan import Study
from hybridnorm.study.report import write_report
from hybridnorm.study.results import DONE, Result, read_results, results_table
from hybridnorm.terminal import Screen


def run_study(study: Study, folder: Path, *, jobs: int, command: str) -> None:
    """Run what is not finished, then print the table and write results.csv and report.html.

    Raises:
        HybridNormError: a folder of another study, one in which another process works, one that
            cannot be written; or, after the report, runs that neither finished nor diverged.
    """
    console = Screen()
    with alone_in(folder), _stoppable():
        _prepare_data(study, console)
        study = _settled(study, folder, jobs, console)
        claim(study, folder, command)
        before = read_results(study, folder)
        waiting = [result.run for result in before if result.status not in DONE]
        skipped = len(study.runs) - len(waiting)
        done = f", {skipped} finished before" if skipped else ""
        console.print(f"{study.title}: {len(waiting)} runs{done}, {jobs} at a time")
        crashes = run_all(waiting, folder, jobs, console)
        results = read_results(study, folder, crashes)
        console.print(results_table(study, results))
        write_whole(folder / "results.csv", _csv(results))
        report = write_report(study, folder, results)
        console.print(f"report: {report}")
    lost = Counter(result.status for result in results if result.status not in DONE)
    if lost:
        counts = ", ".join(f"{n} {status}" for status, n in lost.items())
        raise HybridNormError(
            f"{folder}: of {len(results)} runs {counts}; results.csv and logs/ say why, and the "
            "same command tries them again"
        )


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP stop a study as Ctrl-C does, except where they are ignored (nohup)."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    caught = [number for number in before if before[number] is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])


def _prepare_data(study: Study, console: Console) -> None:
    """Once, before several processes would do it at the same time."""
    from hybridnorm.data import open_data

    for config in {run.recipe.data for run in study.runs}:
        open_data(config, console=console)


def _settled(study: Study, folder: Path, jobs: int, console: Console) -> Study:
    """The study with one choice of dtype and compilation for all runs, the first run's."""
    from hybridnorm.data import open_data
    from hybridnorm.train import (
        keep_choices,
        pick_device,
        resolve_auto,
        set_threads,
        with_vocabulary,
    )

    first = study.runs[0]
    chosen = recorded_recipe(folder, study.runs)
    if chosen is None:
        set_threads(threads(jobs))
        recipe = with_vocabulary(
            first.recipe, open_data(first.recipe.data, console=console).tokenizer
        )
        device = pick_device(recipe.train.device)
        chosen, reasons = resolve_auto(recipe, first.placement, device)
        for reason in reasons:
            console.print(reason)
    runs = [replace(run, recipe=keep_choices(run.recipe, chosen)) for run in study.runs]
    return replace(study, runs=runs)


def _csv(results: list[Result]) -> str:
    text, rows = io.StringIO(), [result.row() for result in results]
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
