"""Every number of every dataclass that users fill has a range, and nothing outside it gets in."""

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

import hybridnorm
from hybridnorm import cli, verbs
from hybridnorm.errors import HybridNormError
from hybridnorm.ranges import Range, check_number, ranges
from hybridnorm.recipe import Recipe, field_types, load_recipe
from hybridnorm.strict_toml import build


def configs() -> Iterator[type]:
    """The dataclasses of the house that are built by keywords alone: those users fill."""
    found: set[type] = set()
    for module in pkgutil.walk_packages(hybridnorm.__path__, "hybridnorm."):
        if not module.name.endswith("__main__"):
            found |= {c for c in _names(module.name) if isinstance(c, type) and is_dataclass(c)}
    of_users = [
        cls
        for cls in found
        if cls.__module__.startswith("hybridnorm") and all(f.kw_only for f in fields(cls))
    ]
    return iter(sorted(of_users, key=lambda cls: cls.__qualname__))


def _names(module: str) -> list[object]:
    try:
        return list(vars(importlib.import_module(module)).values())
    except ModuleNotFoundError as error:
        assert not str(error.name).startswith("hybridnorm"), error
        return []  # an extra that is not installed


def is_number(kind: Any) -> bool:
    return kind in (int, float) or any(map(is_number, get_args(kind)))


NUMBERS = [
    (cls, name)
    for cls in configs()
    for name, kind in get_type_hints(cls).items()
    if is_number(kind)
]


def test_every_number_has_a_range() -> None:
    assert len(NUMBERS) > 60
    assert not [f"{cls.__name__}.{name}" for cls, name in NUMBERS if name not in ranges(cls)]


def outside(allowed: Range) -> list[float]:
    edges = [allowed.above, allowed.below, allowed.at_least - 1, allowed.at_most * 2 + 1]
    return [float("nan"), float("inf"), float("-inf"), 2**64, -(2**64), *edges]


@pytest.mark.parametrize(
    ("cls", "name"), NUMBERS, ids=lambda value: getattr(value, "__name__", value)
)
def test_nothing_outside_its_range_gets_into_a_field(cls: type, name: str) -> None:
    hints = get_type_hints(cls)
    missing = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING]
    needed = {field: 1 if is_number(hints[field]) else "x" for field in missing}
    is_array = "tuple" in str(hints[name])
    for number in outside(ranges(cls)[name]):
        given = {**needed, name: (number, number) if is_array else number}
        with pytest.raises(HybridNormError, match=rf"^{name}: must be .*, got ") as caught:
            cls(**given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n, kind in field_types(Recipe).items() if is_number(kind)])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.5, -1, 10**400])
def test_nor_by_toml_or_the_command_line(name: str, number: float) -> None:
    is_array = "tuple" in str(field_types(Recipe)[name])
    with pytest.raises(HybridNormError, match=rf"^{name}: "):
        load_recipe("demo", {name: [number, number] if is_array else number})


def test_ranges_say_what_they_hold() -> None:
    assert str(Range(at_least=1)) == "at least 1"
    assert str(Range(at_least=0, below=1)) == "at least 0 and below 1"
    assert str(Range(above=0, at_most=1)) == "above 0 and at most 1"
    assert str(Range(at_least=-4, at_most=4)) == "from -4 to 4"
    assert str(Range()) == "finite"
    check_number("x", (0.5, None, 1), Range(above=0, at_most=1))
    with pytest.raises(HybridNormError, match=r"^x: must be above 0 and below 2\^127, got inf$"):
        check_number("x", float("inf"), Range(above=0))


def test_numbers_beyond_64_bits_are_not_printed() -> None:
    with pytest.raises(HybridNormError, match=r"^seed: the number is too large") as caught:
        build(Recipe, {"seed": 1 << 20_000})
    assert len(str(caught.value)) < 80


VERBS = {
    "train": verbs.Train,
    "study": verbs.StudyArgs,
    "prepare": verbs.Prepare,
    "generate": verbs.Generate,
    "evaluate": verbs.Evaluate,
    "show": verbs.Show,
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_the_range_of_every_number(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # wider, and tyro sets it in two columns
    monkeypatch.setattr(sys, "argv", ["hybridnorm", verb, "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name in (n for n, kind in field_types(VERBS[verb]).items() if is_number(kind)):
        option = f"--{name.removeprefix('config.').replace('_', '-')} "
        help_of_it = said.split(option)[-1].split(" --")[0]
        assert re.search(r"\((at least|at most|above|from) ", help_of_it), option
