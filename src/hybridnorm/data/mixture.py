"""Prepared sets mixed by weight, and batches as a pure function of (data, seed, step)."""

import hashlib
from functools import lru_cache

import numpy as np

from hybridnorm.data.dataset import Ids, Tokens
from hybridnorm.data.manifest import SPLITS, Split
from hybridnorm.data.order import Interleaving, Permutation
from hybridnorm.data.prepared import Prepared


class Mixture:
    """One split of one or several prepared folders, and the share of the sequences of each.

    Raises:
        HybridNormError: a manifest is missing or damaged.
    """

    def __init__(self, data: Prepared, split: Split) -> None:
        self.parts = [Tokens(folder, split) for folder in data.folders]
        self.interleaving = Interleaving(data.weights)
        self.end_of_document = self.parts[0].end_of_document
        """The id that ends every document."""
        shares = np.array(data.weights) / sum(data.weights)
        bytes_per_token = sum(
            share / part.tokens_per_byte for share, part in zip(shares, self.parts, strict=True)
        )
        self.tokens_per_byte = float(1 / bytes_per_token)
        """Tokens, ends of documents included, per byte of text, as the sets are mixed."""
        content = [[part.fingerprint for part in self.parts], self.interleaving.fractions]
        self.fingerprint = hashlib.sha256(repr(content).encode()).hexdigest()
        """A hash of the content and the weights."""

    def n_windows(self, seq_len: int) -> list[int]:
        """How many windows each set has.

        Raises:
            HybridNormError: a set is shorter than one window.
        """
        return [part.n_windows(seq_len) for part in self.parts]

    def windows(self, seq_len: int, limit: int) -> tuple[Ids, Ids]:
        """At most `limit` windows: ids and targets `(windows, seq_len)`.

        They are spread evenly over each set, and over the sets by their weights.

        Raises:
            HybridNormError: a set is shorter than one window.
        """
        available = self.n_windows(seq_len)
        rows = []
        for part, count, n in zip(
            self.parts, available, self._counts(available, limit), strict=True
        ):
            rows += [part.window(index, seq_len) for index in (i * count // n for i in range(n))]
        stacked = np.stack(rows)
        return stacked[:, :-1], stacked[:, 1:]

    def unigram_loss(self, seq_len: int, limit: int) -> float:
        """Nats per token of these windows, for a model that knows no more than their frequencies.

        The entropy of the targets: a little less than what frequencies of other text would reach.

        Raises:
            HybridNormError: a set is shorter than one window.
        """
        _, counts = np.unique(self.windows(seq_len, limit)[1], return_counts=True)
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    def _counts(self, available: list[int], limit: int) -> list[int]:
        """How many windows of each set: as many as keep the proportions."""
        low, high = 0, min(limit, sum(available))
        while low < high:
            middle = (low + high + 1) // 2
            fits = all(
                n <= have
                for n, have in zip(self.interleaving.counts(middle), available, strict=True)
            )
            low, high = (middle, high) if fits else (low, middle - 1)
        return self.interleaving.counts(low)


def check_lengths(data: Prepared, seq_len: int) -> None:
    """Raise `HybridNormError` where a split of a set is shorter than one window."""
    for split in SPLITS:
        Mixture(data, split).n_windows(seq_len)


class Batches:
    """Batch `step` (from 0) of a run: a pure function of the tokens, the seed and the step.

    The sets take turns by their weights, and each gives fixed windows in an order that a keyed
    permutation gives anew for every epoch of that set: each of its windows comes once per epoch,
    whatever the number of ranks and the size of micro-batches.
    """

    def __init__(self, tokens: Mixture, seq_len: int, batch_size: int, seed: int) -> None:
        self.tokens, self.seq_len, self.batch_size, self.seed = tokens, seq_len, batch_size, seed
        self.n_windows = tokens.n_windows(seq_len)
        self._permutation = lru_cache(maxsize=4 * len(tokens.parts))(
            lambda part, epoch: Permutation(self.n_windows[part], f"{seed}/{epoch}/{part}")
        )

    def rows(self, step: int, start: int, stop: int) -> tuple[Ids, Ids]:
        """Rows `start` to `stop` of batch `step`: ids and targets `(stop - start, seq_len)`."""
        first = step * self.batch_size
        windows = [self.window_at(first + row) for row in range(start, stop)]
        rows = np.stack([self.tokens.parts[p].window(i, self.seq_len) for p, i in windows])
        return rows[:, :-1], rows[:, 1:]

    def window_at(self, position: int) -> tuple[int, int]:
        """The set, and the window in it, at `position` in the endless sequence."""
        part, place = self.tokens.interleaving[position]
        epoch, index = divmod(place, self.n_windows[part])
        return part, self._permutation(part, epoch)[index]
