"""A seekable permutation: which window comes when, without a shuffled list in memory."""

import hashlib


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


def _mix(x: int) -> int:
    """The finalizer of splitmix64."""
    x &= 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return x ^ x >> 31
