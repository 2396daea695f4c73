"""Small files: whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.files import read_json, read_text, write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "recipe.toml"
    write_whole(path, "old\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HybridNormError, match=r"recipe\.toml: cannot write: No space left"):
        write_whole(path, "new\n")
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[1, 2]", "expected a JSON object, got list"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8"),
    ],
)
def test_json_that_is_no_object_is_one_line_with_the_file(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(HybridNormError, match=rf"meta\.json: {said}"):
        read_json(tmp_path / "meta.json")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_text(tmp_path / "a.toml") == "a = 1\n"
