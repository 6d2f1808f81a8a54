"""The bank's SQLite file: schema, transactions and every SQL statement there is.

The operations log is the truth. Beside it, written in the same transaction: the entry versions it opened and closed
(so that the database itself keeps live texts unique), the vectors of those versions, and the turns. Left out: what an
operation means (plan.py) and reading entries (log.py follows the log in memory).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np

from memory_r1.bank.column import Floats
from memory_r1.bank.operation import LoggedOperation, OperationKind, StoredTurn
from memory_r1.bank.schema import APPLICATION_ID, MIGRATIONS
from memory_r1.errors import BankError, BankFileError, ConflictError

BUSY_TIMEOUT_S = 60.0
LAST = 2**63 - 1


class FileStore:
    """One scope of one file. Not thread-safe: the bank's lock stands before it."""

    def __init__(self, path: str, scope: str) -> None:
        """Open or create the file; raises BankFileError."""
        self.path, self.scope = path, scope
        with _file_errors(path):
            self._connection = _connect(path)

    def close(self) -> None:
        """Release the file; safe to repeat."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and alone: no other connection writes until the block ends."""
        with _file_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def head(self) -> tuple[int, datetime | None]:
        """Number and time of the last log line of the whole file; (0, None) where there is none."""
        row = self._one("SELECT seq, at FROM operations ORDER BY seq DESC LIMIT 1")
        return (row["seq"], datetime.fromisoformat(row["at"])) if row else (0, None)

    def lines(self, after: int) -> list[LoggedOperation]:
        """The scope's log lines after this number, in order."""
        rows = self._all("SELECT * FROM operations WHERE scope = ? AND seq > ? ORDER BY seq", self.scope, after)
        return [_line(row) for row in rows]

    def vectors(self, after: int) -> list[tuple[int, Floats]]:
        """Line number and vector of every entry version the scope's log opened after this line, in order."""
        rows = self._all(
            "SELECT seq, vector FROM vectors JOIN operations USING (seq) WHERE scope = ? AND seq > ? ORDER BY seq",
            self.scope, after,
        )  # fmt: skip
        return [(row["seq"], np.frombuffer(row["vector"], dtype="<f4")) for row in rows]

    def embedder(self) -> tuple[str, int] | None:
        """Name and dimension of the embedder that made the file's vectors; None while there are none."""
        row = self._one("SELECT name, dimension FROM embedder")
        return (row["name"], row["dimension"]) if row else None

    def set_embedder(self, name: str, dimension: int) -> None:
        """Note who makes the file's vectors; only inside a transaction."""
        self._run("INSERT INTO embedder (name, dimension) VALUES (?, ?)", name, dimension)

    def append(self, lines: Sequence[LoggedOperation], vectors: Mapping[int, Floats]) -> None:
        """Append to the log, with the vectors of the versions it opens by line number; only inside a transaction."""
        for line in lines:
            self._log(line)
            if line.kind in (OperationKind.UPDATE, OperationKind.DELETE):
                self._close_version(line)
            if line.kind in (OperationKind.ADD, OperationKind.UPDATE):
                self._open_version(line, vectors[line.seq])

    def _log(self, line: LoggedOperation) -> None:
        self._run(
            "INSERT INTO operations "
            "(seq, scope, kind, entry_id, version, text, speaker, said_at, turn_ids, decided_by, at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            line.seq, self.scope, line.kind, line.entry_id, line.version, line.text, line.speaker,
            _iso(line.said_at), json.dumps(line.turn_ids), line.decided_by, _utc(line.at),
        )  # fmt: skip

    def _close_version(self, line: LoggedOperation) -> None:
        self._run(
            "UPDATE entries SET valid_to = ?, closed = ? WHERE id = ? AND valid_to IS NULL",
            _utc(line.at), line.seq, line.entry_id,
        )  # fmt: skip

    def _open_version(self, line: LoggedOperation, vector: Floats) -> None:
        self._run(
            "INSERT INTO entries (id, version, scope, speaker, text, valid_from, opened) VALUES (?, ?, ?, ?, ?, ?, ?)",
            line.entry_id, line.version, self.scope, line.speaker, line.text, _utc(line.at), line.seq,
        )  # fmt: skip
        self._run("INSERT INTO vectors (seq, vector) VALUES (?, ?)", line.seq, vector.astype("<f4").tobytes())

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
        self._run(
            "INSERT INTO turns (scope, id, dialogue_id, speaker, text, at) VALUES (?, ?, ?, ?, ?, ?)",
            self.scope, turn.id, turn.dialogue_id, turn.speaker, turn.text, _iso(turn.at),
        )  # fmt: skip
        return True

    def turn(self, turn_id: str, upto: int = LAST) -> StoredTurn | None:
        """The turn of this id in the scope, unless it is numbered higher than `upto`."""
        row = self._one("SELECT * FROM turns WHERE scope = ? AND id = ? AND number <= ?", self.scope, turn_id, upto)
        return _turn(row) if row else None

    def last_turn(self) -> int:
        """The number of the turn stored last in the file, 0 where there is none."""
        return int(self._all("SELECT ifnull(max(number), 0) FROM turns")[0][0])

    def pending_turns(self) -> list[StoredTurn]:
        """The turns not yet done, in the order they were stored."""
        rows = self._all("SELECT * FROM turns WHERE scope = ? AND done_at IS NULL ORDER BY number", self.scope)
        return [_turn(row) for row in rows]

    def finish_turns(self, turn_ids: Sequence[str], at: datetime) -> None:
        """Mark turns as done; only inside a transaction.

        Raises:
            BankError: no such turn. ConflictError: it was done before.
        """
        for turn_id in turn_ids:
            changed = self._run(
                "UPDATE turns SET done_at = ? WHERE scope = ? AND id = ? AND done_at IS NULL",
                _utc(at), self.scope, turn_id,
            )  # fmt: skip
            if not changed:
                refuse_to_finish(turn_id, known=self.turn(turn_id) is not None)

    def turn_count(self, upto: int = LAST) -> int:
        """How many turns the scope holds, pending or done, those numbered higher than `upto` left out."""
        return int(self._all("SELECT count(*) FROM turns WHERE scope = ? AND number <= ?", self.scope, upto)[0][0])

    def scopes(self) -> list[str]:
        """Every scope of the file that holds a turn or an operation, by name."""
        return [row["scope"] for row in self._all("SELECT scope FROM operations UNION SELECT scope FROM turns")]

    def bytes(self) -> int:
        """The size of the file, what waits in the write-ahead log included once."""
        pages, size = self._all("PRAGMA page_count")[0][0], self._all("PRAGMA page_size")[0][0]
        return int(pages * size)

    def _all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        with _file_errors(self.path):
            return self._connection.execute(sql, values).fetchall()

    def _one(self, sql: str, *values: object) -> sqlite3.Row | None:
        rows = self._all(sql, *values)
        return rows[0] if rows else None

    def _run(self, sql: str, *values: object) -> int:
        """Run one statement, give the number of rows it changed."""
        return self._connection.execute(sql, values).rowcount


def refuse_other_content(known: StoredTurn, turn: StoredTurn) -> None:
    """Raise BankError unless the two are equal."""
    if known != turn:
        raise BankError(
            f"turn {turn.id!r} is stored with another content ({known.text!r:.60}, got {turn.text!r:.60}): "
            "give each turn of a scope its own id"
        )


def refuse_to_finish(turn_id: str, known: bool) -> None:
    """Raise because a turn cannot be marked as done."""
    if known:
        raise ConflictError(f"turn {turn_id!r} is done already, expected a pending one: read the pending turns again")
    raise BankError(
        f"turn {turn_id!r} is not stored in this scope, expected a pending one: add it with add_turns first"
    )


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        _refuse_foreign_file(connection, path)
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_foreign_file(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN")  # one snapshot for the three: another process may be creating the file right now
    application, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    connection.execute("COMMIT")
    if application != APPLICATION_ID and (application or version or tables):
        raise BankFileError(f"{path}: an SQLite file of another program, expected a bank: choose another path")
    if version > len(MIGRATIONS):
        raise BankFileError(
            f"{path}: has bank schema {version}, this memory-r1 knows {len(MIGRATIONS)} at most: install a newer one"
        )


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Readers do not wait for writers then. SQLite refuses the switch at once, without its busy timeout, while another
    process opens the same new file, so the waiting is done here."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date; whoever comes second finds it done."""
    if _pragma(connection, "user_version") == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    for number, migration in enumerate(MIGRATIONS, start=1):
        if number > _pragma(connection, "user_version"):
            for statement in migration:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("COMMIT")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def _file_errors(path: str) -> Iterator[None]:
    """Say in our words what SQLite says about the file."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise  # a constraint that our own code broke: a bug, not the file's fault
    except sqlite3.ProgrammingError as error:
        if "closed" not in str(error):
            raise
        raise BankError(f"{path}: the bank is closed ({error}): open it again") from error
    except sqlite3.DatabaseError as error:
        raise BankFileError(f"{path}: cannot be used as a bank, SQLite says: {error}{_remedy(path, error)}") from error


def _remedy(path: str, error: sqlite3.DatabaseError) -> str:
    if Path(path).is_dir():
        return "; it is a folder: name a file in it"
    if not Path(path).parent.is_dir():
        return f"; there is no folder {Path(path).parent}: create it first"
    if "locked" in str(error):
        return f" for {BUSY_TIMEOUT_S:.0f} s: end the process that holds it"
    return ": check that it is a bank, that you may write it and its folder, and that the disk has room"


def _line(row: sqlite3.Row) -> LoggedOperation:
    return LoggedOperation(
        seq=row["seq"],
        kind=OperationKind(row["kind"]),
        at=datetime.fromisoformat(row["at"]),
        decided_by=row["decided_by"],
        entry_id=row["entry_id"],
        version=row["version"],
        text=row["text"],
        speaker=row["speaker"],
        said_at=_time(row["said_at"]),
        turn_ids=tuple(json.loads(row["turn_ids"])),
    )


def _turn(row: sqlite3.Row) -> StoredTurn:
    return StoredTurn(row["id"], row["speaker"], row["text"], _time(row["at"]), row["dialogue_id"])


def _utc(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def _time(iso: str | None) -> datetime | None:
    return datetime.fromisoformat(iso) if iso else None
