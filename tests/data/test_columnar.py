"""Damaged parquet files and datasets: what is lost is counted and named, the rest is read."""

import json
from pathlib import Path

import numpy as np
import pytest

from hybridnorm.data.prepare.documents import Tally
from hybridnorm.errors import HybridNormError
from text_files import TEXTS, read, write_dataset, write_parquet

pyarrow = pytest.importorskip("pyarrow")


def test_of_corrupt_parquet_the_other_row_groups_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)  # row groups of 70
    with pytest.raises(HybridNormError, match=r"no column 'body', only id, text"):
        read(path, text_field="body")
    data = bytearray(path.read_bytes())
    data[40:1500] = bytes(1460)
    path.write_bytes(data)
    tally = Tally()
    assert read(path, tally=tally) == TEXTS[70:] and tally.corrupt == 70
    assert "row group 0 is corrupt from here on" in tally.first_corrupt[0][1].reason
    path.write_bytes(b"no parquet")
    with pytest.raises(HybridNormError, match=r"t\.parquet is not a parquet file"):
        read(path)


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
def test_an_invalid_row_is_one_row(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    texts = [f"text {i}".encode() for i in range(3010)]
    texts[9] = b"not UTF-8 \xff"
    column = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    _write_column(column, kind, tmp_path / "t.parquet")
    tally = Tally()
    found = read(tmp_path / "t.parquet", tally=tally)
    assert found == [text.decode() for text in texts if text != texts[9]]
    assert [bad.line for _, bad in tally.first_corrupt] == [10] and tally.corrupt == 1
    assert "UTF8" in tally.first_corrupt[0][1].reason


def test_offsets_of_a_dataset_are_never_pointers(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    offsets = np.array([0, 3, 6, 9, 1 << 30, 15], dtype=np.int32)
    buffers = [None, pyarrow.py_buffer(offsets.tobytes()), pyarrow.py_buffer(b"abc" * 5)]
    column = pyarrow.Array.from_buffers(pyarrow.string(), 5, buffers)
    _write_column(column, "dataset", tmp_path / "t")
    tally = Tally()
    assert read(tmp_path / "t", tally=tally) == ["abc", "abc", "abc"] and tally.corrupt == 2


def test_a_dataset_reads_its_own_files_alone(tmp_path: Path) -> None:
    path = write_dataset(tmp_path)
    for table in path.glob("*.arrow"):
        table.rename(tmp_path / "elsewhere.arrow")
    state = json.loads((path / "state.json").read_text())
    state["_data_files"] = [{"filename": "../elsewhere.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(HybridNormError, match=r"damaged dataset: it names .*elsewhere"):
        read(path)
    (path / "state.json").write_text("[]")
    with pytest.raises(HybridNormError, match="is a damaged dataset"):
        read(path)


def _write_column(column: object, kind: str, path: Path) -> None:
    """As a parquet file, or as what `Dataset.save_to_disk` writes."""
    import pyarrow.parquet

    table = pyarrow.table({"text": column})
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
        return
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(path)
    (data,) = path.glob("*.arrow")
    with pyarrow.OSFile(str(data), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def test_null_rows_are_corrupt(tmp_path: Path) -> None:
    import pyarrow.parquet

    table = pyarrow.table({"text": ["a", None, "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    tally = Tally()
    assert read(tmp_path / "t.parquet", tally=tally) == ["a", "b"]
    assert [bad[:2] for _, bad in tally.first_corrupt] == [(2, "'text' is not a string")]
