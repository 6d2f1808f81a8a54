"""An inverted index that grows by documents: for every term the rows that hold it and how often.

Only the counts are kept here; which rows count, and the ranking formula, are search.py's.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memory_r1.bank.column import Column, Floats

Ints = NDArray[np.int32]

_NOTHING = np.empty(0, np.int32), np.empty(0, np.float32)


class Postings:
    """Documents numbered from 0 in the order they are added."""

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}
        self._counts: dict[str, array[float]] = {}
        self._lengths = Column(np.float32)

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> Floats:
        """Terms per document, repetitions counted, (N,)."""
        return self._lengths.view

    def extend(self, documents: Sequence[Sequence[str]]) -> None:
        """Add documents, each given as its terms."""
        for row, terms in enumerate(documents, start=len(self)):
            for term, count in Counter(terms).items():
                self._rows.setdefault(term, array("i")).append(row)
                self._counts.setdefault(term, array("f")).append(count)
        self._lengths.extend(np.array([len(terms) for terms in documents], dtype=np.float32))

    def of(self, term: str, stop: int) -> tuple[Ints, Floats]:
        """The documents before `stop` that hold the term, ascending, and how often each holds it."""
        if term not in self._rows:
            return _NOTHING
        # Copies: an array that lends its buffer to numpy could not grow any more.
        rows = np.array(self._rows[term], dtype=np.int32)
        counts = np.array(self._counts[term], dtype=np.float32)
        end = int(np.searchsorted(rows, stop))
        return rows[:end], counts[:end]
