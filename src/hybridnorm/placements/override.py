"""Which blocks of a placement differ from the others, and in which fields."""

import re
from dataclasses import dataclass, fields
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.text import count

Patch = tuple[tuple[str, object], ...]
_SELECTOR = re.compile(
    r"(?P<edge>first|last)(?: (?P<count>[1-9]\d*)| (?P<percent>\d+(?:\.\d+)?)%)?"
    r"|every (?P<period>[1-9]\d*)"
    r"|blocks (?P<listed>[1-9]\d*(?:, ?[1-9]\d*)*)",
    re.ASCII,
)


def patch(base: Any, other: Any) -> Patch:
    """The fields in which `other` differs from `base`, a spec of the same kind."""
    values = ((field.name, getattr(other, field.name)) for field in fields(base))
    return tuple((name, value) for name, value in values if value != getattr(base, name))


@dataclass(frozen=True, kw_only=True)
class Override:
    """Fields replaced in the blocks that `layers` selects.

    `layers`: "first", "first 3", "first 25%" (rounded down), "last", "last 2", "every 4"
    (blocks 4, 8, ...), "blocks 2, 5". Blocks are counted from 1, over the whole model.
    """

    layers: str
    attention: Patch = ()
    feed_forward: Patch = ()

    def __post_init__(self) -> None:
        match = _SELECTOR.fullmatch(self.layers)
        if match is None or float(match["percent"] or 0) > 100:
            raise HybridNormError(
                f"layers: cannot read {self.layers!r}; write first, first 3, first 25%, "
                "last, last 2, every 4 or blocks 2, 5"
            )
        for name in ("attention", "feed_forward"):
            # The order of a patch means nothing, so equal patches should compare equal.
            ordered = sorted(getattr(self, name), key=lambda item: item[0])
            object.__setattr__(self, name, tuple(ordered))

    def selects(self, layer: int, n_layers: int) -> bool:
        match = _SELECTOR.fullmatch(self.layers)
        assert match is not None
        if match["listed"]:
            return layer + 1 in map(int, match["listed"].split(","))
        if match["period"]:
            return (layer + 1) % int(match["period"]) == 0
        n_selected = int(match["count"] or 1)
        if match["percent"]:
            n_selected = int(float(match["percent"]) / 100 * n_layers + 1e-9)
        return layer < n_selected if match["edge"] == "first" else layer >= n_layers - n_selected

    def missing(self, n_layers: int) -> str:
        """What `layers` names that a model of `n_layers` blocks has not; "" where nothing."""
        listed = re.findall(r"\d+", self.layers) if self.layers.startswith("blocks") else []
        beyond = [number for number in listed if int(number) > n_layers]
        if beyond:
            return f"there is no block {', '.join(beyond)} among {n_layers}"
        if not any(self.selects(layer, n_layers) for layer in range(n_layers)):
            return f"{self.layers!r} selects none of {count(n_layers, 'block')}"
        return ""
