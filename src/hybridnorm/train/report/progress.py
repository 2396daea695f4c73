"""What people see while a model trains: a live line on a terminal, plain lines elsewhere."""

from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn

from hybridnorm.recipe import Recipe
from hybridnorm.text import clock, size

_PLAIN_LINES = 20  # at most so many training lines where there is no terminal


class TrainingProgress:
    """Shows metric rows as they come."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self.steps = recipe.train.steps
        self.console = console
        self._next_line = 0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting")

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def train(self, row: dict[str, Any]) -> None:
        # What a narrow terminal cuts off matters least.
        left = clock(seconds_left(row, self.steps))
        line = (
            f"step {row['step']:>6}/{self.steps}  loss {row['loss']:.4f}  {left} left  "
            f"{row['tokens_per_second']:,.0f} tokens/s  grad_norm {row['grad_norm']:.3f}  "
            f"lr {row['lr']:.2e}  {_effort(row)}"
        )
        self._bar.update(self._task, description=line)
        if not self.console.is_terminal and row["step"] >= self._next_line:
            self._next_line = row["step"] + max(1, self.steps // _PLAIN_LINES)
            self.console.print(line)

    def evaluation(self, row: dict[str, Any]) -> None:
        self.console.print(
            f"step {row['step']:>6}/{self.steps}  held-out loss {row['val_loss']:.4f}  "
            f"perplexity {row['val_perplexity']:.2f}  bits/byte {row['val_bits_per_byte']:.4f}"
        )

        tasks = {name: row[name] for name in row if name.startswith("tasks/")}
        shown = [
            f"{name.removeprefix('tasks/')} {value:.4f}"
            for name, value in tasks.items()
            if not name.endswith("_stderr")
        ]
        if shown:
            self.note(f"step {row['step']:>6}/{self.steps}  {'  '.join(shown)}")

    def note(self, text: str) -> None:
        self.console.print(text)


def _effort(row: dict[str, Any]) -> str:
    """Utilization where the device's peak is known, else achieved FLOP/s; and peak memory."""
    compute = (
        f"mfu {row['mfu']:.1%}" if "mfu" in row else f"{row['flops_per_second'] / 1e9:,.0f} GFLOP/s"
    )
    return f"{compute}  {size(row['peak_memory_bytes'])}"


def seconds_left(row: dict[str, Any], steps: int) -> float:
    """Until the last of `steps`, at the speed of a logged row."""
    tokens_per_step = row["tokens"] / row["step"]
    return float((steps - row["step"]) * tokens_per_step / row["tokens_per_second"])
