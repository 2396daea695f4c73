"""A hook that watches training: how much of the gradient each part of the model gets.

    hybridnorm train demo --train.hooks examples.hook.GradientShares

The shares stand in metrics.jsonl beside the loss. Copy it and change what it computes: a hook may
read anything of the model, at any step, but must change nothing.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hybridnorm.train.hooks import Hook, Row, State

PARTS = ("embedding", "attention", "feed_forward")


class GradientShares(Hook):
    """The share of the squared gradient norm that falls on each of `PARTS`."""

    def after_backward(self, state: State) -> None:
        """Only collected here: reading a number would make the host wait for the device."""
        squares = {part: [] for part in PARTS}
        for name, parameter in state.model.named_parameters():
            part = next((part for part in PARTS if f".{part}." in f".{name}."), None)
            if part and parameter.grad is not None:
                squares[part].append(parameter.grad.detach().square().sum())
        self.sums: dict[str, Tensor] = {
            part: torch.stack(found).sum() for part, found in squares.items()
        }

    def log(self, state: State, steps: Sequence[Mapping[str, float]], row: Row) -> None:
        """Those of the last step, which the row is about."""
        total = sum(self.sums.values())
        row |= {f"gradient_share_{part}": float(s / total) for part, s in self.sums.items()}
