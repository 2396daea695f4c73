"""report.html: one self-contained offline file that says what was compared and what is true."""

import contextlib
import html
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_json, read_text, write_whole
from hybridnorm.html_page import html_figure, html_page, html_table
from hybridnorm.placements.show import drawing_svg
from hybridnorm.strict_toml import to_table
from hybridnorm.study.figures import figure_svg, figures, save_figures
from hybridnorm.study.plan import Study
from hybridnorm.study.results import Arm, Result, arm_columns, arms, runs_text
from hybridnorm.study.tasks import task_columns

_CAPTIONS = {
    "training-loss": "Training loss. Line: mean over seeds; band: lowest to highest run.",
    "held-out-loss": "Loss on held-out text.",
    "gradient-norm": "Global gradient norm over the run (log scale).",
    "final-loss": "Where the runs ended. Runs of one seed share the order of the data.",
}


def write_report(study: Study, folder: Path, results: list[Result]) -> Path:
    """Write report.html and figures/*.svg from the results; return the report's path."""
    found = arms(study, results)
    drawn = figures(study, found)
    save_figures(drawn, folder / "figures")
    sections = [
        f"<h1>{html.escape(study.title)}</h1>",
        f'<p class="verdict">{html.escape(verdict(study, found))}</p>',
        *([f"<p>{html.escape(study.note)}</p>"] if study.note else []),
        "<h2>Result</h2>",
        html_table(arm_columns(study, found)),
        *(f"<p>{html.escape(line)}</p>" for line in _reading(study, found)),
        *(html_figure(figure_svg(figure, name), _CAPTIONS[name]) for name, figure in drawn.items()),
        *_tasks(study, found),
        "<h2>What was compared</h2>",
        *_conditions(study, folder),
        *_drawings(study),
        *_probes(folder),
        "<h2>Every run</h2>",
        html_table(_columns([result.row() for result in results])),
        "<h2>Reproduce</h2>",
        f"<pre>{html.escape(_command(folder))}</pre>",
    ]
    path = folder / "report.html"
    write_whole(path, html_page(study.title, sections))
    return path


def verdict(study: Study, found: Sequence[Arm]) -> str:
    """One paragraph of what the numbers support, and of what they do not."""
    losses = [(arm.val_loss, arm) for arm in found if arm.val_loss is not None]
    if not losses:
        return "No run has finished: there is nothing to compare yet."
    best = min(losses, key=lambda pair: (_lost(pair[1]), pair[0]))[1]
    among = " of the arms that lost fewest runs" if any(_lost(arm) for arm in found) else ""
    sentences = [f"Lowest held-out loss{among}: {best.value}, {best.val_loss:.4f} nats per token."]
    for arm in found:
        if arm.comparison is not None:
            sentences.append(_sentence(study, arm))
    failed = [
        f"{arm.value}: {runs_text(arm)}"
        for arm in found
        if arm.count("finished") < len(arm.results)
    ]
    if failed:
        sentences.append(f"Not all runs finished ({'; '.join(failed)}).")
    return " ".join(sentences)


def _lost(arm: Arm) -> int:
    """Runs that did not finish where the arm is judged."""
    return sum(result.val_loss is None for result in arm.best)


def _sentence(study: Study, arm: Arm) -> str:
    c = arm.comparison
    assert c is not None
    direction = "below" if c.mean < 0 else "above"
    size = f"{arm.value} ends {abs(c.mean):.4f} {direction} {study.baseline}"
    if c.t_interval is None:
        seeds = "one seed" if c.n == 1 else f"{c.n} seeds"
        return f"{size} ({seeds}: too few for an interval, so nothing is shown)."
    low, high = c.t_interval
    word = "significant" if c.significant else "not significant"
    return f"{size} (95% interval {low:+.4f} to {high:+.4f}, {c.n} seeds: {word})."


def _reading(study: Study, found: Sequence[Arm]) -> list[str]:
    lines = [
        f"Differences are paired: the run with the same seed under {study.baseline} saw the same "
        "batches in the same order and started from the same weights wherever both have them (up "
        "to their scale, where initializations differ). "
        "Brackets: 95% Student t interval of the mean difference; * where it excludes zero. "
        "Below zero is better. Intervals are not corrected for the number of comparisons."
    ]
    for arm in found:
        c = arm.comparison
        if c is not None and c.bootstrap_interval is not None:
            low, high = c.bootstrap_interval
            lines.append(
                f"{arm.value}: better in {c.wins} of {c.n} pairs; bootstrap interval "
                f"[{low:+.4f}, {high:+.4f}] (too narrow with so few seeds; the t interval decides)."
            )
    if found and found[0].settings:
        lines.append(
            "Each arm is judged at its own best setting of "
            f"{', '.join(found[0].settings)}, chosen on one half of the held-out text (every other "
            "window) and compared on the other half."
        )
    return lines


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
    recipe = study.runs[0].recipe
    tokens = recipe.train.steps * recipe.train.batch_size * recipe.train.seq_len
    varied = "; ".join(f"{name}: {', '.join(map(str, v))}" for name, v in study.grid.items())
    lines = [
        f"Varied: {varied}. Everything else is the same in all runs: {tokens:,} tokens "
        f"({recipe.train.steps:,} steps of {recipe.train.batch_size} × {recipe.train.seq_len}) of "
        f"corpus {', '.join(recipe.data.prepared) or recipe.data.source!r}."
    ]
    if recipe.model.init == "published":
        inits = ", ".join(f"{name} {found.init}" for name, found in study.placements.items())
        lines.append(f"Initialization, as each placement was published: {inits}.")
    if hardware := _hardware(study, folder):
        lines.append(hardware)
    table = {k: v for k, v in to_table(recipe).items() if isinstance(v, dict)}
    fields = {
        f"{part}.{name}": value for part, rows in table.items() for name, value in rows.items()
    }
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in fields.items()
        if name not in study.grid
    )
    details = f"<details><summary>All recipe fields</summary><table>{rows}</table></details>"
    return [*(f"<p>{html.escape(line)}</p>" for line in lines), details]


def _drawings(study: Study) -> list[str]:
    n_layers = study.runs[0].recipe.model.n_layers
    drawn = (drawing_svg(found, n_layers) for found in study.placements.values())
    cells = "".join(f"<figure>{one}</figure>" for one in drawn)
    return ["<h2>The placements</h2>", f'<div class="drawings">{cells}</div>']


def _hardware(study: Study, folder: Path) -> str:
    """What the first run whose environment.json can be read says of it."""
    for run in study.runs:
        # Without it, or with a damaged one, the numbers are what they are.
        with contextlib.suppress(HybridNormError, KeyError):
            found = read_json(folder / "runs" / run.name / "environment.json")
            return (
                f"Hardware: {found['processor']}, {found['device']}, {found['threads']} threads "
                f"per run. Versions: hybridnorm {found['hybridnorm']} "
                f"({found['commit'] or 'no commit'}), torch {found['torch']}, "
                f"Python {found['python']}."
            )
    return ""


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


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    def text(value: Any) -> str:
        return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

    return {name: [text(row[name]) for row in rows] for name in rows[0]}
