"""`hybridnorm show`: equations, facts and drawing of one placement, or the list of all."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from hybridnorm.errors import HybridNormError
from hybridnorm.placement.drawing import save_drawing
from hybridnorm.placement.equations import (
    block_equations,
    block_title,
    distinct_blocks,
    model_equations,
)
from hybridnorm.placement.facts import facts
from hybridnorm.placement.registry import placement, strategies


def show(name: str | None, out: Path, n_layers: int) -> None:
    """Print the placement called `name` and draw it into `out`; without a name, list all.

    Raises:
        HybridNormError: an unknown placement, a broken file, or a folder that cannot be written.
    """
    console = Console()
    if name is None:
        console.print(_list())
        console.print("also: [pre-]<letters of q,k,v,c>-<post|pre>, or a .toml file", markup=False)
        return
    if n_layers < 1:
        raise HybridNormError(f"n_layers: must be at least 1, got {n_layers}")
    chosen = placement(name)
    console.print(f"[bold]{chosen.title or chosen.name}[/bold]\n", highlight=False)
    entry, exit_ = model_equations(chosen, n_layers)
    lines = [entry]
    for layers, spec in distinct_blocks(chosen, n_layers):
        lines += [f"{block_title(layers)} of {n_layers}:"]
        lines += [f"    {equation}" for equation in block_equations(spec)]
    for line in [*lines, exit_]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()
    for label, text in facts(chosen, n_layers):
        console.print(f"{label:<20} {text}", highlight=False, markup=False, soft_wrap=True)
    for path in save_drawing(chosen, out, n_layers):
        console.print(f"{'drawing':<20} {path}", highlight=False, markup=False, soft_wrap=True)


def _list() -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "title", "init", "source"):
        table.add_column(heading, no_wrap=heading in ("name", "init"))
    for found in strategies().values():
        table.add_row(found.name, found.title, found.init, found.source)
    return table
