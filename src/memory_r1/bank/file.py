"""Opening an SQLite file as a bank, and saying in our words what SQLite says about it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from memory_r1.bank.operation import iso
from memory_r1.bank.schema import APPLICATION_ID, MIGRATIONS
from memory_r1.errors import BankError, BankFileError

BUSY_TIMEOUT_S = 60.0


class File:
    """An open bank file: its transactions and its statements. Not thread-safe: the bank's lock stands before it."""

    def __init__(self, path: str) -> None:
        """Open or create the file, its schema brought up to date; raises BankFileError."""
        self.path = path
        with file_errors(path):
            self._connection = _connect(path)
        self._seen: int | None = None
        self._found: int | None = None

    def close(self) -> None:
        """Release the file; safe to repeat."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and alone: no other connection writes until the block ends."""
        try:
            with file_errors(self.path):
                yield from self._within("BEGIN IMMEDIATE")
        finally:
            self._seen = None  # data_version does not tell of one's own writes

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Every read of the block sees the file as it was at the first; inside a transaction, as that sees it."""
        with file_errors(self.path):
            if self._connection.in_transaction:
                yield
            else:
                yield from self._within("BEGIN")

    def _within(self, begin: str) -> Iterator[None]:
        self._connection.execute(begin)
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def changed(self) -> bool:
        """Whether anybody may have written since `caught_up` was last called."""
        with file_errors(self.path):
            self._found = _pragma(self._connection, "data_version")
        return self._found != self._seen

    def caught_up(self) -> None:
        """Everything that was there when `changed` was last asked is known by now."""
        self._seen = self._found

    def all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """The rows that a statement gives."""
        with file_errors(self.path):
            return self._connection.execute(sql, values).fetchall()

    def each(self, sql: str, *values: object) -> Iterator[sqlite3.Row]:
        """The rows that a statement gives, one by one."""
        with file_errors(self.path):
            yield from self._connection.execute(sql, values)

    def one(self, sql: str, *values: object) -> sqlite3.Row | None:
        """The first row, if there is one."""
        rows = self.all(sql, *values)
        return rows[0] if rows else None

    def number(self, sql: str, *values: object) -> int:
        """The one number that a statement gives."""
        return int(self.all(sql, *values)[0][0])

    def run(self, sql: str, *values: object) -> int:
        """Run one statement, give the number of rows it changed."""
        return self._connection.execute(sql, values).rowcount

    def last_number(self) -> int:
        """The last number given out to an operation or a reset of any scope, 0 where there is none."""
        return self.number(
            "SELECT max(ifnull((SELECT max(seq) FROM operations), 0), ifnull((SELECT max(seq) FROM resets), 0))"
        )

    def note_reset(self, cause: str, at: datetime) -> None:
        """Have every follower of the log read it anew; takes a number, so that none is given out twice."""
        self.run("INSERT INTO resets (seq, cause, at) VALUES (?, ?, ?)", self.last_number() + 1, cause, iso(at))

    def checkpoint(self) -> bool:
        """Move everything from the write-ahead log into the file and empty it; False where a reader is in the way."""
        busy: int = self.all("PRAGMA wal_checkpoint(TRUNCATE)")[0]["busy"]
        return not busy

    def vacuum(self) -> tuple[int, int]:
        """Write the file anew without the room that nothing takes any more; gives its bytes before and after."""
        before = self.bytes()
        self.all("VACUUM")
        self.checkpoint()
        return before, self.bytes()

    def bytes(self) -> int:
        """The size of the file, what waits in the write-ahead log included once."""
        return self.number("PRAGMA page_count") * self.number("PRAGMA page_size")


def _connect(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        _refuse_foreign_file(connection, path)
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA secure_delete = ON")  # or what a deleted scope said stays in freed pages
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
def file_errors(path: str) -> Iterator[None]:
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
