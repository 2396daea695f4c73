"""The rooms of the house: what may import what."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "hybridnorm"
# From the bottom up; a room imports from those before it, through their faces.
FLOORS = (
    "errors",
    "text",
    "terminal",
    "files",
    "charts",
    "html_page",
    "processes",
    "ranges",
    "strict_toml",
    "placements",
    "foreign",
    "model",
    "data",
    "recipe",
    "train",
    "evaluate",
    "diagnose",
    "study",
)
BESIDE = {"interop": "train", "nn": "model"}  # rooms that stand on a floor of their own


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """The parts of `a.b.c` for each `from hybridnorm.a.b.c import ...`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hybridnorm."):
            yield tuple(str(node.module).split("."))[1:]


def test_imports_point_down_and_enter_a_room_by_its_face() -> None:
    for path in SOURCE.rglob("*.py"):
        here = path.relative_to(SOURCE).with_suffix("").parts
        room = here[0]
        for there in imports(path):
            if there[0] == room or room in ("cli", "verbs", "options", "__init__", "__main__"):
                continue
            below = BESIDE.get(room) == there[0] or FLOORS.index(there[0]) < (
                FLOORS.index(BESIDE.get(room, room)) + (room in BESIDE)
            )
            assert below, f"{path}: {'.'.join(there)} is not below"
            face = SOURCE.joinpath(*there) / "__init__.py"
            assert face.exists() or len(there) == 1, f"{path}: {'.'.join(there)} is no room"


def test_torch_is_imported_by_the_verbs_that_compute_alone() -> None:
    for path in (SOURCE / "placements").rglob("*.py"):
        assert "import torch" not in path.read_text(), path
    for path in (SOURCE / "recipe").rglob("*.py"):
        assert "import torch" not in path.read_text(), path
