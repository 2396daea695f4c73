"""Draw every built-in placement for the documentation.

    python scripts/gallery.py

Writes docs/placements/NAME.svg and docs/placements/README.md, a page with all of them.
"""

from collections.abc import Iterable
from pathlib import Path

from hybridnorm.files import write_whole
from hybridnorm.placements import Placement, strategies
from hybridnorm.placements.show import drawing_svg

GALLERY = Path(__file__).parents[1] / "docs" / "placements"
_HEAD = """\
# All placements, drawn

Made by `python scripts/gallery.py` from `src/hybridnorm/placements/strategies.toml`, for a model of
12 blocks. [Placements](../placements.md) says how to read a drawing. `hybridnorm show NAME` prints
the equations, too.
"""


def page(placements: Iterable[Placement]) -> str:
    """The gallery's page: a heading, a line of facts and a drawing for each placement."""
    return "\n".join([_HEAD, *map(_section, placements)])


def _section(placement: Placement) -> str:
    facts = f"`{placement.name}`; {placement.source}; initialization: {placement.init}"
    note = f"{placement.note[:1].upper()}{placement.note[1:]}.\n\n" if placement.note else ""
    title = placement.title.replace("*", "\\*")
    return f"## {title}\n\n{facts}\n\n{note}![{title}]({placement.name}.svg)\n"


def main(folder: Path = GALLERY) -> None:
    found = strategies().values()
    folder.mkdir(exist_ok=True)
    for placement in found:
        write_whole(folder / f"{placement.name}.svg", drawing_svg(placement))
    write_whole(folder / "README.md", page(found))


if __name__ == "__main__":
    main()
