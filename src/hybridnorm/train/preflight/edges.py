"""The learning rate that a model like this one was measured to bear. No torch."""

import contextlib
import csv
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_text
from hybridnorm.recipe import Recipe, load_recipe


class Edge(NamedTuple):
    """The largest stable learning rate of a ramp that ended in divergence."""

    lr: float
    table: Path


def measured_edge(recipe: Recipe, pages: Path = Path("diagnose")) -> Edge | None:
    """The lowest edge that `hybridnorm diagnose --probes lr-ramp` found for the model of `recipe`.

    Args:
        pages: where `hybridnorm diagnose RECIPE` puts its folders.
    """
    found = []
    for table in pages.glob("*/lr-ramp.csv"):
        with contextlib.suppress(HybridNormError, KeyError, ValueError):  # not a page of ours
            if _alike(load_recipe(table.with_name("recipe.toml")), recipe):
                rows = csv.DictReader(read_text(table).splitlines())
                numbers = {row["name"]: float(row["value"]) for row in rows if row["layer"] == "0"}
                if numbers["diverged"]:
                    found.append(Edge(numbers["largest_stable_lr"], table))
    return min(found, default=None)


def _alike(one: Recipe, other: Recipe) -> bool:
    """Whether the learning rate means the same in both: one model, batch and optimizer."""
    parts = (
        (r.model, r.train.batch_size, r.train.seq_len, replace(r.optimizer, lr=1.0))
        for r in (one, other)
    )
    return next(parts) == next(parts)
