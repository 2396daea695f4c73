"""Log-likelihoods of token sequences, in batches that no number depends on."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hybridnorm.evaluate.packing import Batch, Span, batches

Step = Callable[[Tensor], Tensor]
"""Ids `(rows, new)` that continue the rows so far, to the logits after them, `(rows, vocab)`."""


class Candidate(Protocol):
    """A model that is judged, with its tokenizer."""

    name: str
    vocab_size: int
    window: int
    """Tokens it reads at most."""
    device: torch.device
    shares_beginnings: bool
    """Whether rows may hold several texts, as a `Tree`."""
    end_of_document: int
    prefix: int
    """The token that stands before a text."""

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Tokens of each text; `special`: with what the tokenizer itself puts around it."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def logits(self, batch: Batch) -> Tensor:
        """At the batch's places, `(scored, vocab)`."""
        ...

    def stepper(self, max_len: int) -> Step:
        """A new generation of texts of up to `max_len` tokens."""
        ...


class Score(NamedTuple):
    """How likely a candidate finds the scored tokens of a span."""

    log_likelihood: float
    """Natural logarithm, summed in float64."""
    greedy: bool
    """Whether each is the likeliest one."""


@torch.inference_mode()
def score(
    candidate: Candidate,
    spans: Sequence[Span],
    *,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] = lambda scored: None,
) -> list[Score]:
    """The score of each span, in order; the same in whatever batches, up to rounding.

    Args:
        batch_tokens: of a batch, padding included; a span that is longer is a batch of its own.
            None: 1024 on a CPU, whose caches hold the activations of so many; 8192 elsewhere.
        advance: called with the number of spans that each batch completes.
    """
    totals = torch.zeros(len(spans), dtype=torch.float64)
    misses = torch.zeros(len(spans), dtype=torch.long)
    for batch in batches(
        spans,
        batch_tokens=batch_tokens or (1024 if candidate.device.type == "cpu" else 8192),
        vocab_size=candidate.vocab_size,
        share=candidate.shares_beginnings,
        device=candidate.device,
    ):
        logits = candidate.logits(batch).float()
        at_target = logits.gather(1, batch.targets[:, None]).squeeze(1)
        log_likelihoods = at_target - logits.logsumexp(-1)
        missed = logits.argmax(-1) != batch.targets
        owners = batch.owners.cpu()
        totals.index_add_(0, owners, log_likelihoods.cpu().double())
        misses.index_add_(0, owners, missed.cpu().long())
        advance(len(set(owners.tolist())))
    return [
        Score(total, not missed)
        for total, missed in zip(totals.tolist(), misses.tolist(), strict=True)
    ]


def windows(prefix: int, tokens: Sequence[int], window: int, stride: int) -> Iterator[Span]:
    """Spans that score every token of a text exactly once, each after as many as there is room for.

    The first one scores up to `window` tokens after `prefix`; every other the next `stride` (or
    what is left), given the `window` tokens that end before the last of them.
    """
    text = (prefix, *tokens)
    done = 0
    while done < len(tokens):
        end = min(done + (stride if done else window), len(tokens))
        yield Span(text[max(0, end - window) : end + 1], end - done)
        done = end
