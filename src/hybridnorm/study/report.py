"""report.html: one self-contained offline file that says what was compared and what is true."""

import html
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hybridnorm.placements.show import drawing_svg
from hybridnorm.strict_toml import to_table
from hybridnorm.study.figures import figure_svg, figures, save_figures
from hybridnorm.study.plan import Study
from hybridnorm.study.results import Arm, Result, arm_columns, arms, runs_text
from hybridnorm.study.tasks import task_columns

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid #0072B2; padding-left: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font: .85rem/1.5 system-ui, sans-serif; white-space: nowrap; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
td { font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; background: white; border-radius: 6px; padding: .5rem; color: #333; }
figure svg { width: 100%; height: auto; max-height: 34rem; }
.drawings { display: flex; flex-wrap: wrap; gap: 1rem; }
.drawings figure { margin: 0; } .drawings svg { height: 27rem; width: auto; max-width: 100%; }
code, pre { font-size: .9rem; } pre { overflow-x: auto; padding: .8rem; background: #8882; }
"""
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
        "<h2>Result</h2>",
        _table(arm_columns(study, found)),
        *(f"<p>{html.escape(line)}</p>" for line in _reading(study, found)),
        *(_figure(figure_svg(figure, name), _CAPTIONS[name]) for name, figure in drawn.items()),
        *_tasks(study, found),
        "<h2>What was compared</h2>",
        *_conditions(study, folder),
        *_drawings(study),
        "<h2>Every run</h2>",
        _table(_columns([result.row() for result in results])),
        "<h2>Reproduce</h2>",
        f"<pre>{html.escape(_command(folder))}</pre>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(study.title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(sections)
        + "</body></html>"
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def verdict(study: Study, found: Sequence[Arm]) -> str:
    """One paragraph of what the numbers support, and of what they do not."""
    losses = [(arm.val_loss, arm) for arm in found if arm.val_loss is not None]
    if not losses:
        return "No run has finished: there is nothing to compare yet."
    best = min(losses, key=lambda pair: pair[0])[1]
    sentences = [f"Lowest held-out loss: {best.value}, {best.val_loss:.4f} nats per token."]
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
            f"{', '.join(found[0].settings)}, chosen on the same held-out text."
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
    return ["<h2>Tasks</h2>", _table(columns), f"<p>{line}</p>"]


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
    environment = _environment(study, folder)
    if environment:
        lines.append(
            f"Hardware: {environment['processor']}, {environment['device']}, "
            f"{environment['threads']} threads per run. Versions: hybridnorm "
            f"{environment['hybridnorm']} ({environment['commit'] or 'no commit'}), torch "
            f"{environment['torch']}, Python {environment['python']}."
        )
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


def _environment(study: Study, folder: Path) -> dict[str, Any] | None:
    for run in study.runs:
        path = folder / "runs" / run.name / "environment.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
    return None


def _command(folder: Path) -> str:
    path = folder / "command.txt"
    known = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return known or shlex.join(["hybridnorm", "study", folder.name])


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    def text(value: Any) -> str:
        return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

    return {name: [text(row[name]) for row in rows] for name in rows[0]}


def _table(columns: dict[str, list[str]]) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(row(cells, "td") for cells in zip(*columns.values(), strict=True))
    return f'<div class="scroll"><table>{row(columns, "th")}{body}</table></div>'


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"
