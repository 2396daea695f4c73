"""Preparation that failed or was cut short: nothing is half there, or somebody else's gone."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from prepared_sets import content, make

FOLDER = "hybridnorm.data.prepare.folder"


def test_a_file_system_without_locks_will_do(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    make(corpus, tmp_path / "out", tokenizer="byte")
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("tokenizer", ["bpe", "byte"])
def test_a_disk_that_fills_up_leaves_no_half_of_a_file(
    tokenizer: str, corpus: Path, tmp_path: Path, small_units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(corpus, tmp_path / "whole", tokenizer=tokenizer)
    whole, out = content(tmp_path / "whole"), tmp_path / "out"
    room, fsync = 0, os.fsync

    def fill(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    while True:  # every small file in turn is the one that finds no room
        left = room
        try:
            make(corpus, out, tokenizer=tokenizer)
            break
        except HybridNormError as error:
            assert "cannot write: No space left on device" in str(error)
            assert "\n" not in str(error) and not list(out.rglob("*.partial"))
            found = {p.name: p.read_bytes() for p in out.glob("*") if p.is_file()}
            assert all(whole[name] == written for name, written in found.items())
        room += 1
        if room % 4 == 0:
            shutil.rmtree(out, ignore_errors=True)
    assert room > 5 and content(out) == whole


@pytest.mark.parametrize(
    ("killed_in", "after"),
    [
        ("cut_units", None),
        ("_tokenize", None),
        ("write_manifest", None),
        ("shutil.rmtree", None),  # the manifest is written
        ("shutil.rmtree", "_repeated"),  # it tidies up after bad text
    ],
)
def test_a_start_that_was_cut_short_is_a_new_start(
    killed_in: str, after: str | None, corpus: Path, tmp_path: Path, small_units: None
) -> None:
    make(corpus, tmp_path / "whole", tokenizer="byte")
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{FOLDER}.{killed_in}", interrupted)
        if after:
            patch.setattr(f"{FOLDER}.{after}", refused)
        with pytest.raises(KeyboardInterrupt):
            make(corpus, out, tokenizer="byte")
    if not (out / "manifest.json").exists():
        (out / ".manifest.json.partial").write_text("half")
    make(corpus, out, tokenizer="byte")
    assert content(out) == content(tmp_path / "whole")


def interrupted(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def refused(*args: object) -> None:
    raise HybridNormError("bad text")


def test_a_failure_deletes_nothing_that_is_not_its_own(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{FOLDER}._repeated", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(corpus, out, tokenizer="byte")
        (out / "thesis.txt").write_text("precious")
        patch.setattr(f"{FOLDER}._repeated", refused)
        with pytest.raises(HybridNormError, match="bad text"):
            make(corpus, out, tokenizer="byte")
    assert list(content(out)) == ["thesis.txt"]


@pytest.mark.parametrize("damage", ["{", "[]", "[" * 100_000, "null", "\0"])
def test_a_damaged_plan_or_record_of_an_unfinished_set(
    damage: str, corpus: Path, tmp_path: Path, small_units: None
) -> None:
    make(corpus, tmp_path / "whole", tokenizer="byte")
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{FOLDER}.write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(corpus, out, tokenizer="byte")
    records = sorted((out / "unfinished").glob("[0-9]*.json"))
    records[0].write_text(damage)
    records[1].write_text(records[1].read_text().replace("train-00001", "../train-00001"))
    records[2].write_text(json.dumps({"tally": {"first_corrupt": []}, "shards": [[]]}))
    make(corpus, out, tokenizer="byte")
    assert content(out) == content(tmp_path / "whole"), "their units are made again"
    (out / "manifest.json").unlink()
    (out / "unfinished").mkdir()
    (out / "unfinished" / "plan.json").write_text(damage)
    with pytest.raises(HybridNormError, match=r"plan\.json: .*; delete .*out and prepare it anew"):
        make(corpus, out, tokenizer="byte")
