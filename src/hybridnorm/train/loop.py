"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from hybridnorm.data import Batches, Mixture, Prepared
from hybridnorm.errors import HybridNormError
from hybridnorm.model import Transformer
from hybridnorm.recipe import Recipe
from hybridnorm.train.batches import Batch, MicroBatches
from hybridnorm.train.checkpoint import (
    CheckpointWriter,
    latest_valid,
    load_checkpoint,
    set_aside_damaged,
    training_state,
)
from hybridnorm.train.hooks import Hook, Row, State
from hybridnorm.train.non_finite import SkipGuard, all_finite
from hybridnorm.train.objective import objective
from hybridnorm.train.optim import build_optimizer, materialize, restore, step_unless
from hybridnorm.train.report import StepLog, held_out_losses, write_windows
from hybridnorm.train.run_dir import (
    check_identity,
    check_start,
    find_checkpoint,
    identity,
    read_record,
)
from hybridnorm.train.schedule import learning_rate
from hybridnorm.train.signals import EndSignal
from hybridnorm.train.world import World


class Trainer:
    """One run on one or many ranks: the loop, its evaluations and its checkpoints.

    Every batch, and so every step, is a pure function of (data, seed, step): a run that is killed
    and resumed continues with the losses it would have had. The host runs ahead of the device and
    waits for it only at logging steps, evaluations and checkpoints.
    """

    def __init__(
        self, recipe: Recipe, model: Transformer, data: Prepared, run_dir: Path, world: World
    ) -> None:
        self.recipe, self.config, self.run_dir, self.world = recipe, recipe.train, run_dir, world
        self.model = model
        self.optimizer = build_optimizer(model, recipe.optimizer)
        train = self.config
        tokens = Mixture(data, "train")
        batches = Batches(tokens, train.seq_len, train.batch_size, recipe.seed)
        self.batches = MicroBatches(batches, world, train)
        self.held_out = Mixture(data, "validation")
        self.identity = identity(recipe, model, tokens.fingerprint)
        self.guard = SkipGuard(train.max_skipped_steps)
        self.log = StepLog(world)
        self.hooks: Sequence[Hook] = ()
        self.memory: Row | None = None  # what the checkpoint kept of them
        self.step = 0
        self.saved_at: int | None = None
        self.seconds = 0.0
        self.val_loss: float | None = None
        self.stopped_by = 0  # the number of the signal

    def resume(self) -> list[str]:
        """Load the newest undamaged checkpoint; return a line for each damaged one.

        Raises:
            HybridNormError: there is none, it is of another run, or beyond this recipe's steps.
        """
        path, meta, problems = self.world.on_main(lambda: latest_valid(self.run_dir, read_record))
        check_identity(meta, self.identity, path)
        if meta["step"] > self.config.steps:
            raise HybridNormError(
                f"train.steps: {self.config.steps}, but {path} has done {meta['step']}; "
                "raise it, or name another --run-dir"
            )
        self.world.on_main(lambda: set_aside_damaged(self.run_dir, path))
        self._load(path, with_optimizer="optimizer" in meta)
        self.step, self.seconds, self.val_loss = meta["step"], meta["seconds"], meta["val_loss"]
        self.saved_at = self.step
        self.guard.total, self.guard.in_row = meta["skipped_steps"]
        self.memory = meta["hooks"]
        return problems

    def start(self, run_dir: Path) -> list[str]:
        """Take the weights of another run's newest undamaged checkpoint; a line for each damaged.

        Raises:
            HybridNormError: not a run, or its model is another one.
        """
        path, meta, problems = self.world.on_main(lambda: find_checkpoint(run_dir))
        check_start(meta, self.identity, path)
        self._load(path, with_optimizer=False)
        return problems

    def _load(self, checkpoint: Path, *, with_optimizer: bool) -> None:
        if not with_optimizer:
            load_checkpoint(checkpoint, training_state(self.model, None), self.world)
            return
        materialize(self.optimizer)
        state = training_state(self.model, self.optimizer)
        load_checkpoint(checkpoint, state, self.world)
        restore(self.model, self.optimizer, state)

    def rehearse(self, hook: Hook) -> None:
        """Let `hook` watch the passes of the next step, which is not taken."""
        self.hooks = [hook]
        hook.start(self._state())
        self.backward()
        self.optimizer.zero_grad(set_to_none=True)

    def run(self, hooks: Sequence[Hook], note: Callable[[str], None], **started: object) -> None:
        """Train to the last step, or until SIGINT, SIGTERM or SIGHUP; then save.

        Args:
            hooks: what watches the run.
            note: shows a line on the screen.
            started: what the first event says besides.

        Raises:
            DivergedError: too many steps in a row, or the last ones, were not finite; none of them
                touched a weight.
            HybridNormError: a checkpoint cannot be written.
        """
        self.hooks = hooks
        with ExitStack() as ends:
            for hook in reversed(hooks):
                ends.callback(self._end, hook)
            for hook in hooks:
                if self.memory is not None and hook.name in self.memory:
                    hook.recall(self.memory[hook.name])
                hook.start(self._state())
            event = "started" if self.memory is None else "resumed"
            self._event(
                event,
                parameters=self.model.num_parameters(),
                unigram_loss=self.held_out.unigram_loss(
                    self.config.seq_len, self.config.eval_sequences
                ),
                **started,
            )
            self._run(note)

    def _end(self, hook: Hook) -> None:
        hook.end(self._state())

    def _run(self, note: Callable[[str], None]) -> None:
        writer = CheckpointWriter(
            self.run_dir,
            self.world,
            keep=self.config.keep_checkpoints,
            keep_every=self.config.keep_every,
            background=self.config.async_checkpoints,
        )
        with EndSignal(note) as signal, writer:
            stop, clock = 0, time.perf_counter()
            while self.step < self.config.steps and not stop:
                lr = self.train_step()
                stop = self.world.max(signal.number)  # all ranks leave after the same step
                save = self._due(self.config.checkpoint_every) or bool(stop)
                if self._due(self.config.log_every) or save:
                    clock = self._log(lr, clock)
                paused = time.perf_counter()
                if self._due(self.config.eval_every):
                    self._evaluate()
                if save:
                    self._save(writer)
                clock += time.perf_counter() - paused
        if self.step < self.config.steps:
            self.stopped_by = stop
            self._event("interrupted")
        else:
            self._event(
                "finished",
                val_loss=self.val_loss,
                seconds=self.seconds,
                tokens_per_second=self.step * self.config.tokens_per_step / max(self.seconds, 1e-9),
                skipped_steps=self.guard.total,
            )

    def train_step(self, lr: float | None = None) -> float:
        """One optimizer step, skipped where the gradient is not finite; returns its rate.

        Args:
            lr: the learning rate; None: the schedule's.
        """
        numbers = self.backward()
        if lr is None:
            lr = learning_rate(
                self.recipe.schedule, self.recipe.optimizer.lr, self.step + 1, self.config.steps
            )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        grad_norm = _clip(self.model, self.recipe.optimizer.grad_clip)
        step_unless(self.optimizer, ~torch.isfinite(grad_norm))
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        for hook in self.hooks:
            hook.after_step(self._state())
        self.log.add(**numbers, grad_norm=grad_norm)
        return lr

    def backward(self) -> dict[str, Tensor]:
        """Gradients of the next step's batch; its loss terms and what is watched, detached."""
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(self.batches.step(self.step), start=1):
            if isinstance(self.model, FSDPModule):
                # Copies of the model (HSDP) exchange gradients once per step.
                self.model.set_requires_all_reduce(index == self.batches.n_micro)
            for hook in self.hooks:
                hook.before_forward(self._state())
            total, terms, watched = objective(self.model, batch, self.config, self.world)
            (total / self.batches.n_micro).backward()  # type: ignore[no-untyped-call]
            for name, number in (terms | watched).items():
                part = number.detach() / self.batches.n_micro
                sums[name] = sums[name] + part if name in sums else part
        for hook in self.hooks:
            hook.after_backward(self._state())
        return sums

    def _log(self, lr: float, clock: float) -> float:
        """Hand the hooks a row about the steps since `clock`; returns the time of writing it.

        Raises:
            DivergedError: the run of skipped steps is too long.
        """
        steps = self.log.read()  # the host waits for the device here
        now = time.perf_counter()
        self.seconds += now - clock
        first = self.step - len(steps) + 1
        for step, numbers in enumerate(steps, start=first):
            if self.guard.is_fatal(numbers["grad_norm"], last=step == self.config.steps):
                batch, loss = next(self.batches.step(step - 1)), numbers["loss"]
                error = self.guard.diverged(
                    self.model, batch, step, loss, self.saved_at, self.world
                )
                self._event("diverged", step=step, reason=str(error))
                raise error
        speed = len(steps) * self.config.tokens_per_step / (now - clock)
        row = {
            "step": self.step,
            "tokens": self.step * self.config.tokens_per_step,
            **steps[-1],
            "lr": lr,
            "tokens_per_second": speed,
            "seconds": self.seconds,
            "skipped_steps": self.guard.total,
        }
        for hook in self.hooks:
            hook.log(self._state(), steps, row)
        return now

    def _event(self, event: str, **fields: object) -> None:
        row = {"event": event, "step": self.step, **fields}
        for hook in self.hooks:
            hook.event(self._state(), row)

    def _state(self) -> State:
        return State(
            self.recipe, self.model, self.world, self.run_dir, self.step, self.held_out_batches
        )

    def held_out_batches(self, limit: int) -> Iterator[tuple[Batch, int]]:
        """As `hooks.State.held_out`."""
        return self.batches.held_out(self.held_out, limit)

    def _evaluate(self) -> None:
        """Hand the hooks the held-out loss in nats per token, perplexity, bits per byte of text.

        Of two halves, too, window by window in turn: one to choose settings by, one to compare with
        what was chosen. After the last step the loss of each window is kept.
        """
        windows = self._window_losses()
        losses = held_out_losses(windows)
        self.val_loss = losses["val_loss"]
        row = {
            "step": self.step,
            "tokens": self.step * self.config.tokens_per_step,
            "val_perplexity": math.exp(min(self.val_loss, 700.0)),
            "val_bits_per_byte": self.val_loss / math.log(2) * self.held_out.tokens_per_byte,
            **losses,
        }
        if self.step == self.config.steps:
            self.world.on_main(lambda: write_windows(self.run_dir, self.step, windows))
        for hook in self.hooks:
            hook.after_evaluation(self._state(), row)

    @torch.no_grad()
    def _window_losses(self) -> list[float]:
        """Of every held-out window, in order."""
        found = self.held_out_batches(self.config.eval_sequences)
        mine = [self.model.row_losses(*batch)[:rows] for batch, rows in found]
        if isinstance(self.model, FSDPModule):
            self.model.reshard()  # a forward pass alone leaves embedding and head whole
        turns = [losses.tolist() for losses in mine]
        ranks = dict(self.world.gather(lambda: (self.world.data_rank, turns)))
        in_order = zip(*(ranks[rank] for rank in sorted(ranks)), strict=True)
        return [loss for turn in in_order for losses in turn for loss in losses]

    def _save(self, writer: CheckpointWriter) -> None:
        """Save, unless the weights may be ruined: then the checkpoint before is the one to keep."""
        if self.guard.in_row or not all_finite(self.model, self.world):
            return
        meta: dict[str, Any] = {
            **self.identity,
            "seconds": self.seconds,
            "val_loss": self.val_loss if self._due(self.config.eval_every) else None,
            "skipped_steps": (self.guard.total, self.guard.in_row),
            "hooks": {hook.name: kept for hook in self.hooks if (kept := hook.memory())},
        }
        writer.write(self.step, training_state(self.model, self.optimizer), meta)
        self.saved_at = self.step

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps


def _clip(model: nn.Module, limit: float) -> Tensor:
    """Scale the gradients down to a global norm of at most `limit`; returns the norm before."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
