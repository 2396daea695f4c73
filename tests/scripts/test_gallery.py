"""The gallery of the documentation shows the placements that are built in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from gallery import GALLERY, page

from hybridnorm.placements import strategies


def test_the_gallery_has_every_placement() -> None:
    found = strategies()
    assert {path.stem for path in GALLERY.glob("*.svg")} == set(found)
    assert (GALLERY / "README.md").read_text(encoding="utf-8") == page(found.values())
