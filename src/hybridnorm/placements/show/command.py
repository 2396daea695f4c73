"""`hybridnorm show`: a placement's equations, facts and drawing, or the list of all."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from hybridnorm.placements.properties import without_effect
from hybridnorm.placements.registry import placement, strategies
from hybridnorm.placements.show.equations import equations
from hybridnorm.placements.show.facts import facts
from hybridnorm.placements.spec import Placement
from hybridnorm.terminal import Screen

_GRAMMAR = (
    "also: [pre-]<letters of q, k, v, c>-<post|pre>, such as kv-pre or pre-qkvc-post; "
    "or a .toml file with the fields of a placement"
)


def show(name: str | None, out: Path = Path(), n_layers: int = 12) -> None:
    """Print equations and facts of a placement (a name, or a TOML file) and draw it into `out`.

    Without a name, list the built-in placements, one line each.

    Raises:
        HybridNormError: no such placement, a broken file, no layers, or a folder that cannot be
            written.
    """
    screen = Screen()
    if name is None:
        _list(screen)
    else:
        _show(screen, placement(name), out, n_layers)


def _list(screen: Console) -> None:
    found = strategies().values()
    name, title = (max(len(getattr(p, field)) for p in found) for field in ("name", "title"))
    init = max(len(p.init) for p in found)
    for p in found:
        line = Text(f"{p.name:<{name}}", style="bold")
        line.append(f"  {p.title:<{title}}  {p.init:<{init}}  {p.source}", style="not bold")
        screen.print(line)
    screen.print(Text(_GRAMMAR, style="dim"))


def _show(screen: Console, found: Placement, out: Path, n_layers: int) -> None:
    from hybridnorm.placements.show.drawing import save_drawing  # matplotlib: not for the list

    sections = equations(found, n_layers)
    screen.print(Text(found.title or found.name, style="bold"))
    for section in sections:
        screen.print(Text(f"\n{section.title}", style="cyan"))
        for equation in section.lines:
            screen.print(Text(f"  {equation}"))
    screen.print(Text("\nfacts", style="cyan"))
    for label, text in facts(found, n_layers).items():
        screen.print(Text(f"  {label}: ", style="dim").append(text, style="not dim"))
    for warning in without_effect(found, n_layers):
        screen.print(Text(f"  warning: {warning}", style="yellow"))
    svg, png = save_drawing(found, out, n_layers)
    screen.print(Text(f"\ndrawn in {svg} and {png}"))
