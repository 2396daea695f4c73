"""The documents of anything that holds text, one after the other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hybridnorm.data.config import PrepareConfig
from hybridnorm.data.dataset import Tokens
from hybridnorm.data.manifest import MANIFEST
from hybridnorm.data.prepare.documents import Tally, documents
from hybridnorm.data.prepare.folder import refuse_corrupt
from hybridnorm.data.prepare.inputs import cut_units
from hybridnorm.data.prepare.sources import find_sources
from hybridnorm.data.prepared import open_prepared, verify
from hybridnorm.data.tokenizer import load_tokenizer

_CHUNK = 1 << 20  # tokens of a prepared set that are read at once


def read_texts(name: str, text_field: str = "text") -> Iterator[str]:
    """The documents of an input of `hybridnorm prepare`, or the held-out ones of a prepared set.

    Raises:
        HybridNormError: there is no such input, or a part of it is corrupt.
    """
    folder = Path(name)
    if (folder / MANIFEST).is_file():
        yield from _held_out(folder)
        return
    config, tally = PrepareConfig(text_field=text_field), Tally()
    for unit in cut_units(find_sources([name]).sources):
        for document in documents(unit, config, tally):
            yield document.text
        refuse_corrupt(tally, config)


def _held_out(folder: Path) -> Iterator[str]:
    verify(open_prepared([folder]))
    tokens, tokenizer = Tokens(folder, "validation"), load_tokenizer(folder)
    rest = np.empty(0, dtype=np.int64)
    for start in range(0, tokens.n_tokens, _CHUNK):
        ids = tokens.slice(start, min(start + _CHUNK, tokens.n_tokens))
        ids = np.concatenate((rest, ids))
        ends = np.flatnonzero(ids == tokens.end_of_document)
        *whole, rest = np.split(ids, ends + 1)
        for document in whole:
            yield tokenizer.decode(document[:-1].tolist())
    if len(rest):
        yield tokenizer.decode(rest.tolist())
