"""Which text a run reads, and how it is turned into tokens. No torch, no numpy."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from hybridnorm.errors import HybridNormError, check_at_least, check_unused

MAX_VOCAB = 1 << 20
"""No tokenizer has more ids: larger ones are a mistake that would cost gigabytes."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How text becomes tokens."""

    tokenizer: str = "bpe"
    """bpe (byte-level, trained on the text), byte, a tokenizer.json, or a folder that holds one,
    such as another prepared set."""
    end_of_document: str | None = None
    """Token of a tokenizer.json that ends a document. None: the eos_token that a
    tokenizer_config.json or special_tokens_map.json beside it names, else <|endoftext|>, </s> or
    <|end_of_text|>."""
    tokenizer_vocab_size: int = 4096
    """Vocabulary size of a trained tokenizer."""
    tokenizer_train_bytes: int = 100_000_000
    """Bytes of text, about, that train a tokenizer: of a larger input, the first training
    documents of every part, in proportion to its size."""
    text_field: str = "text"
    """Field of a JSON line, or column of a table, that holds the text."""
    validation: str | None = None
    """A file, folder, glob or saved dataset that is held out, all of it. None: the split called
    validation of a folder that has one, else a fraction."""
    validation_fraction: float = 0.05
    """Fraction of the documents held out, chosen by a hash of each document; where that leaves a
    split empty, of the last document, whose end is held out."""
    min_chars: int = 1
    """Documents with fewer characters, white space around them aside, are dropped and counted."""
    max_chars: int = 1_000_000
    """Longer documents are cut, where a paragraph or else a line ends, and counted."""
    dedup: bool = False
    """Drop documents that are equal to an earlier one, character by character."""
    bad_lines: Literal["fail", "skip"] = "fail"
    """What happens at a corrupt line: stop and name it, or count it and go on."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise HybridNormError(
                f"validation_fraction: must lie in (0, 1), got {self.validation_fraction}"
            )
        if not 257 <= self.tokenizer_vocab_size <= MAX_VOCAB:
            raise HybridNormError(
                "tokenizer_vocab_size: must lie between 257 (bytes and end of document) "
                f"and {MAX_VOCAB}, got {self.tokenizer_vocab_size}"
            )
        for name in ("tokenizer_train_bytes", "min_chars", "max_chars"):
            check_at_least(1, name, getattr(self, name))
        if self.tokenizer != "bpe":
            trained = ("tokenizer_vocab_size", "tokenizer_train_bytes")
            check_unused(self, f"beside tokenizer = {self.tokenizer}", *trained)
        if self.tokenizer in ("bpe", "byte"):
            check_unused(self, f"beside tokenizer = {self.tokenizer}", "end_of_document")
        if self.validation is not None:
            check_unused(self, "beside validation", "validation_fraction")


@dataclass(frozen=True, kw_only=True)
class DataConfig(PrepareConfig):
    """The text and its tokenizer."""

    source: str = "demo"
    """demo (English Wikipedia summaries), or a file, folder, glob or saved dataset as
    `hybridnorm prepare` takes them."""
    cache: str = "prepared"
    """Folder where the prepared source is kept."""
    prepared: tuple[str, ...] = ()
    """Folders made by `hybridnorm prepare`, with one tokenizer; they take the place of `source`."""
    weights: tuple[float, ...] = ()
    """Share of the sequences that each prepared folder gives. Empty: in proportion to their
    tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "" in self.prepared:
            raise HybridNormError("prepared: a folder without a name")
        if self.prepared:
            how = (f.name for f in fields(PrepareConfig))
            check_unused(self, "beside prepared, which was made with its own", *how)
        if self.weights and len(self.weights) != len(self.prepared):
            raise HybridNormError(
                f"weights: {len(self.weights)} weights for {len(self.prepared)} prepared folders; "
                "give one for each, or none"
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise HybridNormError(f"weights: must be positive, got {list(self.weights)}")
