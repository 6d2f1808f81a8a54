"""The vectors of one log's rows, in one matrix that follows what the bank keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from memory_r1.bank.column import Column, Floats

VectorSource = Callable[[int], Iterable[tuple[int, Floats]]]
"""Called with a log position, gives the vectors of the versions opened after it, in order: blocks (N, D) of them, each
with the number of the line that opened its last one."""


class Vectors:
    """Rows in the order the log opened them; read from the source when first needed, then only what is new."""

    def __init__(self, source: VectorSource) -> None:
        self._source = source
        self._position = 0
        self._matrix: Column | None = None

    def first(self, count: int) -> Floats:
        """The vectors of the first `count` rows, at least one, (count, D), without a copy."""
        if self._matrix is None or len(self._matrix) < count:
            self._read(count)
        assert self._matrix is not None
        assert len(self._matrix) >= count, f"{count} rows were opened, but there are {len(self._matrix)} vectors"
        return self._matrix.view[:count]

    def _read(self, count: int) -> None:
        """Read what is new, at least up to `count` rows in all."""
        for position, block in self._source(self._position):
            if self._matrix is None:
                self._matrix = Column(np.float32, width=block.shape[1])
            self._matrix.reserve(count)
            self._matrix.extend(block)
            self._position = position
