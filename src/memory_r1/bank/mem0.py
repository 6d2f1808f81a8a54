"""What a mem0 store holds, read without mem0, and told as lines of an operations log.

mem0 keeps live texts in a folder of embedded Qdrant (collection/<name>/storage.sqlite, every point a pickle) and what
was changed in a history table (history.db). The two can disagree, since mem0 writes them one after the other: for what
is believed now, the folder is right. Checked against what mem0ai 2.2.1 and 1.0.11 write. Left out: mem0's vectors, its
entity collection, free metadata, and Qdrant servers.
"""

from __future__ import annotations

import io
import pickle
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from memory_r1.bank.operation import LoggedOperation, OperationKind
from memory_r1.errors import InputError

DECIDED_BY = "mem0"


@dataclass(frozen=True)
class Mem0Owner:
    """Whose entries: the ids given to mem0's `add`, each None where it was not given."""

    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None

    def __str__(self) -> str:
        return "&".join(f"{name}={value}" for name, value in vars(self).items() if value is not None)


@dataclass(frozen=True)
class Mem0Change:
    """A row of the history: `event` is ADD, UPDATE or DELETE, `at` is in UTC; None is what the row does not have."""

    event: str
    old: str | None
    new: str | None
    at: datetime | None
    created_at: datetime | None = None
    speaker: str | None = None


@dataclass(frozen=True)
class Mem0Entry:
    """What mem0 calls a memory.

    text         what it says now; None for nothing: mem0 deleted it, or holds a text that is empty or not text
    speaker      the actor_id it was added with, else the role, else whom mem0 attributed it to
    expires_on   the last day, in UTC, on which mem0 shows it
    changes      its rows of the history, oldest first; mem0 may have lost some
    """

    id: str
    owner: Mem0Owner
    text: str | None
    speaker: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    expires_on: date | None = None
    changes: tuple[Mem0Change, ...] = ()


@dataclass(frozen=True)
class Mem0Store:
    """A store as it was read.

    entries   everything in the Qdrant folder, in the order mem0 last wrote it
    gone      what only the history knows: deleted, or of another folder that shares the history file. mem0 does not
              keep whose it was (`owner` is empty), so that giving it to a user is the caller's choice.
    """

    entries: tuple[Mem0Entry, ...]
    gone: tuple[Mem0Entry, ...] = ()

    @property
    def owners(self) -> dict[Mem0Owner, list[Mem0Entry]]:
        """The entries of each owner; owners by name."""
        owned = defaultdict(list)
        for entry in self.entries:
            owned[entry.owner].append(entry)
        return dict(sorted(owned.items(), key=lambda item: str(item[0])))

    @property
    def textless(self) -> int:
        """How many entries in the folder have a text that is empty or not text: only their history can be kept."""
        return sum(entry.text is None for entry in self.entries)


def read_mem0(
    qdrant_folder: str | Path, history_db: str | Path | None = None, *, collection: str | None = None
) -> Mem0Store:
    """Read a store; nothing of it is written, and no class that its pickles name is imported.

    Args:
        qdrant_folder: the `path` of mem0's vector store, by default /tmp/qdrant; mem0 may be running.
        history_db: mem0's history_db_path, by default ~/.mem0/history.db; None takes the live texts alone.
        collection: mem0's collection_name; may be left out where the folder has one, its entity collection aside.

    Raises:
        InputError: not such a folder or file, damaged, a pickle of something else, or several collections.
    """
    payloads = _payloads(_storage_file(Path(qdrant_folder), collection))
    changes = {} if history_db is None else _changes(Path(history_db))
    entries = [_entry(key, payload, changes.pop(key, [])) for key, payload in payloads.items()]
    return Mem0Store(tuple(entries), tuple(_gone(key, rows) for key, rows in changes.items()))


def _entry(key: str, payload: Mapping[str, Any], changes: Sequence[Mem0Change]) -> Mem0Entry:
    return Mem0Entry(
        id=key,
        owner=Mem0Owner(*(_owner_id(key, name, payload.get(name)) for name in ("user_id", "agent_id", "run_id"))),
        text=_text(payload.get("data")),
        speaker=_text(payload.get("actor_id")) or _text(payload.get("role")) or _text(payload.get("attributed_to")),
        created_at=_time(payload.get("created_at")),
        updated_at=_time(payload.get("updated_at")),
        expires_on=_date(payload.get("expiration_date")),
        changes=tuple(changes),
    )


def _owner_id(key: str, name: str, value: object) -> str | None:
    if not isinstance(value, str | int | None):
        raise InputError(f"mem0's memory {key} has a {name} of type {type(value).__name__}, expected a text")
    return None if value is None else str(value)


def _gone(key: str, changes: Sequence[Mem0Change]) -> Mem0Entry:
    speaker = next((change.speaker for change in changes if change.speaker), None)
    created_at = next((change.created_at for change in changes if change.created_at), None)
    return Mem0Entry(key, Mem0Owner(), text=None, speaker=speaker, created_at=created_at, changes=tuple(changes))


# The Qdrant folder


def _storage_file(folder: Path, collection: str | None) -> Path:
    found = {file.parent.name: file for file in sorted(folder.glob("collection/*/storage.sqlite"))}
    if not found:
        raise InputError(
            f"{folder}: holds no collection/<name>/storage.sqlite, expected the folder of mem0's embedded Qdrant "
            "(its vector store's path, by default /tmp/qdrant)"
        )
    own = [name for name in found if not name.endswith("_entities") or name.removesuffix("_entities") not in found]
    wanted = own[0] if collection is None and len(own) == 1 else collection
    if wanted not in found:
        got = "several collections" if wanted is None else f"no collection {wanted!r}"
        raise InputError(f"{folder}: has {got}, expected the name of one of: {', '.join(found)}")
    return found[wanted]


def _payloads(file: Path) -> dict[str, Mapping[str, Any]]:
    """The payload of every point by its id; of copies under several keys, which old clients left, the last is right."""
    payloads: dict[str, Mapping[str, Any]] = {}
    for number, blob in _rows(file, "SELECT rowid, point FROM points ORDER BY rowid"):
        key, payload = _point(blob, f"{file}: point {number}")
        payloads.pop(key, None)
        payloads[key] = payload
    return payloads


def _point(blob: object, where: str) -> tuple[str, Mapping[str, Any]]:
    point = _unpickle(blob, where)
    fields = point.state.get("__dict__") if isinstance(point, _StandIn) and isinstance(point.state, dict) else None
    if not isinstance(fields, dict) or not isinstance(fields.get("id"), str | int):
        raise InputError(f"{where} is not a pickled Qdrant point, expected the storage.sqlite of embedded Qdrant")
    payload = fields.get("payload") or {}
    if not isinstance(payload, dict):
        raise InputError(f"{where} has a payload of type {type(payload).__name__}, expected a dict")
    return str(fields["id"]), payload


class _StandIn:
    """Takes the place of every class a point may hold: keeps the state it is given, does nothing."""

    state: object = None  # of the class: a pickle may leave out both methods

    def __init__(self, *arguments: object) -> None:
        """Arguments are let go."""

    def __setstate__(self, state: object) -> None:
        self.state = state


_KNOWN_CLASSES = {
    ("qdrant_client.http.models.models", "PointStruct"),
    ("qdrant_client.http.models.models", "SparseVector"),
    *(("datetime", name) for name in ("datetime", "date", "time", "timedelta", "timezone")),  # in old metadata
    ("uuid", "UUID"),
}


_BROKEN = (pickle.PickleError, EOFError, AttributeError, LookupError, TypeError, ValueError, OverflowError, MemoryError)
"""What loading raises, by its documentation and its source, whatever the bytes."""


class _Unpickler(pickle.Unpickler):
    """Reads a pickle without its code: a pickle may name any function and have it called."""

    def find_class(self, module_name: str, global_name: str, /) -> type[_StandIn]:
        if (module_name, global_name) not in _KNOWN_CLASSES:
            raise pickle.UnpicklingError(f"it names {f'{module_name}.{global_name}'!r}, which no point of mem0 holds")
        return _StandIn


def _unpickle(blob: object, where: str) -> object:
    if not isinstance(blob, bytes):
        raise InputError(f"{where} is {type(blob).__name__}, expected a pickle: is this file mem0's?")
    try:
        return _Unpickler(io.BytesIO(blob)).load()
    except _BROKEN as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{where} cannot be read as a pickled Qdrant point, {reason}") from error


# The history


def _changes(file: Path) -> dict[str, list[Mem0Change]]:
    """The history of every id, in the order it was written; columns came and went with mem0's versions."""
    columns = [name for _, name, *_ in _rows(file, "PRAGMA table_info(history)")]
    missing = {"memory_id", "old_memory", "new_memory", "event", "created_at", "updated_at"}.difference(columns)
    if missing:
        raise InputError(f"{file}: has no history table with {', '.join(sorted(missing))}, expected mem0's history.db")
    changes = defaultdict(list)
    for values in _rows(file, "SELECT * FROM history ORDER BY rowid"):
        row = dict(zip(columns, values, strict=True))
        changes[str(row["memory_id"])].append(_change(row))
    return dict(changes)


def _change(row: Mapping[str, Any]) -> Mem0Change:
    created_at, updated_at = _time(row["created_at"]), _time(row["updated_at"])
    return Mem0Change(
        event=str(row["event"]),
        old=_text(row["old_memory"]),
        new=_text(row["new_memory"]),
        at=created_at
        if row["event"] == "ADD"
        else updated_at,  # created_at of the others is the entry's, not the row's
        created_at=created_at,
        speaker=_text(row.get("actor_id")) or _text(row.get("role")),
    )


def _rows(file: Path, sql: str) -> Iterator[tuple[Any, ...]]:
    if not file.is_file():
        raise InputError(f"{file}: there is no such file, expected an SQLite file of mem0")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            yield from connection.execute(sql)
    except sqlite3.Error as error:
        raise InputError(f"{file}: cannot be read as a file of mem0, SQLite says: {error}{_remedy(error)}") from error


def _remedy(error: sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorname", None) == "SQLITE_READONLY_ROLLBACK":
        return "; a write was cut off and is not rolled back yet: open the store with mem0 once"
    return ""


# Single values


def _text(value: object) -> str | None:
    """The value where it is a text that a bank can store."""
    if not isinstance(value, str) or not value.strip():
        return None
    return value if value.encode("utf-8", "ignore").decode() == value else None


def _time(value: object) -> datetime | None:
    """mem0 writes ISO with a zone; a caller's metadata may hold anything there. UTC where no zone is named."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        return moment and (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC))
    except (ValueError, OverflowError):
        return None


def _date(value: object) -> date | None:
    try:
        return date.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


# As a log


def logged_operations(entries: Sequence[Mem0Entry], now: datetime) -> list[LoggedOperation]:
    """Tell entries as the log of a bank that saw what mem0 saw: lines from 1, ready for an empty scope.

    What is live in the end is what mem0 shows: every text once a speaker. An entry keeps one id over all its changes,
    also where it says for a while what another entry says already, which the log has as a NOOP. What was missing in
    the history but named by a later row, or by the folder, becomes a version of its own.

    Args:
        entries: of one owner, or of several that are to share a scope; those of `Mem0Store.gone` end deleted.
        now: with a zone; later times count as now, and what expired before is closed.
    """
    now = now.astimezone(UTC)
    said = [(at, number, text) for number, entry in enumerate(entries) for at, text in _life(entry, now)]
    telling = _Telling()
    for at, number, text in sorted(said, key=lambda moment: moment[0]):  # stable: a life keeps its own order
        speaker = entries[number].speaker
        telling.say(number, None if text is None else (speaker, text), at)
    return telling.lines


def _life(entry: Mem0Entry, now: datetime) -> Iterator[tuple[datetime, str | None]]:
    """What an entry said from which time on, in order, None for nothing; unknown times are those of the one before."""
    moments: list[tuple[datetime | None, str | None]] = []
    for change in entry.changes:
        if change.old is not None:
            moments.append((change.at if moments else entry.created_at, change.old))
        moments.append((change.at, change.new))
    moments.append((entry.updated_at, entry.text))
    if entry.expires_on is not None and entry.expires_on < now.date():
        moments.append((datetime.combine(entry.expires_on + timedelta(days=1), time(tzinfo=UTC)), None))
    clock = next((at for at, _ in moments if at is not None), now)
    said = None
    for at, text in moments:
        clock = min(now, max(clock, at or clock))
        if text != said:
            yield clock, text
        said = text


_Saying = tuple[str | None, str]
"""A speaker and a text."""


class _Telling:
    """Follows who says what, and writes the lines that a bank would have written. Entries go by number."""

    def __init__(self) -> None:
        self.lines: list[LoggedOperation] = []
        self._said: dict[int, _Saying] = {}
        self._saying: defaultdict[_Saying, list[int]] = defaultdict(list)  # the first has it as its live entry
        self._ids: dict[int, str] = {}
        self._versions: dict[int, int] = {}
        self._batch, self._at = 0, datetime.min.replace(tzinfo=UTC)

    def say(self, number: int, saying: _Saying | None, at: datetime) -> None:
        """From this time on, or just after the line before, the entry says this; None for nothing any more."""
        self._batch, self._at = len(self.lines) + 1, max(at, self._at + timedelta(microseconds=1))
        before = self._said.get(number)
        was_live = before is not None and self._saying[before][0] == number
        if saying is not None and not self._saying[saying]:
            self._open(OperationKind.UPDATE if was_live else OperationKind.ADD, number, saying)
        elif was_live:
            self._write(OperationKind.DELETE, self._ids[number], self._versions[number])
        elif saying is not None:
            self._write(OperationKind.NOOP, self._ids[self._saying[saying][0]], None, saying)
        self._leave(number, was_live)
        if saying is not None:
            self._said[number] = saying
            self._saying[saying].append(number)

    def _leave(self, number: int, was_live: bool) -> None:
        """Take back what an entry said before; if another one says it too, it is live there now."""
        before = self._said.pop(number, None)
        if before is None:
            return
        self._saying[before].remove(number)
        if was_live and self._saying[before]:
            self._open(OperationKind.ADD, self._saying[before][0], before)

    def _open(self, kind: OperationKind, number: int, saying: _Saying) -> None:
        entry_id = self._ids.setdefault(number, f"e{len(self.lines) + 1}")
        self._versions[number] = self._versions.get(number, 0) + 1
        self._write(kind, entry_id, self._versions[number], saying)

    def _write(self, kind: OperationKind, entry_id: str, version: int | None, saying: _Saying | None = None) -> None:
        speaker, text = saying or (None, None)
        line = LoggedOperation(
            seq=len(self.lines) + 1,
            kind=kind,
            at=self._at,
            decided_by=DECIDED_BY,
            entry_id=entry_id,
            version=version,
            text=text,
            speaker=speaker,
            batch=self._batch,
        )
        self.lines.append(line)
