"""Prepared folders: made in this process, and read again."""

from pathlib import Path

import numpy as np
from rich.console import Console

from hybridnorm.data.config import PrepareConfig
from hybridnorm.data.dataset import Tokens
from hybridnorm.data.manifest import Manifest, Split
from hybridnorm.data.prepare.folder import prepare_folder
from hybridnorm.data.prepare.sources import find_sources
from hybridnorm.data.tokenizer import load_tokenizer

QUIET = Console(quiet=True)


def make(source: object, out: Path, workers: int = 1, **fields: object) -> Manifest:
    small = {} if fields.get("tokenizer", "bpe") != "bpe" else {"tokenizer_vocab_size": 300}
    config = PrepareConfig(**{**small, **fields})  # type: ignore[arg-type]
    found = find_sources([str(source)], config.validation)
    return prepare_folder(found, out, config, workers=workers, console=QUIET)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def texts_of(folder: Path, split: Split) -> list[str]:
    tokens, tokenizer = Tokens(folder, split), load_tokenizer(folder)
    ids = tokens.slice(0, tokens.n_tokens)
    pieces = np.split(ids, np.flatnonzero(ids == tokenizer.end_of_document) + 1)[:-1]
    return [tokenizer.decode(piece[:-1].tolist()) for piece in pieces]
