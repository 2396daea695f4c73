"""The training loop."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from hybridnorm.data.manifest import Prepared
from hybridnorm.data.mixture import Batches, Mixture
from hybridnorm.model.transformer import Transformer
from hybridnorm.train import checkpoint, guard
from hybridnorm.train.config import Recipe
from hybridnorm.train.metrics import MetricsWriter
from hybridnorm.train.optimizer import build_optimizer
from hybridnorm.train.progress import TrainingProgress
from hybridnorm.train.rundir import check_identity, identity
from hybridnorm.train.schedule import learning_rate


class Trainer:
    """One run: the loop, its evaluations and its checkpoints.

    Every batch, and so every step, is a pure function of (data, seed, step): a run that is killed
    and resumed continues with the losses it would have had.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: Transformer,
        data: Prepared,
        run_dir: Path,
        device: torch.device,
    ) -> None:
        self.recipe, self.config, self.run_dir, self.device = recipe, recipe.train, run_dir, device
        self.model = model
        self.optimizer = build_optimizer(model, recipe.optimizer)
        train = self.config
        tokens = Mixture(data, "train")
        self.batches = Batches(tokens, train.seq_len, train.batch_size, recipe.seed)
        self.held_out = Mixture(data, "validation")
        self.identity = identity(recipe, model, tokens.fingerprint)
        self.step = 0
        self.seconds = 0.0
        self.val_loss: float | None = None
        self.stop = False

    def resume(self) -> list[str]:
        """Load the newest undamaged checkpoint; return a line for each damaged one."""
        path, meta, problems = checkpoint.latest_valid(self.run_dir)
        check_identity(meta, self.identity, path)
        checkpoint.materialize(self.optimizer)
        checkpoint.load_checkpoint(path, checkpoint.training_state(self.model, self.optimizer))
        self.step, self.seconds, self.val_loss = meta["step"], meta["seconds"], meta["val_loss"]
        return problems

    def run(self, metrics: MetricsWriter, console: Console) -> None:
        """Train to the last step, or until SIGINT or SIGTERM; then save.

        Raises:
            DivergedError: the loss is not finite; nothing of that step reached the weights.
            HybridNormError: a checkpoint cannot be written.
        """
        with TrainingProgress(self.recipe, console) as progress, self._stopping(progress):
            saved_at = self.step
            logged_at, clock = self.step, time.perf_counter()
            while self.step < self.config.steps and not self.stop:
                try:
                    loss, grad_norm, lr = self._train_step()
                except guard.DivergedError as error:
                    metrics.write(event="diverged", step=self.step + 1, reason=str(error))
                    raise
                if self._due(self.config.log_every) or self.stop:
                    now = time.perf_counter()
                    row = self._row(loss, grad_norm, lr, now - clock, self.step - logged_at)
                    metrics.write(**row)
                    progress.train(row)
                    logged_at, clock = self.step, now
                paused = time.perf_counter()
                if self._due(self.config.eval_every):
                    row = self._evaluate()
                    metrics.write(**row)
                    progress.evaluation(row)
                if self._due(self.config.checkpoint_every):
                    self.save()
                    saved_at = self.step
                clock += time.perf_counter() - paused
            if saved_at != self.step:
                self.save()
        if self.stop and self.step < self.config.steps:
            metrics.write(event="interrupted", step=self.step)
        else:
            speed = self.step * self._tokens_per_step() / max(self.seconds, 1e-9)
            metrics.write(
                event="finished",
                step=self.step,
                val_loss=self.val_loss,
                seconds=self.seconds,
                tokens_per_second=speed,
            )

    def save(self) -> Path:
        """Write a checkpoint of the current step and drop the superseded ones."""
        state = checkpoint.training_state(self.model, self.optimizer)
        meta = {**self.identity, "seconds": self.seconds, "val_loss": self.val_loss}
        path = checkpoint.save_checkpoint(self.run_dir, self.step, state, meta)
        checkpoint.prune(self.run_dir, self.config.keep_checkpoints)
        return path

    def _train_step(self) -> tuple[float, float, float]:
        start = time.perf_counter()
        size = self.config.batch_size
        micro = self.config.micro_batch_size or size
        total = torch.zeros((), device=self.device)
        for first in range(0, size, micro):
            ids, targets = self._to_device(self.batches.rows(self.step, first, first + micro))
            loss = self.model.loss(ids, targets) * (micro / size)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        lr = learning_rate(
            self.recipe.schedule, self.recipe.optimizer.lr, self.step + 1, self.config.steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        clip = self.recipe.optimizer.grad_clip
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
        if not math.isfinite(total.item()) or not math.isfinite(grad_norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise guard.diverged(self.model, self._first_rows(), self.step + 1, total.item())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.perf_counter() - start
        return total.item(), grad_norm, lr

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Held-out loss in nats per token, its perplexity, and bits per byte of text."""
        total, count = 0.0, 0
        micro = self.config.micro_batch_size or self.config.batch_size
        windows = self.held_out.windows(self.config.seq_len, self.config.eval_sequences)
        for first in range(0, len(windows[0]), micro):
            ids, targets = self._to_device([part[first : first + micro] for part in windows])
            tokens = int((targets >= 0).sum())
            total += self.model.loss(ids, targets).item() * tokens
            count += tokens
        loss = total / count
        self.val_loss = loss
        return {
            "step": self.step,
            "tokens": self.step * self._tokens_per_step(),
            "val_loss": loss,
            "val_perplexity": math.exp(min(loss, 700.0)),
            "val_bits_per_byte": loss / math.log(2) * self.held_out.tokens_per_byte,
        }

    def _row(
        self, loss: float, grad_norm: float, lr: float, seconds: float, steps: int
    ) -> dict[str, float]:
        return {
            "step": self.step,
            "tokens": self.step * self._tokens_per_step(),
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
            "tokens_per_second": steps * self._tokens_per_step() / seconds,
            "seconds": self.seconds,
        }

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _tokens_per_step(self) -> int:
        return self.config.batch_size * self.config.seq_len

    def _first_rows(self) -> Tensor:
        micro = self.config.micro_batch_size or self.config.batch_size
        return self._to_device(self.batches.rows(self.step, 0, micro))[0]

    def _to_device(self, arrays: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        ids, targets = (torch.from_numpy(part).to(self.device) for part in arrays)
        return ids, targets

    @contextmanager
    def _stopping(self, progress: TrainingProgress) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a stop after the step; a second one kills."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.stop = True
            caught = signal.Signals(number)
            signal.signal(caught, previous[caught])
            progress.note(f"{caught.name}: saving after this step")

        previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in previous:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
