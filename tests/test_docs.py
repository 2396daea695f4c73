"""What the pages say: Python that runs and prints what is shown, options and files that exist."""

import contextlib
import io
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from command_line import Cli
from hybridnorm.placements import placement
from hybridnorm.recipe import load_recipe
from hybridnorm.study import load_study
from hybridnorm.train.report.metrics import MetricsWriter

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
RECIPE = r"(?:model|data|train|optimizer|schedule|parallel|diagnose|evaluate)\.[a-z][\w-]*"
VERBS = (
    *("train", "prepare", "generate", "evaluate", "study", "diagnose", "export", "import"),
    *("inspect", "show", "classify"),
)


class Block(NamedTuple):
    """Fenced code and, where it follows at once, what it prints."""

    code: str
    prints: str | None


def blocks(page: str, language: str) -> list[Block]:
    found = list(BLOCK.finditer(page))
    after = {match.start(): match for match in found}
    pairs = []
    for match in found:
        if match[1] == language:
            end = match.end() + len(page[match.end() :]) - len(page[match.end() :].lstrip("\n"))
            shown = after.get(end)
            prints = shown[2] if shown and shown[1] == "text" else None
            pairs.append(Block(textwrap.dedent(match[2]), prints))
    return pairs


def logged_run(run_dir: Path) -> None:
    """The metrics of 600 steps without a spike, as of the command that docs/train.md names."""
    run_dir.mkdir()
    writer = MetricsWriter(run_dir)
    for step in range(1, 601):
        writer.write(step=step, loss=5 - step / 300, grad_norm=1 - step / 900)
    writer.close()


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page, "python"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.code, "a page's block", "exec"), names)
        if block.prints is not None:
            assert plain(out.getvalue()) == plain(block.prints)


def plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(PAGES[name], "python")])
def test_python_runs_and_prints_what_is_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "docs/train.md":
        logged_run(tmp_path / "small")
    run_page(PAGES[name], tmp_path, monkeypatch)


@pytest.mark.slow
def test_the_spikes_of_the_run_that_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PAGES["docs/train.md"]
    monkeypatch.chdir(tmp_path)
    [command] = [words for words in commands(page) if "small" in words]
    result = cli(*command[1:])
    assert result.returncode == 0, result.stderr
    run_page(page, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("docs/placements.md", placement),
        ("docs/train.md", lambda path: load_recipe(path).in_steps()),
        ("docs/study.md", load_study),
    ],
)
def test_the_file_of_the_page_can_be_read(
    name: str, load: Callable[[Path], object], tmp_path: Path
) -> None:
    [block] = blocks(PAGES[name], "toml")
    path = tmp_path / "mine.toml"
    path.write_text(block.code)
    load(path)


def commands(page: str) -> Iterator[list[str]]:
    """The words of every `hybridnorm <verb> ...`, in blocks of a shell and in sentences."""
    text = re.sub(r"\\\n\s*", " ", page)  # a command that goes on in the next line
    inline = [
        match.replace("\n", " ") for match in re.findall(r"`([^`\n][^`]*)`", BLOCK.sub("", page))
    ]
    lines = [line for line in text.splitlines() if re.match(r"    |srun|torchrun|hybridnorm", line)]
    for source in [*lines, *inline]:
        match = re.search(rf"\bhybridnorm ({'|'.join(VERBS)})\b(?!:)[^#|]*", source)
        if match and "<" not in match[0]:
            yield shlex.split(match[0])


@pytest.fixture(scope="module")
def options(cli: Cli) -> dict[str, set[str]]:
    """The options that `hybridnorm <verb> --help` lists; a study takes those of recipes, too."""
    found = {
        verb: {"--help", *re.findall(r"(?<!\S)--[a-z][\w.-]*", cli(verb, "--help").stdout)}
        for verb in VERBS
    }
    found["study"] |= {option for option in found["train"] if "." in option} | {"--seed"}
    return found


@pytest.mark.parametrize("name", PAGES)
def test_options_and_fields_exist(name: str, options: dict[str, set[str]]) -> None:
    for _, verb, *words in commands(PAGES[name]):
        named = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert named <= options[verb], f"hybridnorm {verb}"
    fields = {option for options in options.values() for option in options if "." in option}
    text = re.sub(r"torch\.[\w.]+|hybridnorm\.[\w.]+", "", PAGES[name])
    dotted = set(re.findall(rf"--{RECIPE}|(?<=`){RECIPE}(?=[` ])", text))
    spelled = {"--" + field.removeprefix("--").replace("_", "-") for field in dotted}
    files = {
        field for field in spelled if field.endswith((".md", ".py", ".html", ".pt", ".safetensors"))
    }
    assert spelled - files <= fields


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name: str) -> None:
    places = r"(?:tests|src|benchmarks|scripts|docs|\.ci)/[\w./*-]*\w"
    for path in re.findall(rf"(?<![\w./-]){places}", BLOCK.sub("", PAGES[name])):
        assert list(ROOT.glob(path)), path
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGES[name]):
        if "://" not in link:
            assert (ROOT / name).parent.joinpath(link).exists(), link
