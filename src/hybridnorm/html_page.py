"""One self-contained offline HTML page: no scripts, nothing loaded from elsewhere."""

import html
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; }
body { max-width: 78rem; margin: 2rem auto; padding: 0 1rem; }
p, h1, figure { max-width: 60rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid #0072B2; padding-left: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font: .85rem/1.5 system-ui, sans-serif; white-space: nowrap; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
th { white-space: normal; vertical-align: bottom; }
td { font-variant-numeric: tabular-nums; }
td:nth-last-child(-n+2) { white-space: normal; min-width: 6rem; }
th:first-child, td:first-child { text-align: left; }
td a { color: inherit; text-decoration-color: #8886; } .below { opacity: .4; }
figure { margin: 1rem 0; background: white; border-radius: 6px; padding: .5rem; color: #333; }
figure svg { width: 100%; height: auto; max-height: 34rem; }
.drawings { display: flex; flex-wrap: wrap; gap: 1rem; }
.drawings figure { margin: 0; } .drawings svg { height: 27rem; width: auto; max-width: 100%; }
code, pre { font-size: .9rem; } pre { overflow-x: auto; padding: .8rem; background: #8882; }
"""


class Markup(str):
    """Text that is HTML already."""


def link(text: str, to: str) -> Markup:
    """Text that leads to a relative path."""
    return Markup(f'<a href="{html.escape(quote(to))}">{html.escape(text)}</a>')


def styled(text: str, style: str) -> Markup:
    """Text of one of the page's classes."""
    return Markup(f'<span class="{style}">{html.escape(text)}</span>')


def html_page(title: str, sections: Iterable[str]) -> str:
    """A whole page from pieces of HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "\n".join(sections)
        + "</body></html>"
    )


def html_table(columns: Mapping[str, Sequence[str]]) -> str:
    """Heading to cells, texts or `Markup`, as a table that scrolls where it is too wide."""

    def row(cells: Iterable[str], tag: str) -> str:
        texts = (c if isinstance(c, Markup) else html.escape(c) for c in cells)
        return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"

    body = "".join(row(cells, "td") for cells in zip(*columns.values(), strict=True))
    return f'<div class="scroll"><table>{row(columns, "th")}{body}</table></div>'


def html_figure(drawing: str, caption: str) -> str:
    """An SVG element with its caption."""
    return f"<figure>{drawing}<figcaption>{html.escape(caption)}</figcaption></figure>"
