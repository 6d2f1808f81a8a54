"""Whether a bank file keeps every promise: what is broken, named; an empty list means that nothing is.

The operations log is the truth: its lines are replayed one by one against the rules, and everything else in the file
is compared with what follows from them. Nothing is mended here. Left out: damage that SQLite cannot open at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain

import numpy as np

from memory_r1.bank.check import UNIT_SLACK
from memory_r1.bank.file import File
from memory_r1.bank.operation import iso
from memory_r1.bank.record import line_of, turn_of
from memory_r1.bank.replay import Replay
from memory_r1.bank.schema import MIGRATIONS


def verify(file: File) -> list[str]:
    """Every broken invariant of the file, in all its scopes, from one snapshot; the cost grows with the file.

    Raises:
        BankFileError: SQLite cannot read the file.
    """
    with file.snapshot():
        return [*_sqlite(file), *_operations(file), *_vectors(file), *_turns(file)]


def _sqlite(file: File) -> Iterator[str]:
    for (message,) in file.all("PRAGMA integrity_check"):
        if message != "ok":
            yield f"SQLite: {message}"
    for table, row, parent, _ in file.all("PRAGMA foreign_key_check"):
        yield f"{table} row {row}: what it refers to in {parent} is not there"
    found, expected = _schema(file.all(_SCHEMA)), _schema(_fresh_schema())
    for kind, name in sorted(expected.keys() | found.keys()):
        if found.get((kind, name)) != expected.get((kind, name)):
            yield f"the {kind} {name} is not as the bank's schema has it: what it guards is not sure"


_SCHEMA = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"


def _schema(rows: Iterable[sqlite3.Row | tuple[str, str, str]]) -> dict[tuple[str, str], str]:
    return {(kind, name): sql for kind, name, sql in rows}


def _fresh_schema() -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as fresh:
        for statement in chain.from_iterable(MIGRATIONS):
            fresh.execute(statement)
        return fresh.execute(_SCHEMA).fetchall()


def _operations(file: File) -> Iterator[str]:
    """The log against its rules, and the table of entry versions against the log."""
    replays: dict[str, Replay] = {}
    for row in file.each("SELECT * FROM operations ORDER BY seq"):
        wrong = _taken(replays.setdefault(row["scope"], Replay()), row)
        if wrong:
            yield f"operation {row['seq']}: {wrong}"
    expected = {version for scope, replay in replays.items() for version in _versions(scope, replay)}
    columns = "id, version, scope, speaker, text, valid_from, valid_to, opened, closed"
    stored = {tuple(row) for row in file.each(f"SELECT {columns} FROM entries")}
    for row in file.each("SELECT seq FROM operations JOIN resets USING (seq)"):
        yield f"operation {row['seq']}: a reset has the same number"
    for id_, version, *_ in sorted(expected - stored, key=repr):
        yield f"entry {id_} version {version}: not stored as the log tells it"
    for id_, version, *_ in sorted(stored - expected, key=repr):
        yield f"entry {id_} version {version}: the log does not tell of it so"


def _taken(replay: Replay, row: sqlite3.Row) -> str | None:
    try:
        record = {key: row[key] for key in row.keys() if key != "scope"}  # noqa: SIM118 - a Row iterates its values
        return replay.take(line_of({**record, "turn_ids": json.loads(record["turn_ids"])}))
    except (TypeError, ValueError) as error:
        return str(error)


def _versions(scope: str, replay: Replay) -> Iterator[tuple[object, ...]]:
    for versions in replay.versions.values():
        for version in versions:
            line, closed = version.opened, version.closed
            until = (iso(closed.at), closed.seq) if closed else (None, None)
            what = (line.entry_id, line.version, scope, line.speaker, line.text)
            yield (*what, iso(line.at), until[0], line.seq, until[1])


def _vectors(file: File) -> Iterator[str]:
    """One vector of the embedder's dimension and of length 1 for every version ever opened, and no other."""
    opened = {row["seq"] for row in file.each("SELECT seq FROM operations WHERE kind IN ('ADD', 'UPDATE')")}
    maker = file.one("SELECT name, dimension FROM embedder")
    if maker is None and opened:
        yield "embedder: nobody is named who made the vectors"
        return
    for row in file.each("SELECT seq, vector FROM vectors ORDER BY seq"):
        if row["seq"] not in opened:
            yield f"vector {row['seq']}: no ADD or UPDATE has this number"
        elif wrong := _wrong_vector(row["vector"], maker["dimension"] if maker else 0):
            yield f"vector {row['seq']}: {wrong}"
        opened.discard(row["seq"])
    for seq in sorted(opened):
        yield f"vector {seq}: missing"


def _wrong_vector(blob: object, dimension: int) -> str | None:
    if not isinstance(blob, bytes) or len(blob) != 4 * dimension:
        size = len(blob) if isinstance(blob, bytes) else "no"
        return f"has {size} bytes, expected {4 * dimension} for {dimension} numbers"
    length = float(np.linalg.norm(np.frombuffer(blob, dtype="<f4")))
    return None if abs(length - 1) < UNIT_SLACK else f"has length {length:.4g}, expected 1"


def _turns(file: File) -> Iterator[str]:
    for row in file.each("SELECT * FROM turns ORDER BY number"):
        try:
            turn_of({key: row[key] for key in row.keys() if key not in ("scope", "number")})  # noqa: SIM118
        except ValueError as error:
            yield f"turn {row['id']!r} of scope {row['scope']!r}: {error}"
