"""Seekable orders: which window of which source comes when, without a list of them in memory."""

import hashlib
import math
from collections.abc import Sequence

_BITS = 32
_ONE = 1 << _BITS


class Permutation:
    """A pseudo-random bijection of `range(size)`, computed one index at a time.

    A Feistel network permutes the smallest square power of two that holds `size`; an index that
    lands outside walks on until it lands inside (cycle walking), which keeps it a bijection.
    """

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self._half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half_bits) - 1
        digest = hashlib.sha256(key.encode()).digest()
        self._keys = [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8)]

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(index)
        while True:
            index = self._rounds(index)
            if index < self.size:
                return index

    def _rounds(self, index: int) -> int:
        left, right = index >> self._half_bits, index & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return left << self._half_bits | right


class Interleaving:
    """An endless sequence of sources in exact proportion to their weights, without a list of it.

    Source by source, the positions that are left are split in two: among the first p of them,
    floor(p * fraction) are the source's. So the source at any position, and how many of its items
    came before, follow from the position alone.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.fractions = [
            min(max(round(_ONE * weight / math.fsum(weights[i:])), 1), _ONE - 1)
            for i, weight in enumerate(weights[:-1])
        ]
        """Of what earlier sources leave, in units of 2^-32."""

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The source at `position`, and how many of its items come before."""
        for source, fraction in enumerate(self.fractions):
            before = position * fraction >> _BITS
            if (position + 1) * fraction >> _BITS > before:
                return source, before
            position -= before
        return len(self.fractions), position

    def counts(self, length: int) -> list[int]:
        """How many of the first `length` positions each source has."""
        found = []
        for fraction in self.fractions:
            found.append(length * fraction >> _BITS)
            length -= found[-1]
        return [*found, length]


def _mix(x: int) -> int:
    """The finalizer of splitmix64."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
