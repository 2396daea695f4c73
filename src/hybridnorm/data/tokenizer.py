"""Tokenizers: byte-level BPE (`tokenizers`, a tokenizer.json) and plain bytes.

A folder holds its tokenizer as `tokenizer.json`; without that file it is the byte tokenizer,
which a `tokenizer.byte` marker says.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hybridnorm.errors import HybridNormError

END_OF_DOCUMENT = "<|endoftext|>"
JSON = "tokenizer.json"
BYTE = "tokenizer.byte"


class TextTokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    end_of_document: int

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def save(self, folder: Path) -> None: ...
    def fast(self) -> Tokenizer:
        """The same as a tokenizer of the `tokenizers` library, which adds no token of its own."""
        ...


class ByteTokenizer:
    """One token per UTF-8 byte, and the end of a document."""

    vocab_size = 257
    end_of_document = 256

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def save(self, folder: Path) -> None:
        (folder / BYTE).touch()

    def fast(self) -> Tokenizer:
        vocabulary = {letter: byte for byte, letter in enumerate(_byte_letters())}
        tokenizer = Tokenizer(models.BPE(vocabulary, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_DOCUMENT])
        return tokenizer


def _byte_letters() -> list[str]:
    """The letter that byte-level BPE has for each byte (GPT-2's): itself where that is visible."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    invisible = [byte for byte in range(256) if byte not in visible]
    return [chr(b) if b in visible else chr(256 + invisible.index(b)) for b in range(256)]


class JsonTokenizer:
    """A tokenizer.json read by the `tokenizers` library."""

    def __init__(self, tokenizer: Tokenizer, where: str) -> None:
        # A file may carry the limits and padding of someone's fine-tuning; and a special token
        # that is spelled out in a text is text.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        # Ids may have holes, so the largest one counts.
        self.vocab_size: int = max(tokenizer.get_vocab().values(), default=0) + 1
        known = [tokenizer.token_to_id(t) for t in (END_OF_DOCUMENT, "</s>", "<|end_of_text|>")]
        ends = [i for i in known if i is not None]
        if not ends:
            raise HybridNormError(f"tokenizer: {where} has no {END_OF_DOCUMENT} token")
        self.end_of_document: int = ends[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [item.ids for item in encoded]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / JSON))

    def fast(self) -> Tokenizer:
        fast = Tokenizer.from_str(self.tokenizer.to_str())
        fast.post_processor = None  # may put a token before every text
        return fast


def train_bpe(texts: Iterable[str], vocab_size: int) -> JsonTokenizer:
    """Byte-level BPE (GPT-2's split) trained on `texts`; the same texts give the same merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return JsonTokenizer(tokenizer, "the trained tokenizer")


def load_tokenizer(path: Path) -> TextTokenizer:
    """The tokenizer of a folder (a prepared set or a run), or of a tokenizer.json.

    Raises:
        HybridNormError: the file is missing or damaged.
    """
    file = tokenizer_file(path)
    if file.name == BYTE:
        return ByteTokenizer()
    if not file.is_file():
        raise HybridNormError(f"tokenizer: {file} does not exist")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise HybridNormError(f"tokenizer: {file} is damaged: {error}") from None
    return JsonTokenizer(tokenizer, str(file))


def tokenizer_file(path: Path) -> Path:
    """The file that is the tokenizer of a folder, or `path` itself."""
    if not path.is_dir():
        return path
    return path / (BYTE if (path / BYTE).exists() else JSON)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer.json, or the tokenizer of a folder, into another folder."""
    file = tokenizer_file(source)
    shutil.copyfile(file, target / (BYTE if file.name == BYTE else JSON))
