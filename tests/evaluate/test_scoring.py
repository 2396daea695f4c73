"""Log-likelihoods against one forward pass per token."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from candidates import log_likelihoods, run_model
from hybridnorm.evaluate.packing import Span, batches
from hybridnorm.evaluate.scoring import score, windows


def spans_of_questions(n: int, seed: int = 0) -> list[Span]:
    """Questions with a common beginning and choices of different lengths, some of them equal."""
    draw = random.Random(seed)
    examples = [draw.randrange(257) for _ in range(30)]
    found = []
    for _ in range(n):
        question = [*examples, *(draw.randrange(257) for _ in range(draw.randint(0, 12)))]
        for _ in range(4):
            choice = [draw.randrange(3) for _ in range(draw.randint(1, 6))]
            found.append(Span((*question, *choice), len(choice)))
    return found


@pytest.mark.parametrize("shape", [{}, {"placement": "hybridnorm-star"}, {"n_experts": 4}])
def test_shared_beginnings_change_no_number(shape: dict[str, object]) -> None:
    candidate = run_model(**shape)
    spans = spans_of_questions(5)
    for span, found in zip(spans, score(candidate, spans, batch_tokens=500), strict=True):
        plain = log_likelihoods(candidate.model, list(span.tokens), span.scored, 257)
        assert found.log_likelihood == pytest.approx(sum(plain), abs=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 50, 333, 100_000])
def test_no_number_depends_on_batches(batch_tokens: int) -> None:
    candidate, spans = run_model(), spans_of_questions(7)
    expected = score(candidate, spans, batch_tokens=900)
    found = score(candidate, spans, batch_tokens=batch_tokens)
    assert [s.greedy for s in found] == [s.greedy for s in expected]
    assert [s.log_likelihood for s in found] == pytest.approx(
        [s.log_likelihood for s in expected], abs=1e-4
    )


def test_what_begins_alike_is_computed_once() -> None:
    spans = spans_of_questions(20)
    options = {"batch_tokens": 4096, "vocab_size": 257, "device": torch.device("cpu")}
    apart = sum(b.input_ids.numel() for b in batches(spans, share=False, **options))
    together = list(batches(spans, share=True, **options))
    assert sum(b.input_ids.numel() for b in together) < apart / 5
    assert sorted({int(o) for b in together for o in b.owners}) == list(range(len(spans)))


def test_greedy_is_the_likeliest_of_every_token() -> None:
    candidate = run_model()
    tokens = [1, 2, 3]
    for _ in range(3):
        tokens.append(int(candidate.model(torch.tensor([tokens]))[0, -1].argmax()))
    wrong = [*tokens[:-1], (tokens[-1] + 1) % 257]
    spans = [Span(tuple(tokens), 3), Span(tuple(wrong), 3), Span(tuple(tokens), 1)]
    assert [s.greedy for s in score(candidate, spans, batch_tokens=64)] == [True, False, True]


@given(st.integers(0, 50), st.integers(1, 12), st.data())
def test_every_token_is_scored_once_after_as_many_as_fit(
    length: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    text = list(range(1, length + 1))  # each token says where it stands
    scored = []
    for span in windows(0, text, window, stride):
        assert len(span.tokens) - 1 <= window
        assert list(span.tokens) == list(range(span.tokens[0], span.tokens[-1] + 1))
        last = span.tokens[-1]
        assert len(span.tokens) - 1 == min(window, last)
        scored += span.tokens[-span.scored :]
    assert scored == text
