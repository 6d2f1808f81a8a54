"""For every key the rows that have it, for keys that nearly always have one: such a key costs no list."""

from __future__ import annotations

from collections.abc import Hashable, Iterator


class Chains:
    """Grows by rows in ascending order."""

    def __init__(self) -> None:
        self._last: dict[Hashable, int] = {}
        self._before: dict[int, int] = {}

    def add(self, key: Hashable, row: int) -> None:
        """Note that a row has the key."""
        before = self._last.get(key)
        if before is not None:
            self._before[row] = before
        self._last[key] = row

    def newest_first(self, key: Hashable, stop: int) -> Iterator[int]:
        """The rows before `stop` that have the key, descending."""
        row = self._last.get(key)
        while row is not None:
            if row < stop:
                yield row
            row = self._before.get(row)
