"""Token sequences to batches, where what sequences begin with in common is computed once.

The choices of a question share the question, and the questions of a task with examples share the
examples. Sorted, such sequences are neighbours; they are laid into one row, each token of their
tree once, and a mask lets a token see its own sequence only.

Shape suffixes: B rows, T tokens of a row, S segments (branches of the tree) of a row.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hybridnorm.model import Tree

# To join a row means to attend to all of it, masked or not. A token saved is worth about so many
# pairs of a query and a key: its share of the linear layers (6 d_model in a layer of 12 d_model^2).
_PAIRS = 1000
_LOGITS = 1 << 27  # at most, of a batch: 512 MiB in float32


class Span(NamedTuple):
    """Tokens of which the last ones are scored, each given all before it."""

    tokens: tuple[int, ...]
    scored: int
    """At least 1, at most all but the first."""


class Batch(NamedTuple):
    """What a model computes at once."""

    input_ids: Tensor
    """`(rows, seq)`; rows are padded at the right."""
    tree: Tree | None
    """None: one sequence in each row."""
    places: Tensor
    """Indices `(scored,)` into the flat ids: where logits are needed."""
    targets: Tensor
    """The token that follows each place, `(scored,)`."""
    owners: Tensor
    """The number of the span that each place belongs to, `(scored,)`."""


@dataclass
class Row:
    """Sequences in one row, added in sorted order."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    visible: list[list[int]] = field(default_factory=list)
    """For each segment, how many first positions of each one so far it sees."""
    path: list[int] = field(default_factory=list)
    """The columns of the sequence that was added last."""
    scored: list[tuple[int, int, int]] = field(default_factory=list)
    """Column, target and owner."""

    def add(self, owner: int, span: Span, shared: int) -> None:
        """Lay a span into the row; its first `shared` tokens are those of the span before it."""
        start, length = len(self.tokens), len(span.tokens) - 1
        if length > shared:
            self.tokens += span.tokens[shared:length]
            self.positions += range(shared, length)
            self.segments += [len(self.visible)] * (length - shared)
            before = self.visible[-1] if self.visible else []
            self.visible.append([*(min(seen, shared) for seen in before), length])
            self.path = [*self.path[:shared], *range(start, len(self.tokens))]
        columns = self.path[length - span.scored : length]
        for column, target in zip(columns, span.tokens[-span.scored :], strict=True):
            self.scored.append((column, target, owner))


def batches(
    spans: Sequence[Span], *, batch_tokens: int, vocab_size: int, share: bool, device: torch.device
) -> Iterator[Batch]:
    """All spans in batches of at most `batch_tokens` (or one row), the longest rows first.

    Args:
        share: whether sequences that begin alike may share a row.
    """
    rows = list(_rows(spans, batch_tokens if share else 0))
    rows.sort(key=lambda row: len(row.tokens), reverse=True)
    group: list[Row] = []
    for row in rows:
        padded = (len(group) + 1) * len((group or [row])[0].tokens)
        scored = sum(len(other.scored) for other in [*group, row])
        if group and (padded > batch_tokens or scored * vocab_size > _LOGITS):
            yield _batch(group, device)
            group = []
        group.append(row)
    if group:
        yield _batch(group, device)


def _rows(spans: Sequence[Span], largest: int) -> Iterator[Row]:
    row, before = Row(), Span((), 0)
    for owner, span in sorted(enumerate(spans), key=lambda pair: pair[1].tokens):
        inputs = span.tokens[:-1]
        shared = _common(before.tokens[:-1], inputs)
        size, new = len(row.tokens), len(inputs) - shared
        if size + new > largest or 2 * new * (size - shared) > _PAIRS * shared:
            if row.tokens:
                yield row
            row, shared = Row(), 0
        row.add(owner, span, shared)
        before = span
    if row.tokens:
        yield row


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of what both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _batch(rows: Sequence[Row], device: torch.device) -> Batch:
    ids_BT = _padded(row.tokens for row in rows)
    length = ids_BT.shape[1]
    scored = torch.tensor(
        [
            (index * length + column, target, owner)
            for index, row in enumerate(rows)
            for column, target, owner in row.scored
        ]
    )
    places, targets, owners = scored.to(device).unbind(1)
    branched = any(len(row.visible) > 1 for row in rows)
    tree = _tree(rows, device) if branched else None
    return Batch(ids_BT.to(device), tree, places, targets, owners)


def _tree(rows: Sequence[Row], device: torch.device) -> Tree:
    positions_BT = _padded(row.positions for row in rows).to(device)
    segments_BT = _padded(row.segments for row in rows).to(device)
    n_segments = max(len(row.visible) for row in rows)
    visible_BSS = torch.zeros(len(rows), n_segments, n_segments, dtype=torch.long)
    for index, row in enumerate(rows):
        visible_BSS[index, : len(row.visible), : len(row.visible)] = _padded(row.visible)
    length = positions_BT.shape[1]
    by_query_BTS = visible_BSS.to(device).gather(
        1, segments_BT[:, :, None].expand(-1, -1, n_segments)
    )
    visible_BTT = by_query_BTS.gather(2, segments_BT[:, None].expand(-1, length, -1))
    # Padding is no key, and as a query it stands where the first token does.
    keys_BT = positions_BT.clone()
    for index, row in enumerate(rows):
        keys_BT[index, len(row.tokens) :] = length
    earlier_BTT = keys_BT[:, None] <= positions_BT[:, :, None]
    mask_BTT = earlier_BTT & (keys_BT[:, None] < visible_BTT)
    return Tree(positions_BT, mask_BTT[:, None])


def _padded(rows: Iterable[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
