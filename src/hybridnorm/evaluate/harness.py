"""The model behind lm-eval: its tasks ask, a candidate answers. Imports lm-eval."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lm_eval.api.model import TemplateLM

from hybridnorm.errors import HybridNormError
from hybridnorm.evaluate.generation import Continuation, continue_greedily
from hybridnorm.evaluate.packing import Span
from hybridnorm.evaluate.scoring import Candidate, score, windows

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""A title and a number of requests, to what counts them."""
_CACHED = 8192  # tokens that are continued at a time, prompts and continuations
_NEW_TOKENS = 256  # where a task names no other number, as lm-eval's own models have it


def no_bar(title: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
    """Shows nothing."""
    return nullcontext(lambda done: None)


class CandidateLM(TemplateLM):  # type: ignore[misc]
    """lm-eval's `LM` on a `Candidate`.

    Tokenization is lm-eval's own (`TemplateLM`): a continuation is what a text has more than its
    context, and an empty context is the prefix token.

    Args:
        batch_tokens: of a batch, padding included; None: what suits the device.
        bar: shows what is done.
    """

    def __init__(self, candidate: Candidate, *, batch_tokens: int | None, bar: Bar) -> None:
        super().__init__()
        self.candidate, self.batch_tokens, self.bar = candidate, batch_tokens, bar
        self.truncated = 0
        """Requests that were longer than a window; they lost tokens at the left."""
        self._ids: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        return self.candidate.end_of_document

    @property
    def prefix_token_id(self) -> int:
        return self.candidate.prefix

    @property
    def max_length(self) -> int:
        return self.candidate.window

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        if add_special_tokens is False:
            return self.candidate.encode_batch([string], special=False)[0]
        if string not in self._ids:
            self._encode([string])
        return self._ids[string]

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        self._encode(t for context, more in pairs for t in (context.rstrip(), context + more))
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self._ids.clear()
        return answers

    def _encode(self, texts: Iterable[str]) -> None:
        """All at once, which is faster than one by one."""
        distinct = list(dict.fromkeys(texts))
        self._ids |= zip(distinct, self.candidate.encode_batch(distinct), strict=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, list[int], list[int]]], **options: object
    ) -> list[tuple[float, bool]]:
        spans, asked = [], []
        answers = [(0.0, True)] * len(requests)  # of an empty continuation
        for index, (_, context, continuation) in enumerate(requests):
            if continuation:
                spans.append(self._fitting(context, continuation))
                asked.append(index)
        with self.bar("log-likelihoods", len(spans)) as advance:
            scores = score(self.candidate, spans, batch_tokens=self.batch_tokens, advance=advance)
        for index, found in zip(asked, scores, strict=True):
            answers[index] = (found.log_likelihood, found.greedy)
        return answers

    def _fitting(self, context: list[int], continuation: list[int]) -> Span:
        window = self.candidate.window
        tokens = (*context, *continuation)
        self.truncated += len(tokens) > window + 1
        return Span(tokens[-window - 1 :], min(len(continuation), window))

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[float]:
        candidate = self.candidate
        encoded = candidate.encode_batch([request.args[0] for request in requests])
        cut = [
            list(windows(candidate.prefix, ids, candidate.window, candidate.window))
            for ids in encoded
        ]
        spans = [span for part in cut for span in part]
        with self.bar("texts", len(spans)) as advance:
            scores = iter(score(candidate, spans, batch_tokens=self.batch_tokens, advance=advance))
        return [sum(next(scores).log_likelihood for _ in part) for part in cut]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        asked = [_Generation(self, *request.args) for request in requests]
        order = sorted(range(len(asked)), key=lambda index: asked[index].most, reverse=True)
        answers = [""] * len(asked)
        with self.bar("continuations", len(asked)) as advance:
            while order:
                rows = max(1, (self.batch_tokens or _CACHED) // max(1, asked[order[0]].most))
                some, order = order[:rows], order[rows:]
                group = [asked[index] for index in some]
                new = continue_greedily(self.candidate, group)
                for index, one, ids in zip(some, group, new, strict=True):
                    answers[index] = one.text(ids)
                advance(len(some))
        return answers


class _Generation(Continuation):
    """A prompt, cut to what fits before its continuation, and where that stops."""

    def __init__(self, lm: CandidateLM, context: str, options: dict[str, Any]) -> None:
        if options.get("do_sample") and options.get("temperature", 1.0) > 0:
            raise HybridNormError(
                "tasks: a task asks for sampled text, this model continues greedily; leave it out"
            )
        self.candidate = lm.candidate
        stops = options.get("until") or []
        self.stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]
        given = options.get("max_gen_toks", options.get("max_new_tokens", _NEW_TOKENS))
        self.max_new = max(1, min(int(given), lm.max_length - 1))
        ids = lm.tok_encode(context) or [lm.prefix_token_id]
        fits = max(1, lm.max_length - self.max_new)
        lm.truncated += len(ids) > fits
        self.prompt = ids[-fits:]
        self.most = len(self.prompt) + self.max_new

    def is_done(self, ids: list[int]) -> bool:
        if ids[-1] == self.candidate.end_of_document:
            return True
        text = self.candidate.decode(ids) if self.stops else ""
        return any(stop in text for stop in self.stops)

    def text(self, ids: list[int]) -> str:
        """The continuation up to the first place where it stops."""
        if ids and ids[-1] == self.candidate.end_of_document:
            ids = ids[:-1]
        text = self.candidate.decode(ids)
        for stop in self.stops:
            text = text.split(stop)[0]
        return text
