"""TOML tables to frozen dataclasses and back, strictly: every error names the field."""

import types
import typing
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union

from hybridnorm.errors import HybridNormError, nearest

T = TypeVar("T")
Convert = Callable[[type, str, object, str], object]


def check_field(name: str, cls: type, where: str) -> None:
    """Raise `HybridNormError` for an unknown field of `cls`; `where` is its dotted path."""
    if name in (known := [f.name for f in fields(cls)]):
        return
    inside = [f"{n}.{name}" for n, c in typing.get_type_hints(cls).items() if _has(c, name)]
    hint = f"did you mean {inside[0]!r}?" if inside else nearest(name, known)
    if "." in name:
        hint = "write a dotted name without quotes"
    raise HybridNormError(f"{where}: unknown field; {hint}")


def _has(cls: Any, name: str) -> bool:
    return is_dataclass(cls) and name in cls.__dataclass_fields__


def build(cls: type[T], table: object, path: str = "", convert: Convert | None = None) -> T:
    """A `cls` from a table. `convert(cls, name, value, dotted_path)` turns values into fields.

    Raises:
        HybridNormError: an unknown, missing, ill-typed or invalid field, named by its dotted path.
    """
    if not isinstance(table, Mapping):
        raise HybridNormError(f"{path or cls.__name__}: expected a table, got {table!r}")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for name, value in table.items():
        where = f"{path}.{name}" if path else name
        check_field(name, cls, where)
        values[name] = (convert or from_annotation)(cls, name, value, where)
    required = {
        n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING
    }
    if missing := required - values.keys():
        raise HybridNormError(f"{path or cls.__name__}: missing field {min(missing)!r}")
    try:
        return cls(**values)
    except HybridNormError as error:
        prefix = f"{path}." if path and not str(error).startswith(f"{path}.") else ""
        raise HybridNormError(f"{prefix}{error}") from None


def from_annotation(cls: type, name: str, value: object, where: str) -> object:
    """`value` as field `name` of `cls` wants it, by its annotation."""
    return typed(typing.get_type_hints(cls)[name], value, where)


def typed(annotation: Any, value: object, where: str) -> object:
    """`value` as `annotation` wants it; where None is a value, "None" stands for it.

    Raises:
        HybridNormError: it cannot be that; the message begins with `where`.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return None if value in (None, "None") else typed(args[0], value, where)
    if origin is Literal:
        if value not in args:
            hint = nearest(str(value), [str(a) for a in args])
            raise HybridNormError(f"{where}: unknown value {value!r}; {hint}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise HybridNormError(f"{where}: expected an array, got {value!r}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise HybridNormError(f"{where}: expected {len(args)} values, got {len(value)}")
        kinds = args if args[-1] is not Ellipsis else (args[0],) * len(value)
        return tuple(typed(k, v, where) for k, v in zip(kinds, value, strict=True))
    if is_dataclass(annotation):
        return build(typing.cast(type[Any], annotation), value, where)
    return _plain_typed(origin or annotation, value, where)


def _plain_typed(annotation: Any, value: object, where: str) -> object:
    if isinstance(value, int) and abs(value) >= 2**63:
        raise HybridNormError(f"{where}: the number is too large; TOML has 64 bits for it")
    if isinstance(value, str) and any(map(_steers, value)):
        raise HybridNormError(f"{where}: holds a control character: {value!r}")
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, annotation) and not (isinstance(value, bool) and annotation is not bool):
        return value
    wanted = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "a string",
        dict: "a table",
    }
    raise HybridNormError(f"{where}: expected {wanted.get(annotation, annotation)}, got {value!r}")


def _steers(character: str) -> bool:
    """Whether it would steer a terminal, or cannot be written to a file."""
    return unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"


def dotted(config: Any) -> dict[str, Any]:
    """The values of `to_table` by dotted field."""
    values: dict[str, Any] = {}
    for name, value in to_table(config).items():
        inner = getattr(config, name)
        within = dotted(inner) if is_dataclass(inner) else None
        values |= {name: value} if within is None else {f"{name}.{n}": v for n, v in within.items()}
    return values


def to_table(config: Any) -> dict[str, Any]:
    """The full TOML table of a dataclass; fields that are None are left out."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {
        name: to_table(value)
        if is_dataclass(value)
        else list(value)
        if isinstance(value, tuple)
        else value
        for name, value in values.items()
        if value is not None
    }
