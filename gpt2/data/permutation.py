"""A seeded shuffle of 0 .. n-1 that takes no memory: each place is computed when it is asked for."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

ROUNDS = 6


class Permutation:
    """A pseudo-random permutation of `size` numbers, keyed by whole numbers such as (seed, epoch).

    A Feistel network permutes the smallest square power of two that holds `size`; a result outside is sent through
    again until it falls inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """

    def __init__(self, size: int, *key: int | str) -> None:
        if size < 1:
            raise ValueError(f"a permutation of {size} numbers")
        self.size = size
        self._half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
        self._keys = np.frombuffer(digest, "<u8").astype(np.uint64)

    def __call__(self, places: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """What stands at the places (each from 0 to size - 1)."""
        values = self._mix(np.asarray(places, np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._mix(values[outside])
        return values.astype(np.int64)

    def _mix(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (splitmix64(right ^ key) & self._mask)
        return left << self._half | right


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
