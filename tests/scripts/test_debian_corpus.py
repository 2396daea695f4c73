"""The corpus recipe: text out of markup, prose out of text, one corpus for the same packages."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import debian_corpus  # noqa: E402
from corpus_markup import read_page  # noqa: E402
from corpus_prose import fingerprint, is_prose  # noqa: E402


def paragraphs(path: str, text: str) -> list[str]:
    page = read_page(path, text.encode())
    assert page is not None
    return page.paragraphs


def test_html_keeps_the_text_of_blocks_and_entities() -> None:
    page = read_page(
        "/usr/share/doc/x/a.html",
        b"<html><head><title>Locks &amp; keys</title><style>p { x: y }</style></head><body>"
        b"<p>A caf&eacute; &mdash; <em>not</em> a <code>bar</code>, it&#8217;s\n"
        b"well-\nknown.<a class='headerlink' href='#x'>\xc2\xb6</a></p>"
        b"<ul><li>Outer item<ul><li>Inner &lt;item&gt;</li></ul>after</li></ul>"
        b"<dl><dt>Term<dd>Meaning, unclosed<dt>Next</dl>one<br>two",
    )
    assert page is not None
    assert page.title == "Locks & keys"
    assert page.paragraphs == [
        "Locks & keys",
        "A café — not a bar, it’s well-known.",
        "Outer item",
        "Inner <item>",
        "after",
        "Term",
        "Meaning, unclosed",
        "Next",
        "one two",
    ]


@pytest.mark.parametrize(
    "dropped",
    [
        "<pre>int <b>main</b>(void);\n\n<span>return</span></pre>",
        "<script>if (a < b) { document.write('<p>no</p>'); }</script>",
        "<nav><ul><li><a href='/'>Home</a></li></ul></nav>",
        "<table><tr><td><table><tr><td>inner</td></tr></table>outer</td></tr></table>",
        "<div class='toctree-wrapper compound'><div><p>Chapter</p></div><div>2</div></div>",
        "<programlisting>$ ls</programlisting>",
        "<!-- a comment -->",
    ],
)
def test_html_drops(dropped: str) -> None:
    assert paragraphs("/x/a.html", f"<p>Before</p>{dropped}<p>After</p>") == ["Before", "After"]


def test_man_page_loses_fonts_tags_and_examples() -> None:
    page = read_page(
        "/usr/share/man/man1/grep.1.gz",
        rb""".\" A comment
.TH GREP 1 "2023\-01\-01"
.de xx
.B never
..
.SH DESCRIPTION
The \fBgrep\fP command prints lines\(emall of them\(emthat \fImatch\fR a
.BR pattern (7),
see
.I "the manual" .
Use \-v \f(CWto\fP invert\&.
.TP
.BR \-i ", " \-\-ignore\-case
Ignore case
distinctions.
.nf
code here
.fi
.TS
l l.
a b
.TE
.PP
It\(aqs a \*(lqlast\*(rq \s-1NFA\s0 with a C:\e path.
""",
    )
    assert page is not None
    assert page.title == "GREP"
    assert page.paragraphs == [
        "The grep command prints lines—all of them—that match a pattern(7), see the manual . "
        "Use -v to invert.",
        "Ignore case distinctions.",
        "It's a “last” NFA with a C:\\ path.",
    ]


def test_plain_text_splits_items_and_drops_inline_markup() -> None:
    text = (
        "The ``shell`` and :ref:`the guide <g>`, `a link <h:x>`_, **now**\nor [later](u) {on}.\n"
        "\n* First item\n  goes on.\n* Second\n\n*Note Loops: Loops. Also *note Jumps::."
        "\n\nHeading\n-------\nText, with |tags|, comes before the code::\n\n    x = 1"
    )
    assert paragraphs("/x/a.rst", text) == [
        "The shell and the guide, a link, now or later on.",
        "First item goes on.",
        "Second",
        "“Loops”. Also “Jumps”.",
        "Heading",
        "Text, with tags, comes before the code:",
        "x = 1",
    ]


@pytest.mark.parametrize(
    "path",
    ["/x/a.png", "/x/changelog.gz", "/x/_sources/a.rst.txt", "/x/genindex.html", "/bin/ls"],
)
def test_files_that_hold_no_prose_are_not_read(path: str) -> None:
    assert read_page(path, b"The text.") is None


PROSE = [
    "If the file is not there, the command fails and says so on standard error.",
    "“It is a truth,” she said, “that nobody reads the manual before something breaks.”",
    "The fork() function returns twice: once in the parent, and once in the child process.",
]
NOT_PROSE = {
    "short": "See the manual for more.",
    "fragment": "the name of the file that is to be read when the program is started.",
    "no end": "The list of the options that can be used in all of the programs above",
    "code": "If x = a[i] && b[j]; then { return x->next; } else { y |= 1 << z; } is it.",
    "command": "Use --with-foo=/usr/bin --with-bar=/usr/lib to set the $PATH for the %s in it.",
    "names": "Thanks to Ada Lovelace, Grace Hopper, Alan Turing, and to Edsger Dijkstra.",
    "figures": "In 2019 it was 12 of the 300, and in 2020 it was 15 of the 400 that there are.",
    "signs": "Here the *first and the #second are with plain words, so the signs give it away.",
    "symbols": "PGUP PGDN HOME END INS DEL F1 F2 F3 F4 F5 F6 F7 F8 F9 F10.",
    "german": "Wenn die Datei nicht vorhanden ist, bricht der Befehl mit einer Fehlermeldung ab.",
    "french": "Si le fichier est absent, la commande se termine et affiche un message d'erreur.",
    "spanish": "Si el archivo no existe, la orden termina y muestra un mensaje de error.",
    "word list": "Apples pears plums cherries grapes melons lemons limes peaches figs dates kiwis.",
    "boilerplate": "Copyright by the authors of this work, who have all of the rights in it.",
}


@pytest.mark.parametrize("paragraph", PROSE)
def test_prose_passes(paragraph: str) -> None:
    assert is_prose(paragraph)


@pytest.mark.parametrize("kind", NOT_PROSE)
def test_other_text_does_not_pass(kind: str) -> None:
    assert not is_prose(NOT_PROSE[kind])


def test_fingerprint_sees_past_spaces_signs_digits_and_case() -> None:
    assert fingerprint("Version 1.2 of “foo” is out.") == fingerprint("version 13 of foo is out")
    assert fingerprint("Version one is out.") != fingerprint("Version two is out.")


SENTENCE = "Paragraph {} of this page is about the things that {} can do with it when it is there. "
NUMBERS = ("one", "two", "three", "four")


@pytest.fixture
def debs(tmp_path: Path) -> list[Path]:
    """Two packages; the second repeats the first, and has pages of its own in two formats."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    shared, own = ([SENTENCE.format(n, w) * 3 for n in NUMBERS] for w in ("owls", "bees"))
    html = "<title>Page</title><p>" + "<p>".join(shared)
    pages = {
        "one": {"b.html": html, "a.html": html},
        "two": {
            "a.txt": "\n\n".join([*own, "* " + SENTENCE.format("five", "cats") * 9]),
            "c.html": html,
            "d.html": "<title>Own</title><p>" + "<p>".join([*shared[:2], *own]),
            "e.html": "<p>" + SENTENCE.format("six", "dogs"),
        },
    }
    return [_deb(tmp_path / name, files) for name, files in pages.items()]


def _deb(root: Path, pages: dict[str, str]) -> Path:
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {root.name}\nVersion: 1:1.0\nArchitecture: all\n"
    control += "Maintainer: Nobody <nobody@example.org>\nDescription: test\n"
    (root / "DEBIAN/control").write_text(control)
    folder = root / "usr/share/doc" / root.name
    folder.mkdir(parents=True)
    for name, page in pages.items():
        content = gzip.compress(page.encode())
        (folder / f"{name}.gz").write_bytes(content)
    (folder / "damaged.html.gz").write_bytes(content[:-20])
    deb = root.parent / f"{root.name}_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, deb], check=True, capture_output=True)
    return deb


def test_the_same_packages_give_the_same_corpus(debs: list[Path], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    packages = debian_corpus.build(debs, first)
    debian_corpus.build(debs, second)

    assert [path.name for path in sorted(first.iterdir())] == ["debian-00.jsonl", "manifest.json"]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    lines = [json.loads(line) for line in (first / "debian-00.jsonl").read_text().splitlines()]
    assert [(line["source"], line["path"], line["title"]) for line in lines] == [
        ("one", "/usr/share/doc/one/a.html.gz", "Page"),
        ("two", "/usr/share/doc/two/d.html.gz", "Own"),
    ]
    texts = [line["text"].split("\n\n") for line in lines]
    assert [len(text) for text in texts] == [4, 4]
    assert len({paragraph for text in texts for paragraph in text}) == 8
    assert [(p.version, p.documents, p.duplicates) for p in packages] == [
        ("1:1.0", 1, 4),
        ("1:1.0", 1, 4 + 2 + 4),
    ]
    assert sum(p.bytes_kept for p in packages) == sum(len(line["text"].encode()) for line in lines)
    assert "2 packages" in debian_corpus.table(packages)


def test_a_damaged_package_is_left_out(
    debs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    debs[0].write_bytes(debs[0].read_bytes()[:300])
    packages = debian_corpus.build(debs, tmp_path / "out")
    assert [package.name for package in packages] == ["two"]
    assert "one_1.0_all.deb: left out: damaged" in capsys.readouterr().err


def run(tmp_path: Path, **tools: str) -> subprocess.CompletedProcess[str]:
    """The script where the only programs are the tools given as shell scripts."""
    for name, body in tools.items():
        tool = tmp_path / name.replace("_", "-")
        tool.write_text(f"#!/bin/sh\n{body}\n")
        tool.chmod(0o755)
    command = [sys.executable, SCRIPTS / "debian_corpus.py"]
    command += ["--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    return subprocess.run(command, env={"PATH": str(tmp_path)}, capture_output=True, text=True)


def test_one_line_where_apt_get_is_missing(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "debian_corpus: apt-get is missing; run this on Debian or a system made from it\n"
    )


def test_one_line_for_each_package_and_a_last_one_where_none_can_be_had(tmp_path: Path) -> None:
    done = run(tmp_path, apt_get="echo 'E: Unable to locate it' >&2; exit 100", dpkg_deb="exit 2")
    *warnings, last = done.stderr.splitlines()
    assert done.returncode == 1
    names = debian_corpus.PACKAGES.read_text().split()
    assert warnings == [f"debian_corpus: {n}: left out: Unable to locate it" for n in names]
    assert last.startswith("debian_corpus: no package could be had; run apt-get update")


def test_one_line_where_the_disk_is_full(tmp_path: Path) -> None:
    done = run(tmp_path, apt_get="echo 'E: No space left on device' >&2; exit 100", dpkg_deb="")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "debian_corpus: the disk is full; free some space, or name other folders (--out, --cache)"
    ]
