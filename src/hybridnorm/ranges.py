"""Ranges of numbers, declared beside a dataclass's fields, checked wherever one is built."""

import math
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, get_args, get_type_hints

from hybridnorm.errors import HybridNormError


@dataclass(frozen=True)
class Range:
    """The numbers that a field may be; nan and the infinities are in none."""

    above: float = -math.inf
    at_least: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.at_least <= number <= self.at_most and self.above < number < self.below

    def __str__(self) -> str:
        if self.at_least > -math.inf and self.at_most < math.inf:
            return f"from {self.at_least:,} to {self.at_most:,}"
        given = [f for f in fields(self) if getattr(self, f.name) != f.default]
        bounds = [f"{f.name.replace('_', ' ')} {getattr(self, f.name):,}" for f in given]
        return " and ".join(bounds) or "finite"


Natural = Annotated[int, Range(at_least=0)]
Count = Annotated[int, Range(at_least=1)]
Width = Annotated[int, Range(at_least=1, at_most=1 << 20)]
"""Of a matrix: what no machine could hold fails here, not in the allocator."""
Layers = Annotated[int, Range(at_least=1, at_most=10_000)]
Processes = Annotated[int, Range(at_least=1, at_most=1024)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
Decay = Annotated[float, Range(at_least=0, below=1)]


def check_number(name: str, value: Any, kind: Any) -> None:
    """Raise `HybridNormError` unless `value`, or each in it, is in the range of annotation `kind`.

    None is in every range: it is not set.
    """
    allowed = _range_in(kind)
    assert allowed is not None, f"{name}: no range is declared"
    for number in value if isinstance(value, list | tuple) else (value,):
        if number is None:
            continue
        bits = 63 if isinstance(number, int) else 127  # whole numbers of TOML; float32
        fits = abs(number) < 2**bits
        if not fits or number not in allowed:
            limit = "" if fits else f" and below 2^{bits}"
            raise HybridNormError(f"{name}: must be {allowed}{limit}, got {number}")


class Ranged:
    """A dataclass whose numbers are checked when it is built, in Python and from TOML alike."""

    def __post_init__(self) -> None:
        for name, allowed in ranges(type(self)).items():  # type: ignore[arg-type]
            check_number(name, getattr(self, name), allowed)


@cache
def ranges(cls: type) -> dict[str, Range]:
    """The range of each field of `cls` that has one, by name."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: found for name, kind in hints.items() if (found := _range_in(kind))}


def _range_in(kind: Any) -> Range | None:
    if isinstance(kind, Range):
        return kind
    return next(filter(None, map(_range_in, get_args(kind))), None)
