"""TOML tables to placements and back: the one format of the built-in table and of user files.

Shorthands: a norm may be its kind (`input_norm = "rms"`) or "none", a scale may be a number
(`branch_scale = 0.22`), `affine` may be true ("vector") or false ("none").
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.placements.override import Override, Patch
from hybridnorm.placements.spec import (
    AttentionSpec,
    FeedForwardSpec,
    Kind,
    Norm,
    Placement,
    Scale,
    Sublayer,
)
from hybridnorm.strict_toml import build, check_field, from_annotation


def placement_from_dict(table: Mapping[str, object]) -> Placement:
    """Build a placement from a TOML table.

    Raises:
        HybridNormError: an unknown or ill-typed field; the message names it by its dotted path.
    """
    return build(Placement, table, convert=_convert)


def placement_to_dict(placement: Placement) -> dict[str, Any]:
    """The TOML table of a placement: only the fields that differ from their defaults."""
    return _plain(placement)


def _convert(cls: type, name: str, value: object, where: str) -> object:
    if issubclass(cls, Override) and name in ("attention", "feed_forward"):
        return _patch(AttentionSpec if name == "attention" else FeedForwardSpec, value, where)
    if issubclass(cls, Placement) and name == "attention":
        return build(AttentionSpec, value, where, _convert)
    if issubclass(cls, Placement) and name == "feed_forward":
        return build(FeedForwardSpec, value, where, _convert)
    if issubclass(cls, Placement) and name == "overrides":
        if not isinstance(value, list):
            raise HybridNormError(f"{where}: expected an array of tables, got {value!r}")
        return tuple(build(Override, v, f"{where}[{i}]", _convert) for i, v in enumerate(value))
    if name.endswith("_norm"):
        return _norm(value, where)
    if name.endswith("_scale") or name == "gain_init":
        return _scale(value, where)
    if name == "affine" and isinstance(value, bool):
        return "vector" if value else "none"
    return from_annotation(cls, name, value, where)


def _patch(cls: type[Sublayer], table: object, where: str) -> Patch:
    """The fields a patch names, converted; the whole spec is validated when it is applied."""
    if not isinstance(table, Mapping):
        raise HybridNormError(f"{where}: expected a table, got {table!r}")
    for name in table:
        check_field(name, cls, f"{where}.{name}")
    return tuple((name, _convert(cls, name, v, f"{where}.{name}")) for name, v in table.items())


def _norm(value: object, where: str) -> Norm | None:
    if value == "none":
        return None
    if isinstance(value, str):
        if value not in get_args(Kind):
            choices = (*get_args(Kind), "none")
            raise HybridNormError(f"{where}: unknown norm {value!r}; {nearest(value, choices)}")
        value = {"kind": value}
    if not isinstance(value, Mapping):
        raise HybridNormError(f'{where}: expected a kind of norm, "none" or a table, got {value!r}')
    return build(Norm, value, where, _convert)


def _scale(value: object, where: str) -> Scale:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return build(Scale, {"value": value}, where, _convert)
    if not isinstance(value, Mapping):
        raise HybridNormError(f"{where}: expected a number or a table, got {value!r}")
    return build(Scale, value, where, _convert)


def _plain(spec: Any) -> dict[str, Any]:
    table = {}
    for f in fields(spec):
        value = getattr(spec, f.name)
        if f.default is MISSING or value != f.default:
            table[f.name] = _plain_value(value)
    return table


def _plain_value(value: Any) -> Any:
    if value is None:
        return "none"
    if isinstance(value, Norm):
        return (
            value.kind if value == Norm(kind=value.kind) else {"kind": value.kind, **_plain(value)}
        )
    if isinstance(value, Scale):
        return value.value if value == Scale(value=value.value) else _plain(value)
    if isinstance(value, Sublayer | Override):
        return _plain(value)
    if isinstance(value, tuple):
        is_patch = bool(value) and isinstance(value[0], tuple)
        if is_patch:
            return {name: _plain_value(item) for name, item in value}
        return [_plain_value(item) for item in value]
    return value
