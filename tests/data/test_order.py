import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridnorm.data.order import Interleaving, Permutation

WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.text(max_size=8))
def test_the_order_is_a_permutation(size: int, key: str) -> None:
    order = Permutation(size, key)
    assert sorted(order[i] for i in range(size)) == list(range(size))


def test_the_order_depends_on_its_key_and_looks_shuffled() -> None:
    a, b = ([Permutation(1000, key)[i] for i in range(1000)] for key in ("0/0", "0/1"))
    assert a != b
    assert abs(np.corrcoef(a, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


@settings(max_examples=60, deadline=None)
@given(weights=WEIGHTS, length=st.integers(1, 800))
def test_sources_take_turns_exactly_by_weight(weights: list[float], length: int) -> None:
    turns = Interleaving(weights)
    seen: Counter[int] = Counter()
    for position in range(length):
        source, before = turns[position]
        assert before == seen[source], "each source gives its items in order, none twice"
        seen[source] += 1
    assert turns.counts(length) == [seen[i] for i in range(len(weights))]
    for i, weight in enumerate(weights):
        share = length * weight / math.fsum(weights)
        assert abs(seen[i] - share) < len(weights), "never further off than the roundings"


def test_a_far_position_is_as_cheap_as_a_near_one() -> None:
    turns = Interleaving([3, 1])
    source, before = turns[10**15]
    assert abs(before / 10**15 - (0.75, 0.25)[source]) < 1e-9
