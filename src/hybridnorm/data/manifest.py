"""What a prepared folder says about itself, and whether that is true."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from hybridnorm.errors import HybridNormError

MANIFEST = "manifest.json"
VERSION = 2
SPLITS = ("train", "validation")


class Prepared(NamedTuple):
    """Prepared folders of one tokenizer, and the weight of each in a mixture."""

    folders: tuple[Path, ...]
    weights: tuple[float, ...]

    @property
    def tokenizer(self) -> Path:
        """A folder that holds the tokenizer."""
        return self.folders[0]


def open_prepared(folders: Sequence[Path], weights: Sequence[float] = ()) -> Prepared:
    """Prepared folders as a mixture; without weights, in proportion to their training tokens.

    Raises:
        HybridNormError: a folder is not prepared, or has another tokenizer than the first.
    """
    manifests = [read_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        if manifest["tokenizer"]["sha256"] != manifests[0]["tokenizer"]["sha256"]:
            raise HybridNormError(
                f"prepared: {folder} and {folders[0]} have different tokenizers; prepare one of "
                f"them again with --tokenizer {folders[0]}"
            )
    found = [float(manifest["splits"]["train"]["tokens"]) for manifest in manifests]
    return Prepared(tuple(folders), tuple(weights or found))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        HybridNormError: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manifest["splits"]["train"]["tokens"], manifest["tokenizer"]["sha256"]
        current = manifest["version"] == VERSION
    except (OSError, ValueError, KeyError, TypeError):
        raise HybridNormError(f"{path} is missing or damaged; {remedy(folder)}") from None
    if not current:
        raise HybridNormError(f"{path} is of another version of hybridnorm; {remedy(folder)}")
    return manifest


def write_json(path: Path, table: dict[str, Any]) -> None:
    """Write a JSON file that is complete or absent."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(json.dumps(table, indent=1), encoding="utf-8")
    partial.rename(path)


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(data: Prepared, part: int = 0, parts: int = 1) -> None:
    """Read every `parts`-th file from `part` on, and compare with the checksums of the manifests.

    Raises:
        HybridNormError: a tokenizer or a shard is missing or damaged.
    """
    files = []
    for folder in data.folders:
        manifest = read_manifest(folder)
        shards = [shard for name in SPLITS for shard in manifest["splits"][name]["shards"]]
        files += [(folder / it["file"], it["sha256"]) for it in (manifest["tokenizer"], *shards)]
    for path, expected in files[part::parts]:
        _verify(path, expected)


def _verify(path: Path, expected: str) -> None:
    try:
        intact = checksum(path) == expected
    except OSError:
        raise HybridNormError(f"{path} is missing; {remedy(path.parent)}") from None
    if not intact:
        raise HybridNormError(f"{path} is damaged (wrong checksum); {remedy(path.parent)}")


def remedy(folder: Path) -> str:
    """What to do about a damaged folder."""
    return f"delete {folder} and prepare it anew"


def report(folder: Path, manifest: dict[str, Any]) -> Table:
    """The counts of a prepared folder as a table."""
    splits = [manifest["splits"][name] for name in SPLITS]
    total = {k: sum(s[k] for s in splits) for k in ("documents", "tokens", "text_bytes")}
    columns = [*splits, total]
    table = Table(title=str(folder), title_justify="left", caption_justify="left")
    for heading in ("", *SPLITS, "total"):
        table.add_column(heading, justify="right" if heading else "left")
    for title, key in (("documents", "documents"), ("tokens", "tokens"), ("bytes", "text_bytes")):
        table.add_row(title, *(f"{column[key]:,}" for column in columns))
    ratios = (column["tokens"] / column["text_bytes"] for column in columns)
    table.add_row("tokens per byte", *(f"{ratio:.4f}" for ratio in ratios), end_section=True)
    for title, key in (
        ("duplicates, dropped", "duplicates"),
        ("near-empty, dropped", "near_empty"),
        ("over-long, cut", "over_long"),
        ("corrupt lines, skipped", "corrupt"),
    ):
        table.add_row(title, "", "", f"{manifest['counts'][key]:,}")
    if lines := manifest["counts"]["first_corrupt"]:
        table.caption = "\n".join(["first corrupt lines:", *lines])
    return table
