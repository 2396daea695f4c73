"""Which text a run reads, and how it is turned into tokens. No torch, no numpy."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from hybridnorm.errors import HybridNormError, check_unused
from hybridnorm.ranges import Count, Positive, Range, Ranged

MAX_VOCAB = 1 << 20
"""No tokenizer has more ids: larger ones are a mistake that would cost gigabytes."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(Ranged):
    """How text becomes tokens."""

    tokenizer: str = "bpe"
    """bpe (byte-level, trained on the text), byte, a tokenizer.json, or a folder that holds one,
    such as another prepared set."""
    end_of_document: str | None = None
    """Token of a tokenizer.json that ends a document. None: the eos_token that a
    tokenizer_config.json or special_tokens_map.json beside it names, else <|endoftext|>, </s> or
    <|end_of_text|>."""
    tokenizer_vocab_size: Annotated[int, Range(at_least=257, at_most=MAX_VOCAB)] = 4096
    """Vocabulary size of a trained tokenizer; 257 are the bytes and the end of a document."""
    tokenizer_train_bytes: Count = 100_000_000
    """Bytes of text, about, that train a tokenizer: of a larger input, the first training
    documents of every part, in proportion to its size."""
    text_field: str = "text"
    """Field of a JSON line, or column of a table, that holds the text."""
    validation: str | None = None
    """A file, folder, glob or saved dataset that is held out, all of it. None: the split called
    validation of a folder that has one, else a fraction."""
    validation_fraction: Annotated[float, Range(above=0, below=1)] = 0.05
    """Fraction of the documents held out, chosen by a hash of each document; where that leaves a
    split empty, of the last document, whose end is held out."""
    min_chars: Count = 1
    """Documents with fewer characters, white space around them aside, are dropped and counted."""
    max_chars: Count = 1_000_000
    """Longer documents are cut, where a paragraph or else a line ends, and counted."""
    dedup: bool = False
    """Drop documents that are equal to an earlier one, character by character."""
    bad_lines: Literal["fail", "skip"] = "fail"
    """What happens at a corrupt line: stop and name it, or count it and go on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_chars > self.max_chars:
            raise HybridNormError(
                f"min_chars: {self.min_chars} exceeds max_chars {self.max_chars}; "
                "no document would be left"
            )
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
    weights: tuple[Positive, ...] = ()
    """Share of the sequences that each prepared folder gives. Empty: in proportion to their
    tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, names in (
            ("source", (self.source,)),
            ("validation", (self.validation,)),
            ("prepared", self.prepared),
        ):
            if "" in names:
                raise HybridNormError(f"{field}: a name is missing")
        if self.prepared:
            how = (f.name for f in fields(PrepareConfig))
            check_unused(self, "beside prepared, which was made with its own", *how)
        if self.weights and len(self.weights) != len(self.prepared):
            raise HybridNormError(
                f"weights: {len(self.weights)} weights for {len(self.prepared)} prepared folders; "
                "give one for each, or none"
            )
