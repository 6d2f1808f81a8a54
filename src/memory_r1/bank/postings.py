"""An inverted index that grows by documents: for every term the rows that hold it and how often.

Only the counts are kept here; which rows count, and the ranking formula, are search.py's.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from memory_r1.bank.column import Column, Floats

Ints = NDArray[np.int32]
Keys = NDArray[np.int64]
"""The number of a term above 32 bits of a row: sorted by them, occurrences are by term, then by row."""

_BATCH = 100_000  # documents taken at once: bounds the memory that indexing a whole bank takes on the way
_RATIO = 4


class Postings:
    """Documents numbered from 0 in the order they are added.

    What is added together is a block of its own until it is merged into the block before it, which happens as soon as
    that one is less than four times as large: so blocks stay few, and adding one document does not touch the rest.
    """

    def __init__(self) -> None:
        self._numbers: defaultdict[str, int] = defaultdict(count().__next__)  # of terms
        self._blocks: list[_Block] = []
        self._lengths = Column(np.float32)

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> Floats:
        """Terms per document, repetitions counted, (N,)."""
        return self._lengths.view

    def extend(self, documents: Iterable[Sequence[str]]) -> None:
        """Add documents, each given as its terms."""
        documents = iter(documents)
        while self._add(islice(documents, _BATCH)):
            pass

    def _add(self, documents: Iterable[Sequence[str]]) -> bool:
        """Add some documents as a block; False if there was none."""
        terms, lengths = array("q"), array("q")
        for document in documents:
            terms.extend(map(self._numbers.__getitem__, document))
            lengths.append(len(document))
        if not lengths:
            return False
        rows = np.repeat(np.arange(len(self), len(self) + len(lengths)), lengths)
        keys, counts = np.unique(np.frombuffer(terms, dtype=np.int64) << 32 | rows, return_counts=True)
        self._lengths.extend(np.array(lengths))
        self._blocks.append(_Block.of(keys, counts.astype(np.float32)))
        while len(self._blocks) > 1 and len(self._blocks[-2].rows) < _RATIO * len(self._blocks[-1].rows):
            self._blocks[-2:] = [_merged(*self._blocks[-2:])]
        return True

    def of(self, term: str, stop: int) -> tuple[Ints, Floats]:
        """The documents before `stop` that hold the term, ascending, and how often each holds it."""
        number = self._numbers.get(term, -1)
        spans = [(block, block.span(number, stop)) for block in self._blocks]
        found = [(block.rows[span], block.counts[span]) for block, span in spans if span.start < span.stop]
        if len(found) == 1:
            return found[0]
        none = (np.empty(0, np.int32), np.empty(0, np.float32))
        rows, counts = zip(none, *found, strict=True)
        return np.concatenate(rows), np.concatenate(counts)


@dataclass(frozen=True)
class _Block:
    """Occurrences by term, then by row; those of the term numbered `numbers[i]` begin at `starts[i]`.

    numbers  (V,) int64, ascending
    starts   (V + 1,) int64
    rows     (N,) int32
    counts   (N,) float32
    """

    numbers: Keys
    starts: Keys
    rows: Ints
    counts: Floats

    @classmethod
    def of(cls, keys: Keys, counts: Floats) -> _Block:
        numbers = keys >> 32
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        return cls(numbers[starts], np.append(starts, len(keys)), keys.astype(np.int32), counts)

    def keys(self) -> Keys:
        return np.repeat(self.numbers, np.diff(self.starts)) << 32 | self.rows

    def span(self, number: int, stop: int) -> slice:
        """Where the term's rows before `stop` are."""
        place = int(self.numbers.searchsorted(number))
        if place == len(self.numbers) or self.numbers[place] != number:
            return slice(0, 0)
        start, end = int(self.starts[place]), int(self.starts[place + 1])
        if self.rows[end - 1] >= stop:
            end = start + int(self.rows[start:end].searchsorted(stop))
        return slice(start, end)


def _merged(one: _Block, other: _Block) -> _Block:
    keys = np.concatenate([one.keys(), other.keys()])
    order = np.argsort(keys, kind="stable")  # two ascending runs: this merges them
    return _Block.of(keys[order], np.concatenate([one.counts, other.counts])[order])
