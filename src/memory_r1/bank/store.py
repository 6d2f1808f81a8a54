"""One scope of a bank's SQLite file: what agents and people need (verify.py and reembed.py have their own SQL).

The operations log is the truth. Beside it, written in the same transaction: the entry versions it opened and closed
(so that the database itself keeps live texts unique), the vectors of those versions, and the turns. Left out: what an
operation means (plan.py) and reading entries (log.py follows the log in memory).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from memory_r1.bank.check import check_text
from memory_r1.bank.column import Floats
from memory_r1.bank.file import File, file_errors
from memory_r1.bank.lines import FIELDS, Lines, operation_of
from memory_r1.bank.operation import LoggedOperation, OperationKind, StoredTurn, iso
from memory_r1.bank.record import KeptTurn
from memory_r1.bank.schema import GUARD_DELETIONS
from memory_r1.errors import BankError, ConflictError

LAST = 2**63 - 1
_BLOCK = 256  # rows fetched at once: with their vectors, about what a processor caches


class FileStore(File):
    """One scope of one file."""

    def __init__(self, path: str, scope: str) -> None:
        """Open or create the file; raises BankFileError, or InputError for a scope that is no text."""
        check_text("scope", scope)
        super().__init__(path)
        self.scope = scope

    def head(self) -> tuple[int, datetime | None]:
        """The last number given out in the whole file, and the time of the scope's last log line; (0, None) if none."""
        row = self.one("SELECT at FROM operations WHERE scope = ? ORDER BY seq DESC LIMIT 1", self.scope)
        return self.last_number(), datetime.fromisoformat(row["at"]) if row else None

    def last_reset(self) -> int:
        """The number of the last event after which the log has to be read anew, 0 where there was none."""
        return self.number("SELECT ifnull(max(seq), 0) FROM resets")

    def lines(self, after: int) -> Iterator[Lines]:
        """The scope's log lines after this number, in order, some hundreds at a time."""
        sql = f"SELECT {', '.join(FIELDS)} FROM operations WHERE scope = ? AND seq > ? ORDER BY seq"
        for block in self._blocks(sql, self.scope, after):
            yield Lines(block)

    def vectors(self, after: int) -> Iterator[tuple[int, Floats]]:
        """The vectors of the entry versions that the scope's log opened after this line; see VectorSource."""
        # By the seq of operations, which its index gives in order: by the seq of vectors, SQLite would sort.
        sql = (
            "SELECT operations.seq, vector FROM operations JOIN vectors USING (seq) "
            "WHERE scope = ? AND operations.seq > ? ORDER BY operations.seq"
        )
        for block in self._blocks(sql, self.scope, after):
            lines, vectors = zip(*block, strict=True)
            yield lines[-1], np.frombuffer(b"".join(vectors), dtype="<f4").reshape(len(vectors), -1)

    def _blocks(self, sql: str, *values: object) -> Iterator[list[tuple[Any, ...]]]:
        """The rows that a statement gives, some hundreds at a time, as plain tuples: they take less time than Rows."""
        with file_errors(self.path):
            cursor = self._connection.cursor()
            cursor.row_factory = None
            cursor.execute(sql, values)
            while block := cursor.fetchmany(_BLOCK):
                yield block

    def vectors_until(self, reset: int, after: int) -> Iterator[tuple[int, Floats]]:
        """`vectors`, for a log that began after this reset; raises BankError when the file was reset since."""
        with self.snapshot():
            refuse_reset(self.path, self.last_reset(), reset)
            yield from self.vectors(after)

    def lines_with_vectors(self) -> Iterator[tuple[LoggedOperation, bytes | None]]:
        """The scope's log one line at a time, with the vector of the version it opens, if any, as it is stored."""
        for row in self.each(
            "SELECT operations.*, vector FROM operations LEFT JOIN vectors USING (seq) WHERE scope = ? ORDER BY seq",
            self.scope,
        ):
            yield _line(row), row["vector"]

    def line_count(self) -> int:
        """How many lines the scope's log has."""
        return self.number("SELECT count(*) FROM operations WHERE scope = ?", self.scope)

    def embedder(self) -> tuple[str, int] | None:
        """Name and dimension of the embedder that made the file's vectors; None while there are none."""
        row = self.one("SELECT name, dimension FROM embedder")
        return (row["name"], row["dimension"]) if row else None

    def set_embedder(self, name: str, dimension: int) -> None:
        """Note who makes the file's vectors; only inside a transaction."""
        self.run("INSERT INTO embedder (name, dimension) VALUES (?, ?)", name, dimension)

    def append(self, lines: Sequence[LoggedOperation], vectors: Mapping[int, Floats]) -> None:
        """Append to the log, with the vectors of the versions it opens by line number; only inside a transaction."""
        for line in lines:
            self._log(line)
            if line.kind in (OperationKind.UPDATE, OperationKind.DELETE):
                self._close_version(line)
            if line.kind in (OperationKind.ADD, OperationKind.UPDATE):
                self._open_version(line, vectors[line.seq])

    def _log(self, line: LoggedOperation) -> None:
        self.run(
            "INSERT INTO operations "
            "(seq, scope, kind, entry_id, version, text, speaker, said_at, turn_ids, decided_by, at, batch, undoes) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            line.seq, self.scope, line.kind, line.entry_id, line.version, line.text, line.speaker,
            _iso(line.said_at), json.dumps(line.turn_ids), line.decided_by, iso(line.at), line.batch, line.undoes,
        )  # fmt: skip

    def _close_version(self, line: LoggedOperation) -> None:
        self.run(
            "UPDATE entries SET valid_to = ?, closed = ? WHERE id = ? AND valid_to IS NULL",
            iso(line.at), line.seq, line.entry_id,
        )  # fmt: skip

    def _open_version(self, line: LoggedOperation, vector: Floats) -> None:
        self.run(
            "INSERT INTO entries (id, version, scope, speaker, text, valid_from, opened) VALUES (?, ?, ?, ?, ?, ?, ?)",
            line.entry_id, line.version, self.scope, line.speaker, line.text, iso(line.at), line.seq,
        )  # fmt: skip
        self.run("INSERT INTO vectors (seq, vector) VALUES (?, ?)", line.seq, vector.astype("<f4").tobytes())

    def add_turns(self, turns: Iterable[StoredTurn]) -> list[StoredTurn]:
        """Store turns as pending, give those that are new; only inside a transaction.

        Raises:
            BankError: a known id comes with another content.
        """
        return [turn for turn in turns if self._add_turn(turn)]

    def _add_turn(self, turn: StoredTurn) -> bool:
        known = self.turn(turn.id)
        if known is not None:
            refuse_other_content(known, turn)
            return False
        self.run(
            "INSERT INTO turns (scope, id, dialogue_id, speaker, text, at) VALUES (?, ?, ?, ?, ?, ?)",
            self.scope, turn.id, turn.dialogue_id, turn.speaker, turn.text, _iso(turn.at),
        )  # fmt: skip
        return True

    def keep_turns(self, turns: Iterable[KeptTurn]) -> None:
        """Store new turns, pending or done as they say; only inside a transaction."""
        for kept in turns:
            self._add_turn(kept.turn)
            if kept.done_at is not None:
                self.finish_turns([kept.turn.id], kept.done_at)

    def kept_turns(self) -> Iterator[KeptTurn]:
        """The scope's turns, one at a time, in the order they were stored."""
        for row in self.each("SELECT * FROM turns WHERE scope = ? ORDER BY number", self.scope):
            yield KeptTurn(_turn(row), _time(row["done_at"]))

    def turn(self, turn_id: str, upto: int = LAST) -> StoredTurn | None:
        """The turn of this id in the scope, unless it is numbered higher than `upto`."""
        row = self.one("SELECT * FROM turns WHERE scope = ? AND id = ? AND number <= ?", self.scope, turn_id, upto)
        return _turn(row) if row else None

    def last_turn(self) -> int:
        """The number of the turn stored last in the file, 0 where there is none."""
        return self.number("SELECT ifnull(max(number), 0) FROM turns")

    def pending_turns(self) -> list[StoredTurn]:
        """The turns not yet done, in the order they were stored."""
        rows = self.all("SELECT * FROM turns WHERE scope = ? AND done_at IS NULL ORDER BY number", self.scope)
        return [_turn(row) for row in rows]

    def finish_turns(self, turn_ids: Sequence[str], at: datetime) -> None:
        """Mark turns as done; only inside a transaction.

        Raises:
            BankError: no such turn. ConflictError: it was done before.
        """
        for turn_id in turn_ids:
            changed = self.run(
                "UPDATE turns SET done_at = ? WHERE scope = ? AND id = ? AND done_at IS NULL",
                iso(at), self.scope, turn_id,
            )  # fmt: skip
            if not changed:
                refuse_to_finish(turn_id, known=self.turn(turn_id) is not None)

    def turn_count(self, upto: int = LAST) -> int:
        """How many turns the scope holds, pending or done, those numbered higher than `upto` left out."""
        return self.number("SELECT count(*) FROM turns WHERE scope = ? AND number <= ?", self.scope, upto)

    def delete_scope(self, at: datetime) -> bool:
        """Take everything of the scope out of the file, overwritten with zeros; False if a reader keeps old pages."""
        self.all("PRAGMA foreign_keys = OFF")  # or every deleted line would be looked for in all of `entries`
        try:
            with self.transaction():
                self.note_reset("scope deleted", at)
                self._delete_lines()
                self.run("DELETE FROM turns WHERE scope = ?", self.scope)
        finally:
            self.all("PRAGMA foreign_keys = ON")
        return self.checkpoint()

    def _delete_lines(self) -> None:
        lines = "(SELECT seq FROM operations WHERE scope = ?)"
        self.run(f"DELETE FROM vectors WHERE seq IN {lines}", self.scope)
        self.run(f"DELETE FROM next_vectors WHERE seq IN {lines}", self.scope)
        self.run("DELETE FROM entries WHERE scope = ?", self.scope)
        self.run("DROP TRIGGER operations_are_never_deleted")
        self.run("DELETE FROM operations WHERE scope = ?", self.scope)
        self.run(GUARD_DELETIONS)

    def scopes(self) -> list[str]:
        """Every scope of the file that holds a turn or an operation, by name."""
        return [row["scope"] for row in self.all("SELECT scope FROM operations UNION SELECT scope FROM turns")]


def refuse_other_content(known: StoredTurn, turn: StoredTurn) -> None:
    """Raise BankError unless the two are equal."""
    if known != turn:
        raise BankError(
            f"turn {turn.id!r} is stored with another content ({known.text!r:.60}, got {turn.text!r:.60}): "
            "give each turn of a scope its own id"
        )


def refuse_reset(path: str, last: int, seen: int) -> None:
    """Raise BankError if the file was reset after the one that a fork has seen."""
    if last != seen:
        raise BankError(f"{path}: was re-embedded, or a scope of it deleted, after this fork was made: fork again")


def refuse_to_finish(turn_id: str, known: bool) -> None:
    """Raise because a turn cannot be marked as done."""
    if known:
        raise ConflictError(f"turn {turn_id!r} is done already, expected a pending one: read the pending turns again")
    raise BankError(
        f"turn {turn_id!r} is not stored in this scope, expected a pending one: add it with add_turns first"
    )


def _line(row: sqlite3.Row) -> LoggedOperation:
    return operation_of([row[name] for name in FIELDS])


def _turn(row: sqlite3.Row) -> StoredTurn:
    return StoredTurn(row["id"], row["speaker"], row["text"], _time(row["at"]), row["dialogue_id"])


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def _time(iso: str | None) -> datetime | None:
    return datetime.fromisoformat(iso) if iso else None
