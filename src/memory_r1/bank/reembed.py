"""Making the vectors of a bank file anew with another embedder, in all scopes at once, while the bank is in use.

The new vectors gather in tables beside the old ones, a chunk to a transaction; the last transaction puts them in the
place of the old ones and has everybody who follows the log read it anew. Until then all others read and write with
the old embedder; from then on a bank that was opened with it refuses, and the new one is taken. Stopped at any point,
even killed, the work goes on where it was when `reembed` is called again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path

from memory_r1.bank.check import EmbedderId, embedded, id_of
from memory_r1.bank.column import Floats
from memory_r1.bank.embed import Embedder
from memory_r1.bank.file import File
from memory_r1.bank.search import searchable
from memory_r1.bank.store import LAST
from memory_r1.errors import BankError, InputError

CHUNK = 256
ROUNDS = 8  # so often what others wrote meanwhile is embedded before they are made to wait
LAST_FEW = 64  # for at most so many texts

_OPENS = "kind IN ('ADD', 'UPDATE')"

Progress = Callable[[int, int], None]  # (versions with a new vector, versions in all)


@dataclass(frozen=True)
class Reembedded:
    """What `reembed` did.

    before     the embedder that had made the vectors; None where there were none
    after      the one that has made them now
    embedded   versions embedded by this call
    resumed    versions taken over from a call that was stopped
    was_due    False when the vectors were this embedder's already and there was nothing to do
    """

    before: str | None
    after: str
    embedded: int = 0
    resumed: int = 0
    was_due: bool = True


def reembed(
    path: str | Path, embedder: Embedder, progress: Progress | None = None, *, chunk: int = CHUNK
) -> Reembedded:
    """Have another embedder make the vectors of every version in a bank file.

    What was half done for a third embedder is thrown away; called with the embedder that the bank has, it does only
    that. The room of the old vectors is used again, or given back by `Bank.vacuum`.

    Args:
        chunk: texts embedded and committed at a time; being stopped costs as many at most.

    Raises:
        InputError: there is no such file, or chunk is below 1.
        BankFileError: not a bank, or not writable.
        BankError: another call took over with another embedder, or the embedder gave vectors of a wrong shape.
        PolicyError: the embedder's model could not be loaded or reached; what was done so far stays done.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such bank, expected the file of one: nothing to re-embed")
    if chunk < 1:
        raise InputError(f"chunk is {chunk}, expected at least 1")
    embedded(embedder, ["trial"])  # a model that does not work costs nobody what was half done for another
    with closing(File(str(path))) as file:
        return _Work(file, embedder, progress, chunk).run()


class _Work:
    """One call. Every transaction looks first whether the work is still to be done: others may call as well."""

    def __init__(self, file: File, embedder: Embedder, progress: Progress | None, chunk: int) -> None:
        self._file, self._embedder, self._progress, self._chunk = file, embedder, progress, chunk
        self._maker = id_of(embedder)
        self._embedded = 0  # by this call, and committed

    def run(self) -> Reembedded:
        before, resumed = self._begin()
        name = before[0] if before else None
        if before == self._maker:
            return Reembedded(name, self._embedder.name, was_due=False)
        for allowed in chain(repeat(0, ROUNDS), repeat(LAST_FEW)):
            self._catch_up()
            if self._swap(allowed):
                break
        self._file.checkpoint()
        return Reembedded(name, self._embedder.name, self._embedded, resumed)

    def _begin(self) -> tuple[EmbedderId | None, int]:
        """Note who makes the next vectors; gives who made the present ones, and how many next ones there are."""
        with self._file.transaction():
            before, upcoming = self._noted("embedder"), self._noted("next_embedder")
            if upcoming is not None and (upcoming != self._maker or before == self._maker):
                self._clear("next_vectors", "next_embedder")
            if before != self._maker and upcoming != self._maker:
                self._note("next_embedder")
            return before, self._file.number("SELECT count(*) FROM next_vectors")

    def _catch_up(self) -> None:
        """Give every version opened so far a next vector, a chunk at a time; nobody waits for the model."""
        head = self._file.one(f"SELECT count(*), ifnull(max(seq), 0) FROM operations WHERE {_OPENS}")
        assert head is not None
        total, last, after = *head, 0
        done = self._file.number("SELECT count(*) FROM next_vectors")
        while rows := self._missing(after, last, self._chunk):
            vectors = self._vectors_of(rows)
            with self._file.transaction():
                if not self._is_due():
                    return
                kept = self._keep(rows, vectors)
            self._embedded, done, after = self._embedded + kept, done + kept, rows[-1]["seq"]
            if self._progress:
                self._progress(done, max(done, total))

    def _swap(self, allowed: int) -> bool:
        """Put the next vectors in the place of the present ones; False if more than `allowed` are missing.

        Those few are embedded while all writers wait: somebody who writes without a pause would else never be caught
        up with.
        """
        with self._file.transaction():
            if not self._is_due():
                return True
            rows = self._missing(0, LAST, allowed + 1)
            if len(rows) > allowed:
                return False
            kept = self._keep(rows, self._vectors_of(rows)) if rows else 0
            self._clear("vectors", "embedder")
            self._file.run("INSERT INTO vectors SELECT seq, vector FROM next_vectors JOIN operations USING (seq)")
            self._note("embedder")
            self._clear("next_vectors", "next_embedder")
            self._file.note_reset("re-embedded", datetime.now(UTC))
        self._embedded += kept
        return True

    def _is_due(self) -> bool:
        """Whether the work is still to be done: another call may have finished it; BankError if one has dropped it."""
        if self._noted("next_embedder") == self._maker:
            return True
        if self._noted("embedder") == self._maker:
            return False
        raise BankError(
            f"{self._file.path}: somebody began to re-embed it with another embedder, and so ended this call for "
            f"{self._maker}: settle on one embedder and call again"
        )

    def _missing(self, after: int, last: int, limit: int) -> list[sqlite3.Row]:
        """The first lines after `after`, up to `last`, that opened a version which has no next vector."""
        return self._file.all(
            "SELECT seq, text, speaker FROM operations LEFT JOIN next_vectors USING (seq) "
            f"WHERE seq > ? AND seq <= ? AND vector IS NULL AND {_OPENS} ORDER BY seq LIMIT ?",
            after, last, limit,
        )  # fmt: skip

    def _vectors_of(self, rows: Sequence[sqlite3.Row]) -> Floats:
        return embedded(self._embedder, [searchable(row["text"], row["speaker"]) for row in rows])

    def _keep(self, rows: Sequence[sqlite3.Row], vectors: Floats) -> int:
        """Store next vectors, but for scopes that were deleted meanwhile; gives how many."""
        return sum(
            self._file.run(
                "INSERT OR IGNORE INTO next_vectors SELECT seq, ? FROM operations WHERE seq = ?",
                vector.astype("<f4").tobytes(), row["seq"],
            )
            for row, vector in zip(rows, vectors, strict=True)
        )  # fmt: skip

    def _noted(self, table: str) -> EmbedderId | None:
        row = self._file.one(f"SELECT name, dimension FROM {table}")
        return (row["name"], row["dimension"]) if row else None

    def _note(self, table: str) -> None:
        self._file.run(f"INSERT INTO {table} (name, dimension) VALUES (?, ?)", *self._maker)

    def _clear(self, *tables: str) -> None:
        for table in tables:
            self._file.run(f"DELETE FROM {table}")
