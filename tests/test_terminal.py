"""What users have named is shown as they wrote it, on any terminal; or one line says what fails."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import Cli
from hybridnorm import cli as command_line
from hybridnorm.placements import strategies
from hybridnorm.terminal import Screen, printable

TEXTS = ["r/x[/y]", "[/red]", "[bold]b[/bold]", ":smile:", "a$b$", "<script>", r"\[x]", "3.5 True"]
# What each verb needs to get as far as its own output.
LINES = {
    "--help": "--help",
    "--version": "--version",
    "show": "show",
    "show hybridnorm": "show hybridnorm --out {new}",
    "show --help": "show --help",
    "train --help": "train --help",
    "prepare": "prepare {text} --out {new} --tokenizer byte --workers 1",
    "train": "train demo --run-dir {new} {tiny} --train.steps 2",
    "generate": "generate {run} --prompt a --max-new-tokens 3",
    "study": "study {study} --dir {new}",
}


@pytest.fixture
def words(
    request: pytest.FixtureRequest, tmp_path: Path, trained: Path, corpus: Path, tiny: list[str]
) -> Iterator[list[str]]:
    """The words of `LINES[request.param]`, with signals as they were when it is done."""
    study = tmp_path / "study.toml"
    settings = zip(tiny[::2], tiny[1::2], strict=True)
    common = "".join(
        f'"{name[2:].replace("-", "_")}" = {value if value.isdigit() else repr(value)}\n'
        for name, value in settings
    )
    study.write_text(f'title = "[/red]"\ncompare = "seed"\n[set]\n{common}[grid]\nseed = [0]\n')
    places = {"new": tmp_path / "new", "run": trained, "text": corpus, "study": study}
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    line = LINES[request.param].replace("{tiny}", " ".join(tiny))
    yield ["hybridnorm", *line.format(**places).split(" ")]
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("text", TEXTS)
def test_a_console_prints_what_it_is_given(text: str) -> None:
    out = io.StringIO()
    screen = Screen(file=out, width=20, force_terminal=True)
    screen.print(f"{text} " * 10)
    assert out.getvalue() == f"{text} " * 10 + "\n"  # no colours, no line broken


def test_a_line_of_an_error_is_one_line_and_steers_nothing() -> None:
    assert printable("a\nb\x1b[2Jc é γ \udcff") == r"a\nb\x1b[2Jc é γ \udcff"


@pytest.mark.parametrize("name", ["a$b$c.toml", "[red].toml", "x_$y.toml", "<b>.toml", "规范.toml"])
def test_a_placement_file_may_be_called_anything(name: str, tmp_path: Path, cli: Cli) -> None:
    title = " ".join([*TEXTS, "规范"]).replace("\\", "")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + f'title = "{title}"\nnote = "[/x]"'.encode())
    result = cli("show", tmp_path / name, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{title}\n") and "  note: [/x]\n" in result.stdout
    [drawing] = tmp_path.glob("*.svg")
    assert "<script>" not in drawing.read_text() and "$" not in drawing.name


def test_a_placement_cannot_steer_the_terminal(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "p.toml").write_text(r'title = "\u001b[2J"')
    result = cli("show", tmp_path / "p.toml")
    assert result.returncode == 1
    assert result.stderr == (
        f"hybridnorm: {tmp_path}/p.toml: title: holds a control character: '\\x1b[2J'\n"
    )


@pytest.mark.parametrize("words", LINES, indirect=True)
def test_a_full_disk_behind_the_output_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stop:
            command_line.main()
    assert stop.value.code == "hybridnorm: standard output: No space left on device"


@pytest.mark.parametrize("words", LINES, indirect=True)
def test_a_closed_output_is_one_line(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdout", None)  # as Python itself sets it
    with pytest.raises(SystemExit) as stop:
        command_line.main()
    assert str(stop.value.code).startswith("hybridnorm: standard output: closed; ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
@pytest.mark.parametrize("verb", ["show", "--help", "train --help"])
def test_python_adds_nothing_as_it_exits(verb: str, output: str, unbuffered: str) -> None:
    result = subprocess.run(
        f"{sys.executable} -m hybridnorm {verb} {output}",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert result.returncode == 1
    assert result.stderr.startswith("hybridnorm: standard output: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [pytest.param(name, marks=pytest.mark.slow if name == "study" else ()) for name in LINES],
    indirect=True,
)
def test_every_verb_speaks_to_a_terminal_in_ascii(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "stdout", out)
    try:
        command_line.main()
    except SystemExit as stop:  # --help
        assert not stop.code, stop.code
    out.seek(0)
    assert len(out.read()) > 4


@pytest.mark.parametrize("name", strategies())
def test_equations_can_be_read_in_ascii(name: str, tmp_path: Path) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hybridnorm", "show", name, "--out", str(tmp_path)])
        patch.setattr(sys, "stdout", out)
        command_line.main()
    out.seek(0)
    assert "?" not in out.read()


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_a_locale_without_utf_8_is_enough(locale: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hybridnorm", "show", "deepnorm", "--out", str(tmp_path)],
        capture_output=True,
        env={**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert result.returncode == 0, result.stderr
    assert b"1.861" in result.stdout or b"(2L)^1/4" in result.stdout


def test_words_that_are_no_text_are_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hybridnorm", b"generate", b"x", b"--prompt", b"a\xff"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(r"hybridnorm: a\udcff: is not text here; ")
