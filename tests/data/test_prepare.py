"""Preparation from end to end: nothing lost, the same bytes for any workers, bad input named."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hybridnorm.data.config import DataConfig, PrepareConfig
from hybridnorm.data.dataset import Tokens
from hybridnorm.data.prepare import inputs
from hybridnorm.data.prepare.folder import open_data, prepare_folder
from hybridnorm.data.prepare.sources import find_sources
from hybridnorm.data.tokenizer import END_OF_DOCUMENT, ByteTokenizer
from hybridnorm.errors import HybridNormError
from prepared_sets import QUIET, content, make, texts_of


def expected(source: Path, held_out: bool) -> list[str]:
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    hashes = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
    sides = [int.from_bytes(h, "little") / 2**64 < 0.05 for h in hashes]
    return [text for text, side in zip(texts, sides, strict=True) if side == held_out]


def test_nothing_is_lost_between_text_and_tokens(
    corpus: Path, tmp_path: Path, small_units: None
) -> None:
    manifest = make(corpus, tmp_path / "out")
    for split, held_out in (("train", False), ("validation", True)):
        kept = expected(corpus / "text.jsonl", held_out)
        assert texts_of(tmp_path / "out", split) == kept
        record = manifest.split(split)
        assert record.documents == len(kept)
        assert record.text_bytes == sum(len(text.encode()) for text in kept)
        tokens = Tokens(tmp_path / "out", split)
        assert tokens.tokens_per_byte == pytest.approx(tokens.n_tokens / record.text_bytes)
    parts = sorted((tmp_path / "out").glob("train-*.bin"))
    whole = np.concatenate([np.fromfile(part, "<u2") for part in parts])
    assert len(parts) > 5
    tokens = Tokens(tmp_path / "out", "train")
    for start, stop in itertools.combinations((0, 1, 777, 5000, len(whole)), 2):
        assert np.array_equal(tokens.slice(start, stop), whole[start:stop])


@pytest.mark.parametrize("fraction", [0.05, 0.3])
@pytest.mark.parametrize(
    "files",
    [
        {"one.txt": "First paragraph, of a few words.\n\nSecond one.\n\n" * 40},
        {"one.txt": "no spaces".replace(" ", "") * 50},
        {"one.txt": "tiny text"},
        {"a.txt": "the first " * 30, "b.txt": "the second " * 30, "c.txt": " \n"},
    ],
)
def test_a_text_of_few_documents_holds_out_its_end(
    files: dict[str, str], fraction: float, tmp_path: Path
) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    make(source, tmp_path / "out", tokenizer="byte", validation_fraction=fraction)
    kept, held_out = (texts_of(tmp_path / "out", split) for split in ("train", "validation"))
    *first, last = [text for text in files.values() if text.strip()]
    assert len(held_out) == 1 and held_out[0].strip()
    assert [*kept[:-1], kept[-1] + held_out[0]] == [*first, last]
    assert len(held_out[0]) <= fraction * len(last) + 1
    assert len(held_out[0]) >= 0.45 * fraction * len(last)


def test_a_special_token_in_a_text_is_text(tmp_path: Path) -> None:
    texts = [f"say {END_OF_DOCUMENT} and {i}" for i in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    make(tmp_path / "t.jsonl", tmp_path / "out")
    found = texts_of(tmp_path / "out", "train") + texts_of(tmp_path / "out", "validation")
    assert sorted(found) == sorted(texts)


@pytest.mark.parametrize("fields", [{}, {"dedup": True}, {"tokenizer": "byte"}])
def test_the_bytes_do_not_depend_on_the_number_of_workers(
    fields: dict[str, object], corpus: Path, tmp_path: Path, small_units: None
) -> None:
    make(corpus, tmp_path / "one", workers=1, **fields)
    make(corpus, tmp_path / "three", workers=3, **fields)
    one = content(tmp_path / "one")
    assert one == content(tmp_path / "three") and len(one) > 8


def test_duplicates_keep_the_first_occurrence(tmp_path: Path, small_units: None) -> None:
    texts = [f"text {i % 700} " * 20 for i in np.random.default_rng(1).integers(0, 2000, 900)]
    folder = tmp_path / "in"
    folder.mkdir()
    for name, part in (("a", texts[:500]), ("b", texts[500:])):
        lines = [json.dumps({"text": text}) for text in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    manifest = make(folder, tmp_path / "out", dedup=True, tokenizer="byte")
    first = list(dict.fromkeys(texts))
    kept = [texts_of(tmp_path / "out", split) for split in ("train", "validation")]
    assert sorted(kept[0] + kept[1]) == sorted(first)
    assert kept[0] == [text for text in first if text in set(kept[0])], "in the order of the input"
    assert manifest.counts.duplicates == len(texts) - len(first)


def test_a_tokenizer_learns_from_a_sample_of_every_part(
    tmp_path: Path, small_units: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": f"{i:05d} " * 20}) for i in range(2000)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    seen: list[str] = []

    def spy(texts: Iterator[str], size: int) -> ByteTokenizer:
        seen.extend(texts)
        return ByteTokenizer()

    monkeypatch.setattr("hybridnorm.data.prepare.folder.train_bpe", spy)
    make(tmp_path / "t.jsonl", tmp_path / "out", tokenizer_train_bytes=30_000)
    read = sum(map(len, seen))
    n_units = len(list((tmp_path / "out").glob("train-*.bin")))
    assert 30_000 * 0.9 < read < 30_000 + 120 * n_units, "up to one more document of every unit"
    assert not set(seen) & set(texts_of(tmp_path / "out", "validation"))
    numbers = [int(text[:5]) for text in seen]
    assert np.histogram(numbers, bins=5, range=(0, 2000))[0].min() > 20, "from everywhere"
    seen.clear()
    make(tmp_path / "t.jsonl", tmp_path / "all")
    assert seen == texts_of(tmp_path / "all", "train"), "of a small input, all of it"


@pytest.mark.parametrize("dedup", [False, True])
@pytest.mark.parametrize("tokenizer", ["bpe", "byte"])
def test_corrupt_lines_are_fatal_or_skipped(
    dedup: bool, tokenizer: str, tmp_path: Path, small_units: None
) -> None:
    lines = [json.dumps({"text": f"document {i} " * 10}) for i in range(900)]
    lines[500], lines[700] = "{oops", "[]"
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines))
    fields = {"dedup": dedup, "tokenizer": tokenizer}
    with pytest.raises(HybridNormError) as caught:
        make(path, tmp_path / "out", workers=2, **fields)
    message = f"{path}: line 501: not a JSON object; bad_lines = skip passes over such lines"
    assert str(caught.value) == message
    manifest = make(path, tmp_path / "out", bad_lines="skip", **fields)
    assert manifest.counts.corrupt == 2
    located = tuple(f"{path}: line {n}: not a JSON object" for n in (501, 701))
    assert manifest.counts.first_corrupt == located
    make(path, tmp_path / "fresh", bad_lines="skip", **fields)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_what_was_skipped_is_fatal_when_asked(tmp_path: Path, small_units: None) -> None:
    lines = [json.dumps({"text": f"document {i} " * 10}) for i in range(300)]
    (tmp_path / "t.jsonl").write_text("\n".join(["{oops", *lines]))

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hybridnorm.data.prepare.folder.write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "t.jsonl", tmp_path / "out", tokenizer="byte", bad_lines="skip")
    with pytest.raises(HybridNormError, match="line 1: not a JSON object"):
        make(tmp_path / "t.jsonl", tmp_path / "out", tokenizer="byte")
    make(tmp_path / "t.jsonl", tmp_path / "out", tokenizer="byte", bad_lines="skip")
    with pytest.raises(HybridNormError, match="line 1: not a JSON object"):
        make(tmp_path / "t.jsonl", tmp_path / "out", tokenizer="byte")


def test_a_recipe_finds_what_was_prepared_and_notices_other_text(
    corpus: Path, tmp_path: Path
) -> None:
    fields = {"tokenizer": "byte", "validation_fraction": 0.5, "cache": str(tmp_path / "c")}
    own = tmp_path / "mine.jsonl"
    lines = [f'{{"text": "document {i}"}}' for i in range(40)]
    own.write_text("\n".join(lines))
    mine = DataConfig(source=str(own), **fields)  # type: ignore[arg-type]
    first = open_data(mine, console=QUIET)
    stamp = (first.folders[0] / "manifest.json").stat().st_mtime_ns
    assert open_data(mine, console=QUIET) == first
    assert (first.folders[0] / "manifest.json").stat().st_mtime_ns == stamp
    own.write_text("\n".join([*lines, '{"text": "one more"}']))
    assert open_data(mine, console=QUIET) != first


def test_bytes_need_no_training() -> None:
    tokenizer = ByteTokenizer()
    text = "naïve ∂x/∂t 🙂"
    assert tokenizer.decode([*tokenizer.encode(text), tokenizer.end_of_document]) == text


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({}, {}, "has no .txt, .md, .jsonl"),
        ({"a.txt": ""}, {}, "the train split is empty"),
        ({"a.txt": ""}, {"dedup": True}, "the train split is empty"),
        ({"a.txt": " \n "}, {}, "split is empty"),
        ({"a.jsonl": '{"text": "x"}\n{oops}\n'}, {}, "a.jsonl: line 2: not a JSON object"),
        ({"a.jsonl": '{"body": "x"}\n'}, {}, "line 1: no field 'text' (set text_field)"),
        ({"a.jsonl": '{"text": 3}\n'}, {}, "line 1: 'text' is not a string"),
        ({"a.txt": b"\xff\xfd"}, {}, "a.txt: line 1: not UTF-8"),
        ({"a.txt": b"\xff\xfe\x00"}, {"bad_lines": "skip"}, "a.txt is UTF-16, not UTF-8"),
        ({"a.json.gz": b"no gzip"}, {}, "a.json.gz: line 1: the file is corrupt from here on"),
        ({"a.txt": "x"}, {"tokenizer": "/nowhere/tokenizer.json"}, "does not exist"),
        ({"a.txt": "x"}, {"tokenizer": "a.txt"}, "a.txt is damaged"),
    ],
)
def test_bad_text_is_named(
    files: dict[str, str | bytes],
    fields: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "text"
    source.mkdir()
    for name, written in files.items():
        (source / name).write_bytes(written if isinstance(written, bytes) else written.encode())
    monkeypatch.chdir(source)
    config = DataConfig(
        source=str(source), cache=str(tmp_path / "cache"), **{"tokenizer": "byte", **fields}
    )
    with pytest.raises(HybridNormError) as caught:
        open_data(config, console=QUIET)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*")), "a failed preparation leaves nothing"


def test_an_unreadable_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text("text")
    found = find_sources([str(tmp_path / "t.txt")])

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    reader = inputs.FORMATS[".txt"]._replace(read=refuse)  # type: ignore[arg-type]
    monkeypatch.setitem(inputs.FORMATS, ".txt", reader)
    with pytest.raises(HybridNormError, match=r"cannot read .*t\.txt: Permission denied"):
        config = PrepareConfig(tokenizer="byte")
        prepare_folder(found, tmp_path / "out", config, workers=1, console=QUIET)


def test_a_folder_of_something_else_is_refused(corpus: Path, tmp_path: Path) -> None:
    make(corpus, tmp_path / "out", tokenizer="byte")
    before = content(tmp_path / "out")
    with pytest.raises(HybridNormError, match=r"another preparation \(other min_chars\); name"):
        make(corpus, tmp_path / "out", tokenizer="byte", min_chars=2)
    assert content(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(HybridNormError, match="is not empty and not a prepared folder"):
        make(corpus, tmp_path / "mine", tokenizer="byte")
    assert list(content(tmp_path / "mine")) == ["thesis.txt"]


def test_a_folder_that_cannot_be_written(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(HybridNormError, match=r"file/out: Not a directory; name another"):
        make(corpus, tmp_path / "file" / "out", tokenizer="byte")
    with pytest.raises(HybridNormError, match=r"file: it is a file; name another folder"):
        make(corpus, tmp_path / "file", tokenizer="byte")


def test_the_verb_names_what_is_missing(cli: object) -> None:
    for argv, message in (
        (["prepare", "demo"], "--out"),
        (["prepare", "--out", "x"], "name demo, a file, a folder or a glob"),
        (["prepare", "demo", "--out", "x", "--workers", "0"], "workers: must be from 1 to 1,024"),
        (["prepare", "demo", "--out", "x", "--max-chars", "0"], "max_chars: must be at least 1"),
    ):
        result = cli(*argv)  # type: ignore[operator]
        assert result.returncode == 1 and message in result.stderr
        assert result.stderr.count("\n") == 1
