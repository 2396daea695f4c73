"""diagnose.html: figures of probes, each with what it says and what it does not, in one page."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hybridnorm.diagnose.catalogue import FAMILIES, definition
from hybridnorm.diagnose.probe import Probe
from hybridnorm.diagnose.table import Arms, Table, write_table
from hybridnorm.files import write_whole
from hybridnorm.html_page import html_figure, html_page
from hybridnorm.text import svg

PAGE = "diagnose.html"


def write_page(title: str, about: Sequence[str], found: Mapping[str, Arms], folder: Path) -> Path:
    """Write the page and, beside it, each figure as an SVG; return the path of the page.

    Args:
        about: what was measured, a paragraph each.
        found: arms by the name of the probe; probes without rows are left out.

    Raises:
        HybridNormError: the folder cannot be written.
    """
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(paragraph)}</p>" for paragraph in about),
        *probe_sections(found, folder),
    ]
    write_whole(folder / PAGE, html_page(title, sections))
    return folder / PAGE


def probe_sections(found: Mapping[str, Arms], folder: Path) -> Iterator[str]:
    """The pieces of a page about probes, family by family; writes each figure to `folder`, too."""
    for family, probes in FAMILIES.items():
        shown = [probe for probe in probes if probe.name in found]
        if shown:
            yield f"<h2>{html.escape(family.capitalize())}</h2>"
        for probe in shown:
            yield from _section(probe(), found[probe.name], folder)


def write_tables(tables: Mapping[str, Table], folder: Path) -> None:
    """Each probe's rows as <probe>.csv."""
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table)


def nonfinite_from(table: Table) -> str:
    """Where numbers first are not finite: `step 40, layer 3`; empty where all are."""
    bad = [(row.step, row.layer) for row in table if not math.isfinite(row.value)]
    return "step {}, layer {}".format(*min(bad)) if bad else ""


def _section(probe: Probe, arms: Arms, folder: Path) -> Iterator[str]:
    drawing = svg(probe.draw(arms), probe.name, bbox_inches="tight")
    write_whole(folder / f"{probe.name}.svg", drawing)
    what, *more = definition(type(probe))
    yield f'<h3 id="{probe.name}">{html.escape(probe.title)} <code>{probe.name}</code></h3>'
    yield f"<p>{html.escape(what)}</p>"
    yield html_figure(drawing, probe.reading)
    notes = [
        f"{arm}: {line}" if arm else line
        for arm, tables in arms.items()
        for line in _notes(probe, tables)
    ]
    if notes:
        yield "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>"
    for paragraph in more:
        yield f"<p><small>{html.escape(paragraph)}</small></p>"


def _notes(probe: Probe, tables: Sequence[Table]) -> Iterator[str]:
    for number, table in enumerate(tables, start=1):
        prefix = f"run {number}, " if len(tables) > 1 else ""
        for line in probe.summary(table):
            yield prefix + line
        if where := nonfinite_from(table):
            yield f"{prefix}not finite from {where} on"
