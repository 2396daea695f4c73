"""Carries a study out, step by step."""

import contextlib
import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from hybridnorm.errors import HybridNormError
from hybridnorm.processes import alone_in
from hybridnorm.study.folder import claim, recorded_recipe, write_crashes
from hybridnorm.study.growth import completed
from hybridnorm.study.jobs import run_all, threads
from hybridnorm.study.parts import parts
from hybridnorm.study.plan import Run, Study
from hybridnorm.study.report import write_results
from hybridnorm.study.results import DONE, Result
from hybridnorm.study.tables import results_table
from hybridnorm.terminal import Screen


def run_study(study: Study, folder: Path, *, jobs: int, command: str, launcher: str = "") -> None:
    """Run what is not finished, then print the table and write results.csv and report.html.

    Args:
        launcher: a command before that of every run, which starts it elsewhere and waits for it.

    Raises:
        HybridNormError: a folder of another study, one in which another process works, one that
            cannot be written; a launcher that is not there, or choices that it leaves open; or,
            after the report, runs that neither finished nor diverged.
    """
    console, elsewhere = Screen(), _words(launcher)
    if elsewhere:
        _check_choices(study)
    with alone_in(folder), _stoppable():
        prepare_data(study, console)
        if not elsewhere:
            study = _settled(study, folder, jobs, console)
        study, results = completed(study, folder)
        claim(study, folder, command)
        crashes: dict[str, str] = {}
        while waiting := _waiting(results, crashes):
            done = sum(result.status in DONE for result in results)
            before = f", {done} finished before" if done else ""
            console.print(f"{study.title}: {len(waiting)} runs{before}, {jobs} at a time")
            crashes |= run_all(waiting, folder, jobs, console, elsewhere)
            study, results = completed(study, folder, crashes)
            claim(study, folder, command)
        write_crashes(folder, crashes)
        for part in parts(study, results):
            console.print(results_table(part.study, part.results))
        console.print(f"report: {write_results(study, folder, results)}")
    lost = Counter(result.status for result in results if result.status not in DONE)
    if lost:
        counts = ", ".join(f"{n} {status}" for status, n in lost.items())
        raise HybridNormError(
            f"{folder}: of {len(results)} runs {counts}; results.csv and logs/ say why, and the "
            "same command tries them again"
        )


def _waiting(results: Sequence[Result], crashes: Container[str]) -> list[Run]:
    """The runs that are neither done nor were tried just now."""
    unfinished = [result.run for result in results if result.status not in DONE]
    return [run for run in unfinished if run.name not in crashes]


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


def prepare_data(study: Study, console: Console) -> None:
    """Once, before several processes would do it at the same time."""
    from hybridnorm.data import open_data

    for config in {run.recipe.data for run in study.runs}:
        open_data(config, console=console)


def _words(launcher: str) -> list[str]:
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise HybridNormError(f"--launcher: {error} in {launcher!r}") from None
    if words and shutil.which(words[0]) is None:
        raise HybridNormError(f"--launcher: there is no command {words[0]!r} here")
    return words


def _check_choices(study: Study) -> None:
    """What is chosen by timing this machine has to be named for runs on others."""
    train = study.runs[0].recipe.train
    for name, value in (("dtype", train.dtype), ("compile", train.compile)):
        if value == "auto":
            raise HybridNormError(
                f"train.{name}: 'auto' times this machine, but --launcher runs elsewhere; name one"
            )


def _settled(study: Study, folder: Path, jobs: int, console: Console) -> Study:
    """The study with one choice of dtype and compilation for all runs, the first run's."""
    from hybridnorm.data import open_data
    from hybridnorm.train import pick_device, resolve_auto, set_threads, with_vocabulary

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
    return study.with_choices_of(chosen)
