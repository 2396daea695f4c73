"""Placements by name: the built-in table, the paper's grammar of ablations, files of users."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from hybridnorm import files
from hybridnorm.errors import HybridNormError, naming, nearest
from hybridnorm.placements.parse import placement_from_dict
from hybridnorm.placements.spec import AttentionSpec, FeedForwardSpec, Norm, Placement

_GRAMMAR = re.compile(r"(pre-)?([qkvc]{1,4})-(post|pre)")
_FIELD = {"q": "q_norm", "k": "k_norm", "v": "v_norm", "c": "context_norm"}


@cache
def strategies() -> Mapping[str, Placement]:
    """The built-in placements by name, in the order of strategies.toml."""
    tables = files.read_toml(resources.files("hybridnorm.placements") / "strategies.toml")
    return {name: placement_from_dict({"name": name, **table}) for name, table in tables.items()}


def placement(name: str | Path) -> Placement:
    """The placement called `name`: a built-in, an alias, a grammar name, or a TOML file.

    The grammar is the paper's (App. G): `[pre-]<letters of q,k,v,c>-<post|pre>`, such as
    `qkv-post`, `kv-pre` or `pre-qkvc-post`. Capitals, as the paper writes them, are the same.

    Raises:
        HybridNormError: no such placement (the nearest name is offered), or a broken file.
    """
    text = str(name)
    if text.endswith(".toml"):
        return load_placement(Path(text))
    if not text:
        raise HybridNormError(
            "placement: the name is empty; `hybridnorm show` lists the placements"
        )
    text = text.lower()
    known = strategies()
    aliases = {alias: found for found in known.values() for alias in found.aliases}
    found = known.get(text) or aliases.get(text) or _from_grammar(text)
    if found is None:
        hint = nearest(text, [*known, *aliases])
        raise HybridNormError(f"placement: unknown name {text!r}; {hint}; or name a .toml file")
    return found


def load_placement(path: Path) -> Placement:
    """Read a user's placement: the fields of one entry of strategies.toml, `name` included.

    Raises:
        HybridNormError: the file is missing, is not TOML, or has a broken field.
    """
    table = files.read_toml(path)
    with naming(path):
        return placement_from_dict({"name": path.stem, **table})


def _from_grammar(name: str) -> Placement | None:
    match = _GRAMMAR.fullmatch(name)
    if match is None or len(set(match[2])) != len(match[2]):
        return None
    pre, letters, feed_forward = match.groups()
    inner = {_FIELD[letter]: Norm() for letter in letters}
    return Placement(
        name=name,
        title="-".join(
            part.upper() if part == letters else part.capitalize() for part in name.split("-")
        ),
        attention=AttentionSpec(input_norm=Norm() if pre else None, **inner),  # type: ignore[arg-type]
        feed_forward=FeedForwardSpec(
            input_norm=Norm(), skip="normed" if feed_forward == "post" else "raw"
        ),
        init="megatron",
        source="Zhuo et al. 2025, arXiv 2503.04598, App. G (grammar of the ablations)",
    )
