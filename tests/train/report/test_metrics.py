from pathlib import Path

import pytest

from hybridnorm.errors import HybridNormError
from hybridnorm.train.report.metrics import FILE, MetricsWriter, read_metrics


def test_a_killed_run_leaves_a_readable_file_that_can_be_continued(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(event="started", step=0)
    for step in (1, 2, 3):
        writer.write(step=step, loss=float(step))
    writer.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # what SIGKILL leaves
    assert [row["step"] for row in read_metrics(tmp_path).train] == [1, 2, 3]
    writer = MetricsWriter(tmp_path)
    writer.write(event="resumed", step=2)
    writer.write(step=3, loss=30.0)
    writer.write(step=3, val_loss=1.5)
    writer.close()
    metrics = read_metrics(tmp_path)
    assert [row["loss"] for row in metrics.train] == [1.0, 2.0, 30.0]
    assert metrics.evaluations == [{"step": 3, "val_loss": 1.5}]
    assert metrics.status == "resumed"


def test_an_edited_file_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(HybridNormError, match=r"metrics\.jsonl: line 2 is not JSON"):
        read_metrics(tmp_path)
    with pytest.raises(HybridNormError, match="cannot read"):
        read_metrics(tmp_path / "nowhere")


def test_a_directory_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(step=1, loss=1.0)
    with pytest.raises(HybridNormError, match="another process trains here"):
        MetricsWriter(tmp_path)
    writer.close()
    MetricsWriter(tmp_path).close()
    assert [row["step"] for row in read_metrics(tmp_path).train] == [1]
