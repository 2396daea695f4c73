"""Whether a configuration fits the weights: by what files say of their tensors, none is read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.foreign.fields import USUAL

_LAYER = re.compile(r"\.(\d+)\.")
Shapes = Mapping[str, tuple[int, ...]]


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of the tensors in a folder, as far as its files can be read."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                found |= {n: tuple(file.get_slice(n).get_shape()) for n in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            continue  # loading names it
    return found


def check_shapes(config: Mapping[str, Any], asked: Shapes, held: Shapes) -> None:
    """Raise `HybridNormError` where tensors of `held` have other shapes, or other layers, than
    `asked` for by the fields in `config`; they are named."""
    for name in sorted(asked.keys() & held.keys()):
        if asked[name] != held[name]:
            unlike = {a for a, h in zip(asked[name], held[name], strict=False) if a != h}
            heads = config.get("head_dim") or 1
            fields = _named(config, unlike | {size // heads for size in unlike})
            raise HybridNormError(
                f"{fields}: {name!r} of the weights has shape {list(held[name])}, the "
                f"configuration asks for {list(asked[name])}"
            )
    # Tensors may be called otherwise in files, but where they are called alike, layers are counted.
    alike = _forms(asked) & _forms(held)
    wanted, has = _depth(asked, alike), _depth(held, alike)
    if wanted != has:
        raise HybridNormError(
            f"{_named(config, {wanted}, 'layer')}: the weights have {has} layers, the "
            f"configuration asks for {wanted}"
        )


def _named(config: Mapping[str, Any], sizes: set[int], part: str = "") -> str:
    """The fields that may have asked for one of these sizes, by the usual words if possible."""
    found = [name for name, size in config.items() if type(size) is int and size in sizes]
    usual = [name for name in found if name in USUAL and part in name]
    return " or ".join(sorted(usual or found)) or "sizes"


def _forms(names: Shapes) -> set[str]:
    return {_LAYER.sub(".*.", name) for name in names}


def _depth(names: Shapes, forms: set[str]) -> int:
    """How many layers have tensors of these forms."""
    numbers = [
        int(found[1])
        for name in names
        if _LAYER.sub(".*.", name) in forms and (found := _LAYER.search(name))
    ]
    return max(numbers, default=-1) + 1
