"""Which text a run reads, and how it is turned into tokens. No torch, no numpy."""

from dataclasses import dataclass

from hybridnorm.errors import HybridNormError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text and its tokenizer."""

    source: str = "demo"
    """demo (English Wikipedia summaries), a .txt, .md or .jsonl file, or a folder of them."""
    tokenizer: str = "bpe"
    """bpe (byte-level, trained on the text), byte, or the path of a tokenizer.json."""
    tokenizer_vocab_size: int = 4096
    """Vocabulary size of a trained tokenizer."""
    text_field: str = "text"
    """Field of a .jsonl line that holds the text."""
    validation_fraction: float = 0.05
    """Fraction of the documents held out, chosen by a hash of each document."""
    cache: str = "prepared"
    """Folder where prepared token shards are kept."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise HybridNormError(
                f"data.validation_fraction: must lie in (0, 1), got {self.validation_fraction}"
            )
        if not 257 <= self.tokenizer_vocab_size <= 1 << 20:
            raise HybridNormError(
                "data.tokenizer_vocab_size: must lie between 257 (bytes and end of document) "
                f"and 1048576, got {self.tokenizer_vocab_size}"
            )
