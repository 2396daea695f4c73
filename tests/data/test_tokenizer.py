"""Tokenizers that other people made: where a document ends, and what has no token."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from hybridnorm.data.config import DataConfig
from hybridnorm.data.dataset import Tokens
from hybridnorm.data.manifest import Manifest, read_manifest
from hybridnorm.data.prepare.folder import open_data
from hybridnorm.data.prepared import open_prepared
from hybridnorm.data.tokenizer import copy_tokenizer, load_tokenizer
from hybridnorm.errors import HybridNormError


def with_ends(tokenizer: Tokenizer, *ends: str) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(end, special=True) for end in ends])
    return tokenizer


def letters(characters: str = "abcdefgh ", **options: Any) -> Tokenizer:
    """A token per known character; others are dropped, or become `unk_token`."""
    vocab = {c: i for i, c in enumerate(characters)}
    if unknown := options.get("unk_token"):
        vocab[unknown] = len(vocab)
    return Tokenizer(models.BPE(vocab, [], **options))


def byte_level() -> Tokenizer:
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def byte_fallback() -> Tokenizer:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abc"]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -1.0), ("b", -2.0)], 0)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "two": 1, "words": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def files(folder: Path, tokenizer: Tokenizer, **others: object) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def end_of(folder: Path, end_of_document: str | None = None) -> str | None:
    loaded: Any = load_tokenizer(folder, end_of_document)
    token: str | None = loaded.tokenizer.id_to_token(loaded.end_of_document)
    return token


@pytest.mark.parametrize(
    ("tokens", "others", "end"),
    [
        (["<eos>"], {"tokenizer_config": {"eos_token": "<eos>"}}, "<eos>"),
        (["<eos>"], {"special_tokens_map": {"eos_token": {"content": "<eos>"}}}, "<eos>"),
        (
            ["<|endoftext|>", "<|im_end|>"],
            {"tokenizer_config": {"eos_token": "<|im_end|>"}},
            "<|im_end|>",
        ),
        (["</s>"], {"tokenizer_config": {"eos_token": None, "x": 1}}, "</s>"),
        (["</s>"], {"tokenizer_config": {"eos_token": "<not there>"}}, "</s>"),
        (["</s>"], {"tokenizer_config": {"eos_token": [[7]]}}, "</s>"),
        (["<|end_of_text|>", "<|endoftext|>"], {}, "<|endoftext|>"),
    ],
)
def test_the_files_of_a_tokenizer_name_the_end_of_a_document(
    tokens: list[str], others: dict[str, object], end: str, tmp_path: Path
) -> None:
    folder = files(tmp_path / "foreign", with_ends(letters(), *tokens), **others)
    assert end_of(folder) == end_of(folder / "tokenizer.json") == end
    (tmp_path / "run").mkdir()
    copy_tokenizer(folder, tmp_path / "run")
    assert end_of(tmp_path / "run") == end, "a run keeps it"


def test_the_end_of_a_document_may_be_named(tmp_path: Path) -> None:
    folder = files(tmp_path / "foreign", with_ends(letters(), "<|im_end|>", "<|pad|>"))
    assert end_of(folder, "<|im_end|>") == "<|im_end|>"
    with pytest.raises(
        HybridNormError, match=r"^end_of_document: .* name the token .*did you mean '<\|im_end\|>'"
    ):
        load_tokenizer(folder)
    with pytest.raises(HybridNormError, match=r"did you mean '<\|im_end\|>'"):
        load_tokenizer(folder, "<|im_ends|>")
    (tmp_path / "tokenizer.byte").touch()
    with pytest.raises(HybridNormError, match=r"end_of_document: has no effect beside"):
        load_tokenizer(tmp_path, "<eos>")


def prepare(tmp_path: Path, texts: Iterable[str], tokenizer: Path, **fields: object) -> Path:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cache = str(tmp_path / "cache")
    config = DataConfig(source=str(source), tokenizer=str(tokenizer), cache=cache, **fields)  # type: ignore[arg-type]
    return open_data(config, console=Console(quiet=True)).folders[0]


def test_a_prepared_set_keeps_the_end_of_its_documents(tmp_path: Path) -> None:
    foreign = files(tmp_path / "foreign", with_ends(letters(), "<eos>", "<|im_end|>", "</s>"))
    made = [
        prepare(tmp_path, ["abc", "bcd"], foreign, end_of_document=end)
        for end in (None, "<eos>", "<|im_end|>")
    ]
    assert len(set(made)) == 3
    for folder, end in zip(made, ("</s>", "<eos>", "<|im_end|>"), strict=True):
        assert end_of(folder) == end
        tokens = Tokens(folder, "train")
        assert tokens.slice(tokens.n_tokens - 1, tokens.n_tokens) == [tokens.end_of_document]
        assert open_prepared([folder]).tokenizer == folder
    with pytest.raises(HybridNormError, match="different tokenizers"):
        open_prepared(made[:2])


@pytest.mark.parametrize(
    ("make", "text", "dropped"),
    [
        (letters, "abc éü日 d", 3),
        (lambda: letters(unk_token="<unk>"), "abc éü日 d", 3),
        (lambda: letters("abc"), "a b\nc", 0),  # white space aside
        (byte_level, "naïve 日本 🙂 \x00\x7f", 0),
        (byte_fallback, "naïve 日本 🙂 \x00\x7f", 0),
        (unigram, "ab ba xyz a", 3),
        (words, "two unknown words", 7),
    ],
)
def test_characters_without_a_token_are_counted(
    make: Callable[[], Tokenizer], text: str, dropped: int, tmp_path: Path
) -> None:
    foreign = files(tmp_path / "foreign", with_ends(make(), "</s>"))
    assert load_tokenizer(foreign).dropped([text, text]) == 2 * dropped
    texts = [text + " " * i for i in range(50)]
    manifest: Manifest = read_manifest(prepare(tmp_path, texts, foreign, validation_fraction=0.5))
    assert manifest.counts.dropped_characters == 50 * dropped


def test_what_is_dropped_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = files(tmp_path / "foreign", with_ends(letters(), "</s>"))
    (tmp_path / "t.jsonl").write_text('{"text": "abc é"}\n' * 40)
    config = DataConfig(
        source=str(tmp_path / "t.jsonl"), tokenizer=str(foreign), cache=str(tmp_path)
    )
    open_data(config, console=Console(width=100))
    assert "characters without a token" in capsys.readouterr().out


def test_a_tokenizer_without_a_token_for_the_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"two": 0}, unk_token="[UNK]"))
    foreign = files(tmp_path / "foreign", with_ends(tokenizer, "</s>"))
    with pytest.raises(HybridNormError, match="cannot encode the text") as caught:
        prepare(tmp_path, ["one"], foreign)
    assert str(foreign) in str(caught.value) or "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"model": null}',
        b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
        b'{"model": {"type": "Unigram", "vocab": [], "unk_id": 3}}',
        b'{"model": {"type": "Other"}}',
    ],
    ids=lambda content: repr(content[-40:]),
)
def test_a_damaged_tokenizer_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(HybridNormError, match=r"tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("largest", [1 << 20, 4_000_000_000])
def test_an_id_that_would_make_a_huge_model(largest: int, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "far": 98765}, unk_token="a"))
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.to_str().replace("98765", str(largest)))
    with pytest.raises(HybridNormError, match=f"has the id {largest}; ids lie below 1048576"):
        load_tokenizer(file)


def test_a_damaged_file_beside_a_tokenizer_is_named(tmp_path: Path) -> None:
    folder = files(tmp_path / "foreign", with_ends(letters(), "</s>"))
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(HybridNormError, match=r"tokenizer_config\.json: is not JSON"):
        load_tokenizer(folder)
