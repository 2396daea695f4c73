import resource
from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.train.report.metrics import METRICS, MetricsWriter, newest_row, read_metrics


def test_a_killed_run_leaves_a_readable_file_that_can_be_continued(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(event="started", step=0)
    for step in (1, 2, 3):
        writer.write(step=step, loss=float(step))
    writer.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 4, "lo')  # what SIGKILL leaves
    assert [row["step"] for row in read_metrics(tmp_path).train] == [1, 2, 3]
    assert newest_row(tmp_path) == {"step": 3, "loss": 3.0}
    writer = MetricsWriter(tmp_path)
    writer.write(event="resumed", step=2)
    writer.write(step=3, loss=30.0)
    writer.write(step=3, val_loss=1.5)
    writer.close()
    metrics = read_metrics(tmp_path)
    assert [row["loss"] for row in metrics.train] == [1.0, 2.0, 30.0]
    assert metrics.evaluations == [{"step": 3, "val_loss": 1.5}]
    assert metrics.status == "resumed"
    assert newest_row(tmp_path) == metrics.train[-1] and newest_row(tmp_path / "none") is None


def test_the_newest_row_of_a_long_run(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    for step in range(1, 3001):
        writer.write(step=step, loss=1 / step, lr=1e-3, tokens=step * 100)
    writer.close()
    assert newest_row(tmp_path) == read_metrics(tmp_path).train[-1]


@pytest.mark.parametrize(
    "line",
    [
        *("oops", "3", "null", "[]", "\0\0", "{}", '{"step": "1"}', "[" * 9999, "1" * 5000),
        *('{"step": 2, "loss": "low"}', '{"step": 2, "val_loss": NaN}', '{"step": 2, "lr": [1]}'),
        f'{{"step": 2, "tokens": 1{"0" * 400}}}',
    ],
)
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(HybridNormError, match=r"metrics\.jsonl: line 2 is no row of metrics"):
        read_metrics(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(HybridNormError, match=r"metrics\.jsonl: cannot read"):
        read_metrics(tmp_path)
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "\xff": 0}\n')
    with pytest.raises(HybridNormError, match=r"metrics\.jsonl: is not UTF-8"):
        read_metrics(tmp_path)


def test_a_row_that_finds_no_room_is_one_line_and_spoils_nothing(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(step=1, loss=1.0)
    size = (tmp_path / METRICS).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 7, limits[1]))
    try:
        with pytest.raises(HybridNormError, match=r"metrics\.jsonl: cannot write: .*--resume"):
            writer.write(step=2, loss=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.close()
    MetricsWriter(tmp_path).close()  # as the resumed run does
    assert read_metrics(tmp_path).train == [{"step": 1, "loss": 1.0}]
