"""Where a fork keeps what it writes: in memory, over a bank file that it reads and never writes.

Entries of the parent reach a fork through its log (log.py); here are the fork's own lines and vectors, and its turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import numpy as np

from memory_r1.bank.column import Floats
from memory_r1.bank.lines import Lines
from memory_r1.bank.operation import LoggedOperation, StoredTurn
from memory_r1.bank.store import FileStore, refuse_other_content, refuse_reset, refuse_to_finish


class BranchStore:
    """Starts from what the store it left holds; neither sees what the other writes later.

    Costs the turns that are pending or its own; the file's other turns are read there, up to the last one that it
    held when the first branch was made.
    """

    def __init__(
        self,
        file: FileStore,
        reset: int,
        last_turn: int,
        head: tuple[int, datetime | None],
        embedder: tuple[str, int] | None,
        pending: Mapping[str, StoredTurn],
        own_turns: Mapping[str, StoredTurn],
    ) -> None:
        self._file, self._reset, self._last_turn = file, reset, last_turn
        self._head, self._embedder = head, embedder
        self._pending, self._own_turns = dict(pending), dict(own_turns)
        self._lines: list[LoggedOperation] = []
        self._vectors: dict[int, Floats] = {}

    @classmethod
    def of(cls, store: FileStore | BranchStore) -> BranchStore:
        """Branch off a file or another branch."""
        if isinstance(store, BranchStore):
            below = (store._file, store._reset, store._last_turn)
            return cls(*below, store._head, store._embedder, store._pending, store._own_turns)
        pending = {turn.id: turn for turn in store.pending_turns()}
        return cls(store, store.last_reset(), store.last_turn(), store.head(), store.embedder(), pending, {})

    def close(self) -> None:
        """Nothing to release: the file belongs to the bank that was forked."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Nothing to guard: a write below refuses before it changes anything."""
        yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Nobody else writes here."""
        yield

    def changed(self) -> bool:
        """Lines may have come; to look costs no more than to know."""
        return True

    def caught_up(self) -> None:
        """Nothing to remember."""

    def last_reset(self) -> int:
        """The file's last reset when the first branch was made: a branch keeps what it left with."""
        return self._reset

    def head(self) -> tuple[int, datetime | None]:
        """Number and time of the last log line."""
        return self._head

    def lines(self, after: int) -> Iterator[Lines]:
        """The branch's own log lines after this number, in order."""
        if self._lines and after < self._lines[-1].seq:
            yield Lines.of(line for line in self._lines if line.seq > after)

    def vectors(self, after: int) -> Iterator[tuple[int, Floats]]:
        """The vectors of the entry versions that the branch's own lines opened after this one; see VectorSource."""
        new = [(seq, vector) for seq, vector in self._vectors.items() if seq > after]
        if new:
            yield new[-1][0], np.stack([vector for _, vector in new])

    def embedder(self) -> tuple[str, int] | None:
        """Name and dimension of the embedder that made the vectors; None while there are none."""
        return self._embedder

    def set_embedder(self, name: str, dimension: int) -> None:
        """Note who makes the vectors."""
        self._embedder = (name, dimension)

    def append(self, lines: Sequence[LoggedOperation], vectors: Mapping[int, Floats]) -> None:
        """Append to the log, with the vectors of the versions it opens by line number."""
        self._lines.extend(lines)
        self._vectors.update(vectors)
        if lines:
            self._head = (lines[-1].seq, lines[-1].at)

    def add_turns(self, turns: Iterable[StoredTurn]) -> list[StoredTurn]:
        """Store turns as pending, give those that are new; raises BankError as a file does."""
        new: dict[str, StoredTurn] = {}
        for turn in turns:
            known = new.get(turn.id) or self.turn(turn.id)
            if known is None:
                new[turn.id] = turn
            else:
                refuse_other_content(known, turn)
        self._own_turns.update(new)
        self._pending.update(new)
        return list(new.values())

    def turn(self, turn_id: str) -> StoredTurn | None:
        """The turn of this id in the scope."""
        return self._own_turns.get(turn_id) or self._below().turn(turn_id, upto=self._last_turn)

    def pending_turns(self) -> list[StoredTurn]:
        """The turns not yet done, in the order they were stored."""
        return list(self._pending.values())

    def finish_turns(self, turn_ids: Sequence[str], at: datetime) -> None:
        """Mark turns as done; raises BankError or ConflictError as a file does."""
        for turn_id in turn_ids:
            if turn_id not in self._pending:
                refuse_to_finish(turn_id, known=self.turn(turn_id) is not None)
        for turn_id in turn_ids:
            del self._pending[turn_id]

    def turn_count(self) -> int:
        """How many turns the scope holds, pending or done."""
        return self._below().turn_count(upto=self._last_turn) + len(self._own_turns)

    def _below(self) -> FileStore:
        """The file, as long as it holds what the branch left; raises BankError."""
        refuse_reset(self._file.path, self._file.last_reset(), self._reset)
        return self._file

    def scopes(self) -> list[str]:
        """Every scope of the file below."""
        return self._file.scopes()

    def bytes(self) -> int:
        """A branch takes no room on disk."""
        return 0
