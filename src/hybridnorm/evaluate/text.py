"""Perplexity of texts: every token is scored once, whatever the windows and batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from hybridnorm.errors import HybridNormError
from hybridnorm.evaluate.packing import Span
from hybridnorm.evaluate.results import Estimate, TextScore
from hybridnorm.evaluate.scoring import Candidate, score, windows

_DOCUMENTS = 256  # that are scored at once: enough for batches of one length


@dataclass(frozen=True)
class _Document:
    nats: float
    tokens: int
    bytes: int


def score_texts(
    candidate: Candidate,
    source: str,
    texts: Iterable[str],
    *,
    stride: int | None = None,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] = lambda documents: None,
) -> TextScore:
    """Score documents, each on its own, after the token that stands before a text.

    Args:
        source: what the texts are called.
        stride: tokens between two windows. None: half a window.
        advance: called with the number of documents that are done.

    Raises:
        HybridNormError: a stride that is longer than a window, or no text.
    """
    stride = max(1, candidate.window // 2) if stride is None else stride
    if not 1 <= stride <= candidate.window:
        raise HybridNormError(
            f"stride: must lie between 1 and the window of {candidate.window} tokens, got {stride}"
        )
    found: list[_Document] = []
    remaining = iter(texts)
    while some := list(islice(remaining, _DOCUMENTS)):
        found += _documents(candidate, some, stride, batch_tokens)
        advance(len(some))
    found = [document for document in found if document.tokens]
    if not found:
        raise HybridNormError(f"{source}: holds no text to score; name another file")
    nats = [document.nats for document in found]
    tokens = [document.tokens for document in found]
    sizes = [document.bytes for document in found]
    per_token, per_byte = ratio(nats, tokens), ratio(nats, sizes)
    value = math.exp(min(per_token.value, 700.0))
    return TextScore(
        source,
        len(found),
        sum(tokens),
        sum(sizes),
        per_token,
        Estimate(value, _times(per_token.error, value)),
        Estimate(per_byte.value / math.log(2), _times(per_byte.error, 1 / math.log(2))),
    )


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate:
    """sum(above) / sum(below), and its standard error over the pairs (linearized)."""
    total, n = sum(below), len(below)
    value = sum(above) / total
    if n < 2:
        return Estimate(value, None)
    squares = sum((a - value * b) ** 2 for a, b in zip(above, below, strict=True))
    return Estimate(value, math.sqrt(squares * n / (n - 1)) / total)


def _documents(
    candidate: Candidate, texts: Sequence[str], stride: int, batch_tokens: int | None
) -> Iterator[_Document]:
    encoded = candidate.encode_batch(texts, special=False)
    spans: list[Span] = []
    owners: list[int] = []
    for index, ids in enumerate(encoded):
        cut = list(windows(candidate.prefix, ids, candidate.window, stride))
        spans += cut
        owners += [index] * len(cut)
    nats = [0.0] * len(texts)
    for owner, found in zip(
        owners, score(candidate, spans, batch_tokens=batch_tokens), strict=True
    ):
        nats[owner] -= found.log_likelihood
    for text, ids, total in zip(texts, encoded, nats, strict=True):
        yield _Document(total, len(ids), len(text.encode("utf-8", "replace")))


def _times(error: float | None, factor: float) -> float | None:
    return None if error is None else error * factor
