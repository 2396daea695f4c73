"""Studies: small ones, and what the runs of one leave behind."""

import math
from collections.abc import Sequence
from pathlib import Path

from hybridnorm.train.report import write_windows
from hybridnorm.train.report.metrics import MetricsWriter

MINI = """
[set]
"data.source" = "{corpus}"
"data.tokenizer" = "byte"
"data.cache" = "{corpus}/prepared"
"model.d_model" = 32
"model.d_ff" = 64
"model.n_layers" = 2
"train.steps" = 6
"train.batch_size" = 2
"train.seq_len" = 32
"train.eval_every" = 300
"train.eval_sequences" = 4
"train.log_every" = 1
"schedule.warmup_steps" = 1
"""


def fake_run(
    folder: Path,
    name: str,
    losses: list[float],
    status: str = "finished",
    skipped: int = 0,
    parameters: int = 1000,
    windows: Sequence[float] = (),
    unigram: float | None = None,
    **held_out: float,
) -> None:
    """What a run leaves behind."""
    run_dir = folder / "runs" / name
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.toml").touch()
    writer = MetricsWriter(run_dir)
    writer.write(event="started", step=0, parameters=parameters, unigram_loss=unigram)
    for step, loss in enumerate(losses, start=1):
        writer.write(
            step=step,
            tokens=step * 100,
            loss=loss,
            grad_norm=1.0,
            lr=1e-3,
            tokens_per_second=50.0,
            seconds=step * 2.0,
            skipped_steps=skipped,
        )
    if status == "finished":
        writer.write(
            step=len(losses),
            tokens=len(losses) * 100,
            val_loss=losses[-1],
            val_perplexity=math.exp(losses[-1]),
            val_bits_per_byte=1.0,
            **held_out,
        )
        writer.write(
            event="finished",
            step=len(losses),
            val_loss=losses[-1],
            seconds=9.0,
            tokens_per_second=50.0,
        )
        if windows:
            write_windows(run_dir, len(losses), windows)
    elif status == "diverged":
        writer.write(event="diverged", step=9, reason="step 9: the loss is nan")
    writer.close()
