"""A numpy array that grows at its end, and the names of the array types used around it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]
Rows = NDArray[np.int64]


class Column:
    """Numbers, or vectors of one width; capacity doubles, so an append costs amortised constant time.

    A view taken earlier stays valid: growing allocates a new buffer and leaves the old one to its readers.
    """

    def __init__(self, dtype: DTypeLike, width: int | None = None) -> None:
        """`width` None gives a column of numbers (N,); a number gives a matrix (N, width)."""
        self._buffer: NDArray[Any] = np.empty((0,) if width is None else (0, width), dtype=dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def view(self) -> NDArray[Any]:
        """Everything appended so far, (N,) or (N, width), without a copy."""
        return self._buffer[: self._length]

    def extend(self, values: NDArray[Any]) -> None:
        """Append a block, (M,) or (M, width)."""
        length = self._length + len(values)
        self.reserve(length)
        self._buffer[self._length : length] = values
        self._length = length

    def reserve(self, length: int) -> None:
        """Make room for this many in all, if need be for twice as many: what stays empty takes addresses, no memory."""
        if length <= len(self._buffer):
            return
        grown = np.empty((max(2 * length, 16), *self._buffer.shape[1:]), self._buffer.dtype)
        grown[: self._length] = self.view
        self._buffer = grown
