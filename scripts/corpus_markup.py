"""HTML and XML pages, man pages and plain text as titles and candidate paragraphs."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import NamedTuple


class Page(NamedTuple):
    """A title (empty where the format names none) and candidate paragraphs, one line each."""

    title: str
    paragraphs: list[str]


def read_page(path: str, content: bytes) -> Page | None:
    """The page at a path of a package; None where the path names no documentation we read.

    The content is decompressed already, also where the path ends in .gz.
    """
    parse = _parser(path)
    if parse is None:
        return None
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return parse(text.replace("\r\n", "\n"))


def squeeze(text: str) -> str:
    """The text on one line, without soft hyphens and with a hyphen at a line's end closed up."""
    text = text.replace("\xad", "")
    # The hyphen stays: the tools that write these files break lines at hyphens that were there.
    text = re.sub(r"(?<=[a-z])-\n\s*(?=[a-z])", "-", text)
    return " ".join(text.split())


# Indices, lists of members and source listings hold no prose; _sources repeats the HTML pages.
_SKIPPED = re.compile(
    r"/(_sources|_modules|index-files|class-use)/|/share/help/(?!C/)"
    r"|/(copyright|changelog|genindex|search|py-modindex|package-tree|overview-tree|allclasses)[^/]*$"
    r"|(_source|-members)\.html$"
)
_MAN = re.compile(r"/man/man\d\w*/[^/]+$")


def _parser(path: str) -> Callable[[str], Page] | None:
    if _SKIPPED.search(path):
        return None
    if _MAN.search(path):
        return roff
    path = re.sub(r"\.gz$", "", path)
    if path.endswith((".html", ".htm", ".xhtml", ".page", ".docbook", ".xml")):
        return html
    if path.endswith((".txt", ".rst", ".md", ".info", ".dict.dz")) or re.search(
        r"\.info-\d+$|/games/fortunes/[^.]+$", path
    ):
        return plain
    return None


# --- HTML, DocBook and Mallard -----------------------------------------------------------------


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BLOCKS = _names(
    "p li dd dt div blockquote section article main body ul ol dl h1 h2 h3 h4 h5 h6 figure center "
    "para simpara listitem term note title item hr td th tr"
)
_DROPPED = _names(
    "pre script style nav table header footer form select svg math textarea xmp "
    "programlisting screen synopsis literallayout indexterm informaltable"
)
_DROPPED_CLASSES = _names(
    "related sphinxsidebar toc toctree-wrapper navheader navfooter navigation "
    "navbar breadcrumb memproto fragment navpath ttc nav sidebar highlight "
    "programlisting screen synopsis"
)
_VOID = _names("area base br col embed hr img input link meta param source track wbr")


# Found by a regular expression first: html.parser would spend most of its time on these.
_NOT_BLOCKS = re.compile(
    r"<(pre|script|style)\b.*?</\1\s*>|</?(?:span|a|code|tt|em|strong|b|i|var|font)\b[^>]*>",
    re.DOTALL | re.IGNORECASE,
)


class _Html(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.paragraphs: list[str] = []
        self.text: list[str] = []
        self.dropped = ""  # the element whose content is left out
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.dropped:
            self.depth += tag == self.dropped
        elif tag in _DROPPED or (
            tag not in _VOID
            and not _DROPPED_CLASSES.isdisjoint((dict(attrs).get("class") or "").split())
        ):
            self.flush()
            self.dropped, self.depth = tag, 1
        elif tag in _BLOCKS:
            self.flush()
        elif tag == "br":
            self.text.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self.dropped:
            self.depth -= tag == self.dropped
            if not self.depth:
                self.dropped = ""
        elif tag in _BLOCKS:
            if tag == "title" and not self.title:
                self.title = squeeze("".join(self.text))
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self.dropped:
            self.text.append(data)

    def flush(self) -> None:
        if paragraph := squeeze("".join(self.text)):
            self.paragraphs.append(paragraph)
        self.text.clear()


def html(text: str) -> Page:
    """The text of block elements outside code, tables and navigation."""
    parser = _Html()
    parser.feed(_NOT_BLOCKS.sub("", text).replace("¶", ""))
    parser.close()
    parser.flush()
    return Page(parser.title, parser.paragraphs)


# --- man pages ---------------------------------------------------------------------------------

_ROFF_CHARACTERS = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "em": "—", "en": "–",
    "hy": "-", "bu": "•", "co": "©", "rs": "\\", "ha": "^", "ti": "~", "mi": "-", "->": "→",
}  # fmt: skip
_ROFF_ESCAPE = re.compile(
    r"\\(?:f(?:\[[^]]*\]|\(..|.)|s[+-]?\d+|m\[[^]]*\]|[&|^%:/,)c{}]|[hvw]'[^']*')"
)
_ROFF_NAMED = re.compile(r"\\(?:\((..)|\[([^]]+)\])")
_ROFF_STRING = re.compile(r"\\\*(?:\(..|\[[^]]*\]|.)")
_FONTS = frozenset({"B", "I", "R", "SM", "SB", "BR", "BI", "IB", "IR", "RB", "RI"})
_ROFF_DROPPED = {"nf": "fi", "EX": "EE", "TS": "TE", "EQ": "EN", "de": ".", "ig": ".", "SY": "YS"}


def roff(text: str) -> Page:
    """The filled text of a page written with the man macros; mdoc pages come back empty."""
    title, paragraphs, lines = "", [], []
    if re.search(r"^\.Dd\b", text, re.MULTILINE):
        return Page("", [])
    source = iter(text.replace("\\\n", "").split("\n"))
    for line in source:
        if line[:1] not in (".", "'"):
            lines.append(_unescape(line))
            continue
        macro, *words = _arguments(line[1:])
        if macro in _FONTS:
            lines.append(
                _unescape(("" if len(macro) == 2 and macro[0] != "S" else " ").join(words))
            )
            continue
        if macro in _ROFF_DROPPED:
            end = _ROFF_DROPPED[macro]
            any(_arguments(dropped[1:])[0] == end for dropped in source if dropped[:1] == ".")
        elif macro == "TH" and words:
            title = _unescape(words[0])
        elif macro == "TP":
            next(source, "")  # the tag: an option or a name
        paragraphs.append(squeeze("\n".join(lines)))
        lines.clear()
    paragraphs.append(squeeze("\n".join(lines)))
    return Page(title, [paragraph for paragraph in paragraphs if paragraph])


def _arguments(line: str) -> list[str]:
    found = re.findall(r'"((?:[^"]|"")*)"?|(\S+)', re.sub(r'\\".*', "", line))
    return [quoted or bare for quoted, bare in found] or [""]


def _unescape(text: str) -> str:
    text = re.sub(r'\\["#].*', "", text)
    text = text.replace("\\-", "-").replace("\\ ", " ").replace("\\~", " ").replace("\\0", " ")
    text = _ROFF_STRING.sub(lambda m: {"\\*(lq": "“", "\\*(rq": "”"}.get(m[0], ""), text)
    text = _ROFF_ESCAPE.sub("", text)
    text = _ROFF_NAMED.sub(lambda m: _ROFF_CHARACTERS.get(m[1] or m[2], ""), text)
    return text.replace("\\e", "\\").replace("\\'", "'").replace("\\`", "`")


# --- plain text, reStructuredText, Markdown and Info -------------------------------------------

_ITEM = re.compile(r"\n(?=\s*(?:[-*+•]|\(?\d{1,2}[.)])\s+\S)")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)])\s+")
_UNDERLINE = re.compile(r"\n[ \t]*([-=~^\"'#*+._])\1{2,}[ \t]*(?=\n)")
_INLINE = [
    (re.compile(r"\*[Nn]ote\s+([^:]+?)(?:::|:[^.,]*(?=[.,]))"), r"“\1”"),  # Info
    (re.compile(r":[\w:+-]+:`~?([^`<]+?)\s*(?:<[^>]*>)?`"), r"\1"),  # a role
    (re.compile(r"`([^`<]+?)\s*<[^>]*>`__?"), r"\1"),  # a link
    (re.compile(r"!?\[([^]]*)\]\([^)\s]*\)"), r"\1"),  # a Markdown link
    (re.compile(r"\|([\w:'()-]+)\|"), r"\1"),  # Vim's tags, substitutions
    (re.compile(r"::$"), ":"),  # before code
    (re.compile(r"\{([^{}\\]+)\}"), r"\1"),  # a reference in a dictionary
    (re.compile(r"``?([^`\n]+?)``?_{0,2}(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w*])(\*\*?)(?=\S)([^*\n]+?)(?<=\S)\1(?![\w*])"), r"\2"),
]


def plain(text: str) -> Page:
    """Blocks between blank lines, one for each item of a list, without inline markup."""
    paragraphs = []
    text = _UNDERLINE.sub("\n", text)
    for block in re.split(r"\n[ \t\x1f\f%]*\n", text):
        for item in _ITEM.split(block):
            item = _BULLET.sub("", item)
            for pattern, replacement in _INLINE:
                item = pattern.sub(replacement, item)
            paragraphs.append(squeeze(item))
    return Page("", [paragraph for paragraph in paragraphs if paragraph])
