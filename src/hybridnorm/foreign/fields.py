"""The fields of a config.json: there, of their type, and sensible."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from hybridnorm.errors import HybridNormError
from hybridnorm.placements import placement_from_dict
from hybridnorm.ranges import Count, Natural, NotNegative, Ranged
from hybridnorm.strict_toml import build, typed

OURS = "hybridnorm"
_NEEDED = (
    "placement",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True, kw_only=True)
class _Words(Ranged):
    """What configurations call the same, whatever the architecture."""

    vocab_size: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    max_position_embeddings: Count | None = None
    num_key_value_heads: Count | None = None
    num_experts: Natural | None = None
    num_experts_per_tok: Natural | None = None
    moe_intermediate_size: Count | None = None
    rms_norm_eps: NotNegative | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool | None = None
    gated_mlp: bool | None = None
    initializer_range: NotNegative | None = None
    initializer: dict[str, Any] | None = None


USUAL = [field.name for field in fields(_Words)]


@dataclass(frozen=True, kw_only=True)
class Pretraining(Ranged):
    """What an export of ours says of its run."""

    steps: Natural
    tokens: Natural
    val_loss: NotNegative | None = None


def check_fields(table: Mapping[str, Any]) -> None:
    """Raise `HybridNormError` naming a field that is missing, ill-typed or nonsense."""
    ours = table["model_type"] == OURS
    if ours and (missing := [name for name in _NEEDED if table.get(name) is None]):
        raise HybridNormError(f"{missing[0]}: is missing")
    words = {name: value for name, value in table.items() if name in USUAL}
    # Some architectures have a number for each layer.
    build(_Words, {n: v for n, v in words.items() if ours or not isinstance(v, list)})
    if rope := table.get("rope_parameters"):
        typed(float | None, rope.get("rope_theta"), "rope_parameters.rope_theta")
    if ours:
        if table["hidden_size"] % table["num_attention_heads"]:
            raise HybridNormError(
                f"num_attention_heads: {table['num_attention_heads']} does not divide "
                f"hidden_size {table['hidden_size']}"
            )
        _check_placement(table["placement"], table["num_hidden_layers"])
        if table.get("pretraining"):
            build(Pretraining, table["pretraining"], "pretraining")


@dataclass(frozen=True, kw_only=True)
class _Placement(Ranged):
    """The norms of an export, as numbers."""

    kinds: tuple[dict[str, Any], ...]
    layers: tuple[Natural, ...]
    embed_scale: dict[str, Any] | None
    embed_norm: dict[str, Any] | None
    final_norm: dict[str, Any] | None
    definition: dict[str, Any] | None = None


def _check_placement(table: object, n_layers: int) -> None:
    found = build(_Placement, table, "placement")
    if len(found.layers) != n_layers or not set(found.layers) <= set(range(len(found.kinds))):
        raise HybridNormError(
            f"placement.layers: must name, for each of num_hidden_layers {n_layers}, one of "
            f"{len(found.kinds)} kinds, got {list(found.layers)}"
        )
    outside = {"embed_norm": found.embed_norm, "final_norm": found.final_norm}
    with _inside("placement"):
        placement_from_dict({"name": OURS, **_in_words(outside)})
    for number, kind in enumerate(found.kinds):
        words = {name: _in_words(kind.get(name)) for name in ("attention", "feed_forward")}
        with _inside(f"placement.kinds[{number}]"):
            placement_from_dict({"name": OURS, **words})
    if found.definition is not None:
        with _inside("placement.definition"):
            placement_from_dict(found.definition)


@contextmanager
def _inside(where: str) -> Iterator[None]:
    try:
        yield
    except HybridNormError as error:
        raise HybridNormError(f"{where}.{error}") from None


def _in_words(sublayer: Any) -> Any:
    """A sublayer of an export in the words of a placement's file."""
    if not isinstance(sublayer, Mapping):
        return sublayer
    norms = {name: "none" for name, value in sublayer.items() if name.endswith("_norm")}
    return norms | {name: value for name, value in sublayer.items() if value is not None}
