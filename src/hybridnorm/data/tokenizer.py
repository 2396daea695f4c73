"""Tokenizers: byte-level BPE (`tokenizers`, a tokenizer.json) and plain bytes.

A folder holds its tokenizer as `tokenizer.json`, with a `tokenizer_config.json` that names the end
of a document; a `tokenizer.byte` in their place stands for the byte tokenizer.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, trainers

from hybridnorm.data.config import MAX_VOCAB
from hybridnorm.errors import HybridNormError, nearest
from hybridnorm.files import read_json, read_text, write_whole

END_OF_DOCUMENT = "<|endoftext|>"
JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
BYTE = "tokenizer.byte"
_USUAL_ENDS = (END_OF_DOCUMENT, "</s>", "<|end_of_text|>")
# Their UTF-8 forms hold every byte there is: what has tokens for all of them has some for any text.
_PROBE = [
    chr(code)
    for code in (
        *range(0x800),
        *range(0x800, 0xD800, 0x800),
        *(0xE000, 0xF000, 0x10000, 0x40000, 0x80000, 0xC0000, 0x100000),
    )
    if not chr(code).isspace()
]


class TextTokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    end_of_document: int

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def dropped(self, texts: Sequence[str]) -> int:
        """How many characters, white space aside, no token stands for."""

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

    def dropped(self, texts: Sequence[str]) -> int:
        return 0

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
    """A tokenizer.json read by the `tokenizers` library.

    Args:
        text: the file's content.
        where: what errors call it.
        ends: tokens that may end a document; the first that it has does.

    Raises:
        HybridNormError: the library cannot read it, an id is too large, or it has none of `ends`.
    """

    def __init__(self, text: str, where: str, ends: Sequence[str]) -> None:
        self._text, self._where = text, where
        try:
            self.tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise HybridNormError(f"tokenizer: {where} is damaged: {error}") from None
        # A file may carry the limits and padding of someone's fine-tuning; and a special token
        # that is spelled out in a text is text.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        # Ids may have holes, so the largest one counts.
        self.vocab_size: int = max(self.tokenizer.get_vocab().values(), default=0) + 1
        if self.vocab_size > MAX_VOCAB:
            raise HybridNormError(
                f"tokenizer: {where} has the id {self.vocab_size - 1}; ids lie below {MAX_VOCAB}"
            )
        ids = ((end, self.tokenizer.token_to_id(end)) for end in ends)
        found = [(end, id_) for end, id_ in ids if id_ is not None]
        if not found:
            special = [t.content for t in self.tokenizer.get_added_tokens_decoder().values()]
            raise HybridNormError(
                f"end_of_document: {where} has no {' or '.join(ends)}; name the token that ends a "
                f"document; {nearest(ends[0], special)}"
            )
        self._end, self.end_of_document = found[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise HybridNormError(
                f"tokenizer: {self._where} cannot encode the text: {error}"
            ) from None
        return [item.ids for item in encoded]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))

    def dropped(self, texts: Sequence[str]) -> int:
        if self._has_all:
            return 0
        words = Counter(word for text in texts for word in text.split())
        encoded = self.tokenizer.encode_batch(list(words), add_special_tokens=False)
        return sum(
            count * (len(word) - self._covered(found))
            for (word, count), found in zip(words.items(), encoded, strict=True)
        )

    def _covered(self, word: Encoding) -> int:
        """How many characters have tokens. (Where some have none, offsets tell lengths alone.)"""
        known, unknown = set[int](), set[int]()
        for id_, (start, stop) in zip(word.ids, word.offsets, strict=True):
            (unknown if id_ == self._unknown else known).update(range(start, stop))
        return len(known - unknown)

    @cached_property
    def _unknown(self) -> int | None:
        """The id of the token that stands for what has none."""
        model: dict[str, Any] = json.loads(self.tokenizer.to_str())["model"]
        name = model.get("unk_token")
        return model.get("unk_id") if name is None else self.tokenizer.token_to_id(name)

    @cached_property
    def _has_all(self) -> bool:
        """Whether any text has tokens, as with bytes."""
        encoded = self.encode_batch(_PROBE)
        return all(ids and self._unknown not in ids for ids in encoded)

    def save(self, folder: Path) -> None:
        write_whole(folder / CONFIG, json.dumps({"eos_token": self._end}, indent=1))
        write_whole(folder / JSON, self._text)  # last: with it the tokenizer is there

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
    text = tokenizer.to_str(pretty=True)
    return JsonTokenizer(text, "the trained tokenizer", [END_OF_DOCUMENT])


def load_tokenizer(path: Path, end_of_document: str | None = None) -> TextTokenizer:
    """The tokenizer of a folder (a prepared set or a run), or of a tokenizer.json.

    Args:
        end_of_document: the token that ends a document. None: the one that the files beside a
            tokenizer.json name, or a usual one.

    Raises:
        HybridNormError: the file is missing or damaged, or has no such token.
    """
    file = tokenizer_file(path)
    if file.name == BYTE:
        if end_of_document is not None:
            raise HybridNormError(
                f"end_of_document: has no effect beside {file}, the byte tokenizer; leave it out"
            )
        return ByteTokenizer()
    if not file.is_file():
        raise HybridNormError(f"tokenizer: {file} does not exist")
    ends = [*_named_ends(file.parent), *_USUAL_ENDS]
    if end_of_document is not None:
        ends = [end_of_document]
    return JsonTokenizer(read_text(file), str(file), list(dict.fromkeys(ends)))


def _named_ends(folder: Path) -> Iterator[str]:
    """What the files that come with a tokenizer.json call the end of a text."""
    for path in (folder / CONFIG, folder / "special_tokens_map.json"):
        token = read_json(path).get("eos_token") if path.is_file() else None
        name = token.get("content") if isinstance(token, dict) else token
        if isinstance(name, str):
            yield name


def tokenizer_file(path: Path) -> Path:
    """The file that is the tokenizer of a folder, or `path` itself."""
    if not path.is_dir():
        return path
    return path / (BYTE if (path / BYTE).exists() else JSON)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer of one folder into another."""
    load_tokenizer(source).save(target)
