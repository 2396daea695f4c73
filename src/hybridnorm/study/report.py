"""report.html: one self-contained offline file that says what was compared and what is true."""

import contextlib
import html
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_text, write_whole
from hybridnorm.html_page import Markup, html_figure, html_page, html_table, link, styled
from hybridnorm.placements.show import drawing_svg
from hybridnorm.strict_toml import dotted
from hybridnorm.study.currencies import currency_section
from hybridnorm.study.figures import figure_svg, figures, save_figures
from hybridnorm.study.folder import environments, read_crashes, recorded_recipe
from hybridnorm.study.growth import Floor, completed, noise_floor
from hybridnorm.study.parts import Part, parts
from hybridnorm.study.plan import Study, load_study
from hybridnorm.study.results import Arm, Result, arms
from hybridnorm.study.scaling import scaling_section
from hybridnorm.study.tables import arm_columns, csv_text, difference_heading, evidence_columns
from hybridnorm.study.tasks import task_columns
from hybridnorm.study.verdict import EVIDENCE, floor_text, is_below, reading, verdict

_CAPTIONS = {
    "training-loss": "Training loss. Line: mean over seeds; band: lowest to highest run.",
    "held-out-loss": "Loss on all of the held-out text.",
    "gradient-norm": "Global gradient norm over the run (log scale).",
    "final-loss": "Where the runs ended. Runs of one seed share the order of the data.",
    "learning-rate": "Final held-out loss at each learning rate. Line: mean over seeds; band: "
    "lowest to highest run; a cross for each run that diverged.",
}


def write_results(study: Study, folder: Path, results: Sequence[Result]) -> Path:
    """Write results.csv, report.html and figures/ from the results; return the report's path."""
    rows = [result.row() for result in results]
    write_whole(folder / "results.csv", csv_text(rows))
    sections = [
        f"<h1>{html.escape(study.title)}</h1>",
        *([f"<p>{html.escape(study.note)}</p>"] if study.note else []),
        *(line for part in parts(study, results) for line in _comparison(part, folder)),
        *scaling_section(study, results, folder / "figures"),
        "<h2>What was compared</h2>",
        *_conditions(study, folder),
        *_drawings(study),
        *_probes(folder),
        "<h2>Every run</h2>",
        html_table(_runs(rows)),
        "<h2>Reproduce</h2>",
        f"<pre>{html.escape(_command(folder))}</pre>",
    ]
    path = folder / "report.html"
    write_whole(path, html_page(study.title, sections))
    return path


def _comparison(part: Part, folder: Path) -> list[str]:
    """The arms of one part of the study: what is true of them, tables, figures."""
    study, found = part.study, arms(part.study, part.results)
    floor = noise_floor(study, part.results)
    charts = figures(study, found)
    captions = {part.file_name(name): _CAPTIONS[name] for name in charts}
    charts = {part.file_name(name): chart for name, chart in charts.items()}
    save_figures(charts, folder / "figures")
    return [
        f"<h2>{html.escape(part.name or 'Result')}</h2>",
        f'<p class="verdict">{html.escape(verdict(study, found, floor))}</p>',
        html_table(_shaded(study, found, floor)),
        *_paragraphs(reading(study, found)),
        *_evidence(study, found),
        *_paragraphs(floor_text(study, floor)),
        *(
            html_figure(figure_svg(chart.figure, name), captions[name])
            for name, chart in charts.items()
        ),
        *currency_section(part, found, folder / "figures"),
        *_tasks(study, found),
    ]


def rebuild(folder: Path) -> Path:
    """Write anew what `write_results` writes, from the files of a study alone.

    Raises:
        HybridNormError: the folder holds no study, or cannot be written.
    """
    if not (folder / "study.toml").exists():
        raise HybridNormError(f"{folder}: not the folder of a study (it has no study.toml)")
    study = load_study(folder / "study.toml")
    if recorded := recorded_recipe(folder, study.runs):
        study = study.with_choices_of(recorded)
    study, results = completed(study, folder, read_crashes(folder))
    return write_results(study, folder, results)


def _shaded(study: Study, found: Sequence[Arm], floor: Floor | None) -> dict[str, list[str]]:
    """The table of the arms; differences that chance alone makes are grey, and means name runs."""
    columns = arm_columns(study, found)
    heading = difference_heading(study)
    columns[heading] = [
        styled(cell, "below") if is_below(arm, floor) else cell
        for cell, arm in zip(columns[heading], found, strict=True)
    ]
    columns["means of seeds"] = [
        Markup(" ".join(link(str(r.seed), _run_dir(r.run.name)) for r in arm.best)) for arm in found
    ]
    return columns


def _evidence(study: Study, found: Sequence[Arm]) -> list[str]:
    if not (columns := evidence_columns(study, found)):
        return []
    return ["<h3>What the differences rest on</h3>", html_table(columns), *_paragraphs(EVIDENCE)]


def _paragraphs(lines: Iterable[str]) -> list[str]:
    return [f"<p>{html.escape(line)}</p>" for line in lines]


def _tasks(study: Study, found: Sequence[Arm]) -> list[str]:
    columns = task_columns(study, found)
    if not columns["task"]:
        return []
    line = (
        "Differences are paired over questions, each scored by its mean over the runs of an arm. "
        "Brackets: 95% Student t interval over questions; * where it excludes zero. Above zero is "
        "better. It says how far other questions would move the difference, not other seeds."
    )
    return ["<h2>Tasks</h2>", html_table(columns), f"<p>{line}</p>"]


def _conditions(study: Study, folder: Path) -> list[str]:
    recipes = [run.recipe for run in study.runs]
    tables = [dotted(recipe) for recipe in recipes]

    def every(name: str) -> str:
        values = [table.get(name) for table in tables]
        if all(isinstance(value, float) for value in values):  # some rates were added later
            values.sort()
        return ", ".join(dict.fromkeys(map(str, values)))

    varied = "; ".join(f"{name}: {every(name)}" for name in study.grid)
    corpora = dict.fromkeys(
        ", ".join(one.data.prepared) or repr(one.data.source) for one in recipes
    )
    tokens = [one.train.planned_tokens for one in recipes]
    span = dict.fromkeys(f"{n:,}" for n in (min(tokens), max(tokens)))
    lines = [
        f"Varied: {varied}, and with it what has several values below. Everything else is the same "
        f"in all runs: {' to '.join(span)} tokens of corpus {'; '.join(corpora)}."
    ]
    if any(recipe.model.init == "published" for recipe in recipes):
        inits = ", ".join(f"{name} {found.init}" for name, found in study.placements.items())
        lines.append(f"Initialization, as each placement was published: {inits}.")
    lines.append(_made_by(study, folder))
    names = dict.fromkeys(name for table in tables for name in table if name not in study.grid)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(every(name))}</td></tr>"
        for name in names
    )
    details = f"<details><summary>All recipe fields</summary><table>{rows}</table></details>"
    return [*_paragraphs(lines), details]


def _drawings(study: Study) -> list[str]:
    n_layers = study.runs[0].recipe.model.n_layers
    drawn = (drawing_svg(found, n_layers) for found in study.placements.values())
    cells = "".join(f"<figure>{one}</figure>" for one in drawn)
    return ["<h2>The placements</h2>", f'<div class="drawings">{cells}</div>']


def _made_by(study: Study, folder: Path) -> str:
    """The machine and the versions, of all runs."""
    found = environments(folder, study.runs)

    def each(name: str) -> str:
        return ", ".join(str(value or "none") for value in found.get(name, ["unknown"]))

    return (
        f"Hardware: {each('processor')}, {each('device')}, {each('threads')} threads per run. "
        f"Versions: hybridnorm {each('hybridnorm')} (commit {each('commit')}), torch "
        f"{each('torch')}, Python {each('python')}."
    )


def _probes(folder: Path) -> Iterable[str]:
    """What the runs' `[diagnose]` recorded, arm beside arm."""
    if not any((folder / "runs").glob("*/diagnose")):
        return ()
    from hybridnorm.diagnose import probe_sections, recorded_probes  # torch

    try:
        return probe_sections(recorded_probes(folder / "runs"), folder / "figures")
    except HybridNormError as error:  # the losses are as good as before
        return [f"<p>{html.escape(str(error))}</p>"]


def _command(folder: Path) -> str:
    with contextlib.suppress(HybridNormError):
        return read_text(folder / "command.txt").strip()
    return shlex.join(["hybridnorm", "study", str(folder / "study.toml"), "--dir", str(folder)])


def _runs(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Every number leads to the directory of its run."""

    def text(value: Any) -> str:
        return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: [link(text(row.get(name)), _run_dir(row["run"])) for row in rows] for name in names
    }


def _run_dir(name: str) -> str:
    return f"runs/{name}/"
