"""A first pass for dense search over very many rows: the signs of their vectors, one bit for each 32-bit number.

Rows whose signs differ least from the query's are looked at again with their whole vectors, so every score is exact;
only a row among the best whose signs are unlike the query's can be missed (docs/bank.md has how often). Which rows
are looked at depends on the visible rows alone. Left out: when to use it (search.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memory_r1.bank.column import Column, Floats, Rows
from memory_r1.bank.vectors import Vectors

_BLOCK = 1 << 16  # rows taken at once: their distances stay in the processor's cache


class Signs:
    """The signs of one log's vectors, in words of 64 bits; follows the vectors."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._words: list[Column] = []

    def distances(self, query: Floats, count: int) -> NDArray[np.uint16]:
        """In how many dimensions the first `count` rows, at least one, differ in sign from the query (D,); (count,)."""
        self._follow(count)
        distances = np.zeros(count, dtype=np.uint16)
        for start in range(0, count, _BLOCK):
            block = slice(start, min(start + _BLOCK, count))
            for column, word in zip(self._words, _words(query[None]), strict=True):
                distances[block] += np.bitwise_count(column.view[block] ^ word)
        return distances

    def _follow(self, count: int) -> None:
        known = len(self._words[0]) if self._words else 0
        vectors = self._vectors.first(count)
        for start in range(known, count, _BLOCK):
            words = _words(vectors[start : start + _BLOCK])
            self._words = self._words or [Column(np.uint64) for _ in words]
            for column, values in zip(self._words, words, strict=True):
                column.extend(values)


def _words(vectors: Floats) -> NDArray[np.uint64]:
    """The signs of vectors (N, D), 64 dimensions to a word, (ceil(D / 64), N)."""
    bits = np.packbits(vectors > 0, axis=1)
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    return np.ascontiguousarray(padded.view(np.uint64).T)


def nearest(distances: NDArray[np.uint16], rows: Rows, wanted: int) -> Rows:
    """Of these rows, ascending, the `wanted` nearest, and those as near as the last of them."""
    among = distances[rows] if len(rows) < len(distances) else distances
    limit = np.searchsorted(np.bincount(among).cumsum(), wanted)
    near: Rows = rows[among <= limit]
    return near
