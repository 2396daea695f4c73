"""A prepared folder that someone else made, or a damaged one: one line, nothing else is read."""

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hybridnorm.data.config import DataConfig
from hybridnorm.data.dataset import Tokens
from hybridnorm.data.manifest import checksum
from hybridnorm.data.prepare.folder import open_data
from hybridnorm.data.prepared import open_prepared, verify
from hybridnorm.errors import HybridNormError

QUIET = Console(quiet=True)
Table = dict[str, Any]


@pytest.fixture(scope="module")
def intact(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    config = DataConfig(source=str(corpus), tokenizer_vocab_size=300, cache=str(cache))
    return open_data(config, console=QUIET).folders[0]


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "set"))


def refused(folder: Path) -> str:
    """What is said of the folder before its first token is read; always one line that names it."""
    with pytest.raises(HybridNormError) as caught:
        verify(open_prepared([folder]))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def edit(folder: Path, change: Callable[[Table], object]) -> None:
    """As someone does who knows the format."""
    path = folder / "manifest.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    (folder / "manifest.sha256").write_text(checksum(path))


def set_to(dotted: str, value: object) -> Callable[[Table], None]:
    def change(table: Table) -> None:
        *path, last = dotted.split(".")
        for name in path:
            table = table[int(name)] if isinstance(table, list) else table[name]
        table[last] = value

    return change


SHARD = "splits.train.shards.0.file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_to("dtype", "|O"), "dtype: unknown value"),
        (set_to("dtype", ">u2"), "dtype: unknown value"),
        (set_to("dtype", "<u4"), "tokens long"),
        (set_to("dtype", ["<u2"]), "dtype"),
        (set_to("version", 1), "of another version"),
        (set_to("version", None), "of another version"),
        (set_to("splits.train.tokens", 10**12), "splits.train.tokens: 1000000000000, but its"),
        (set_to("splits.train.tokens", "12"), "splits.train.tokens: expected a whole number"),
        (set_to("splits.train.text_bytes", 0), "text_bytes: must be at least 1"),
        (set_to("splits.train.shards", []), "tokens"),
        (set_to("splits.train.shards", {"file": "x"}), "expected an array"),
        (set_to("splits.train.shards", [7]), "expected a table"),
        (set_to("splits.train", [[[]]]), "splits.train: expected a table"),
        (lambda table: table["splits"].pop("validation"), "missing field 'validation'"),
        (lambda table: table.pop("tokenizer"), "missing field 'tokenizer'"),
        (set_to("tokenizer.end_of_document", 300), "end_of_document: 300 of 300"),
        (set_to("tokenizer.end_of_document", 7), "not the tokenizer of the manifest"),
        (set_to("tokenizer.vocab_size", 2**31), "cannot be"),
        (set_to("tokenizer.vocab_size", 301), "not the tokenizer of the manifest"),
        (set_to("tokenizer.file", "../tokenizer.json"), "tokenizer.file: unknown value"),
        (set_to("counts.corrupt", "no"), "counts.corrupt: expected a whole number"),
        (set_to("plan", [1]), "plan: expected a table"),
        (set_to(SHARD, "../train-00000.bin"), "is no name of a shard"),
        (set_to(SHARD, "/dev/zero"), "is no name of a shard"),
        (set_to(SHARD, "train-00000.bin/../../x.bin"), "is no name of a shard"),
        (set_to(SHARD, "train-99999.bin"), "train-99999.bin is missing"),
    ],
)
def test_a_manifest_is_read_strictly(
    change: Callable[[Table], object], message: str, folder: Path
) -> None:
    edit(folder, change)
    assert message in refused(folder)


@settings(max_examples=60)
@given(st.data())
def test_no_flipped_bit_of_a_manifest_is_taken_for_content(
    intact: Path, data: st.DataObject
) -> None:
    content = (intact / "manifest.json").read_bytes()
    flipped = bytearray(content)
    flipped[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as copy:
        folder = Path(copy, "set")
        shutil.copytree(intact, folder)
        (folder / "manifest.json").write_bytes(flipped)
        assert "wrong checksum" in refused(folder)


def test_a_set_from_before_manifests_had_checksums(folder: Path) -> None:
    (folder / "manifest.sha256").unlink()
    (folder / "tokenizer_config.json").unlink()
    verify(open_prepared([folder]))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"\0" * 99, b"[" * 100_000),
        *(b'{"version": 2}', b'{"version": ' + b"9" * 10_000 + b"}", b'{"a":' * 100_000),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_manifest_that_is_none(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sha256").write_text(checksum(folder / "manifest.json"))
    assert "manifest.json" in refused(folder)


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train-00000.bin"])
@pytest.mark.parametrize("kind", ["device", "pipe", "link", "folder", "nothing"])
def test_only_files_of_the_folder_itself_are_read(name: str, kind: str, folder: Path) -> None:
    path = folder / name
    path.rename(folder.parent / name)
    if kind == "link":
        path.symlink_to(folder.parent / name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    assert name in refused(folder)


def test_counts_beyond_the_file(folder: Path) -> None:
    shard = folder / "validation-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard} is damaged (not " in refused(folder)
    with pytest.raises(HybridNormError, match="is damaged"):
        Tokens(folder, "validation")


def test_ids_beyond_the_vocabulary(folder: Path) -> None:
    shard = folder / "train-00000.bin"
    ids = np.fromfile(shard, "<u2")
    ids[len(ids) // 2] = 300
    shard.write_bytes(ids.tobytes())
    edit(folder, set_to("splits.train.shards.0.sha256", checksum(shard)))
    assert "holds the id 300, beyond the 300 of its tokenizer" in refused(folder)


def test_a_folder_that_is_not_prepared(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "hybridnorm prepare TEXT --out" in refused(tmp_path / "empty")
    assert "is not a prepared folder" in refused(tmp_path / "nowhere")
    (folder / "manifest.json").unlink()
    (folder / "unfinished").mkdir()
    assert "its preparation is unfinished" in refused(folder)


def test_a_folder_named_twice(folder: Path) -> None:
    with pytest.raises(HybridNormError, match=r"named twice; .* weights"):
        open_prepared([folder, folder / "." / ".." / folder.name])


def test_shards_need_no_descriptors(folder: Path, tmp_path: Path) -> None:
    def repeat(table: Table) -> None:
        record = table["splits"]["train"]
        (shard,) = record["shards"]
        names = [f"train-{number:05d}.bin" for number in range(1, 201)]
        for name in names:
            shutil.copy(folder / shard["file"], folder / name)
        record["shards"] = [{**shard, "file": name} for name in names]
        record["tokens"] *= 200

    edit(folder, repeat)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        verify(open_prepared([folder]))
        tokens = Tokens(folder, "train")
        assert len(tokens.slice(0, tokens.n_tokens)) == tokens.n_tokens
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": "byte"}, "tokenizer: has no effect beside prepared"),
        ({"tokenizer_vocab_size": 300}, "tokenizer_vocab_size: has no effect beside prepared"),
        ({"dedup": True}, "dedup: has no effect beside prepared"),
        ({"validation_fraction": 0.2}, "validation_fraction: has no effect beside prepared"),
        ({"validation": "x.txt"}, "validation: has no effect beside prepared"),
        ({"bad_lines": "skip"}, "bad_lines: has no effect beside prepared"),
    ],
)
def test_settings_of_preparation_beside_prepared_folders(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(HybridNormError, match=message):
        DataConfig(prepared=("a",), **fields)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"tokenizer": "byte", "tokenizer_vocab_size": 300}, "tokenizer_vocab_size"),
        ({"tokenizer": "t.json", "tokenizer_train_bytes": 300}, "tokenizer_train_bytes"),
        ({"end_of_document": "<eos>"}, "end_of_document"),
        ({"tokenizer": "byte", "end_of_document": "<eos>"}, "end_of_document"),
        ({"validation": "x.txt", "validation_fraction": 0.1}, "validation_fraction"),
    ],
)
def test_settings_that_another_one_replaces(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(HybridNormError, match=f"^{name}: has no effect beside "):
        DataConfig(**fields)
