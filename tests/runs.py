"""What a run wrote."""

from pathlib import Path

from hybridnorm.train.report.metrics import read_metrics


def last_step(run_dir: Path) -> int:
    rows = read_metrics(run_dir).train if (run_dir / "metrics.jsonl").exists() else []
    return int(rows[-1]["step"]) if rows else 0


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run_dir).train]
