"""A verb's own options, read and explained by tyro from its dataclass."""

import contextlib
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar, cast

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.ranges import ranges
from hybridnorm.recipe import field_types

T = TypeVar("T")


def parse_options(cls: type[T], verb: str, argv: Sequence[str], default: T | None = None) -> T:
    """Parse `argv` into `cls`; an unknown option is one line that offers the nearest one.

    Raises:
        HybridNormError: an unknown option, or a value that its field refuses.
    """
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            parsed, unknown = tyro.cli(
                cls,
                prog=f"hybridnorm {verb}",
                args=argv,
                default=default,
                return_unknown_args=True,
                registry=_showing_ranges(),
            )
    except SystemExit as stop:
        if stop.code:
            raise HybridNormError(_first_sentence(boxed.getvalue())) from None
        raise
    if unknown:
        option = unknown[0].split("=")[0]
        is_flag = option.startswith("--")
        hint = nearest(option.replace("_", "-"), _options(cls)) if is_flag else "see --help"
        raise HybridNormError(f"unknown argument {option!r}; {hint}")
    return cast(T, parsed)


def _showing_ranges() -> ConstructorRegistry:
    """Rules by which the help of a number ends in its range."""
    registry, asking = ConstructorRegistry(), list[StructTypeInfo]()

    @registry.struct_rule
    def explain(info: StructTypeInfo) -> StructConstructorSpec | None:
        if asking or not is_dataclass(info.type):
            return None  # to tyro's own rules
        asking.append(info)
        spec = ConstructorRegistry.get_struct_spec(info)
        asking.pop()
        if not isinstance(spec, StructConstructorSpec):
            return None
        texts = {name: f" ({bounds})" for name, bounds in ranges(info.type).items()}
        fields = (
            replace(f, helptext=_text(f.helptext) + texts.get(f.name, "")) for f in spec.fields
        )
        return replace(spec, fields=tuple(fields))

    return registry


def _text(help: Any) -> str:
    """tyro reads docstrings late: a help may be a function."""
    return (help() if callable(help) else help) or ""


def _first_sentence(box: str) -> str:
    """The message of tyro's error box, on one line and without the frame."""
    # On a terminal without UTF-8 the frame is spaces and hyphens.
    _title, *lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    below = itertools.dropwhile(_is_rule, lines)
    message = itertools.takewhile(lambda line: not _is_rule(line), below)
    # What the dataclass itself refuses names its field; tyro would name the dataclass.
    return re.sub(r"^Error parsing (?:(--\S+: )|\S*: )", r"\1", " ".join(message))


def _is_rule(line: str) -> bool:
    return bool(line) and set(line) <= {"─", "-"}


def _options(cls: type) -> list[str]:
    """Every option of a verb, dotted names for nested ones."""
    return [f"--{n.removeprefix('config.').replace('_', '-')}" for n in field_types(cls)]
