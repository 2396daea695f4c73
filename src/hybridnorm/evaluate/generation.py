"""Greedy continuations of prompts of different lengths, without padding."""

from collections.abc import Sequence
from typing import Protocol

import torch

from hybridnorm.evaluate.scoring import Candidate


class Continuation(Protocol):
    """A prompt, and when its continuation ends."""

    prompt: list[int]
    max_new: int
    """Tokens at most, at least 1."""

    def is_done(self, ids: list[int]) -> bool:
        """Whether these new tokens are enough."""
        ...


@torch.inference_mode()
def continue_greedily(candidate: Candidate, asked: Sequence[Continuation]) -> list[list[int]]:
    """What the candidate finds likeliest after each prompt, token by token.

    All rows start with as many tokens as the shortest prompt has; a longer prompt then goes on with
    its own tokens while others are continued already. So no row has a gap that needs a mask.
    """
    new: list[list[int]] = [[] for _ in asked]
    waiting = set(range(len(asked)))
    step = candidate.stepper(max(len(one.prompt) + one.max_new for one in asked))
    fed = min(len(one.prompt) for one in asked)
    ids = [one.prompt[:fed] for one in asked]
    while waiting:
        likeliest = step(torch.tensor(ids, device=candidate.device)).argmax(-1).tolist()
        for index, one in enumerate(asked):
            ids[index] = [one.prompt[fed] if fed < len(one.prompt) else likeliest[index]]
            if index in waiting and fed >= len(one.prompt):
                new[index] += ids[index]
                if len(new[index]) == one.max_new or one.is_done(new[index]):
                    waiting.remove(index)
        fed += 1
    return new
