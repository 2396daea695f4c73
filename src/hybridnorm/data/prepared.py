"""Prepared folders as the data of a run: mixed, and found intact."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridnorm.data.manifest import (
    SPLITS,
    Manifest,
    checksum,
    own_file,
    read_manifest,
    remedy,
)
from hybridnorm.data.tokenizer import load_tokenizer
from hybridnorm.errors import HybridNormError


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
        HybridNormError: a folder is not prepared, damaged, named twice, or has another tokenizer
            than the first.
    """
    manifests = [read_manifest(folder) for folder in folders]
    for place, (folder, manifest) in enumerate(zip(folders, manifests, strict=True)):
        if any(folder.samefile(other) for other in folders[:place]):
            raise HybridNormError(
                f"prepared: {folder} is named twice; name it once, its share is set by weights"
            )
        _check_tokenizer(folder, manifest)
        if _made_by(manifest) != _made_by(manifests[0]):
            raise HybridNormError(
                f"prepared: {folder} and {folders[0]} have different tokenizers; prepare one of "
                f"them again with --tokenizer {folders[0]}"
            )
    found = [float(manifest.splits.train.tokens) for manifest in manifests]
    return Prepared(tuple(folders), tuple(weights or found))


def _made_by(manifest: Manifest) -> tuple[str, int]:
    return manifest.tokenizer.sha256, manifest.tokenizer.end_of_document


def _check_tokenizer(folder: Path, manifest: Manifest) -> None:
    record = manifest.tokenizer
    own_file(folder, record.file)
    found = load_tokenizer(folder)
    if (found.vocab_size, found.end_of_document) != (record.vocab_size, record.end_of_document):
        raise HybridNormError(
            f"{folder / record.file} is not the tokenizer of the manifest; {remedy(folder)}"
        )


def verify(data: Prepared, part: int = 0, parts: int = 1) -> None:
    """Read every `parts`-th file from `part` on: its checksum, and whether all ids are tokens.

    Raises:
        HybridNormError: a tokenizer or a shard is missing or damaged.
    """
    checks: list[tuple[Path, str, Manifest | None]] = []
    for folder in data.folders:
        manifest = read_manifest(folder)
        tokenizer = manifest.tokenizer
        checks.append((own_file(folder, tokenizer.file), tokenizer.sha256, None))
        for split in SPLITS:
            paths, records = manifest.shards(folder, split), manifest.split(split).shards
            checks += [
                (path, record.sha256, manifest) for path, record in zip(paths, records, strict=True)
            ]
    for path, expected, ids_of in checks[part::parts]:
        _verify(path, expected, ids_of)


def _verify(path: Path, expected: str, ids_of: Manifest | None) -> None:
    if checksum(path) != expected:
        raise HybridNormError(f"{path} is damaged (wrong checksum); {remedy(path.parent)}")
    if ids_of is None:
        return
    largest = int(np.memmap(path, ids_of.dtype, mode="r").max())
    if largest >= ids_of.tokenizer.vocab_size:
        raise HybridNormError(
            f"{path} holds the id {largest}, beyond the {ids_of.tokenizer.vocab_size} of its "
            f"tokenizer; {remedy(path.parent)}"
        )
