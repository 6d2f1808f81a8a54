"""Log lines and turns as plain records of strings and numbers, checked field by field on the way back.

Used where records come from outside (an import) or are doubted (verify). Left out: whether a line makes sense after
those before it (verify.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from memory_r1.bank.operation import LoggedOperation, OperationKind, StoredTurn, iso

Record = Mapping[str, Any]

HIGHEST = 2**53  # what JSON and SQLite keep exactly, and far from where a bank would run out of numbers
LATEST = datetime(3000, 1, 1, tzinfo=UTC)  # later times would leave no room for those that must follow


@dataclass(frozen=True)
class KeptTurn:
    """A turn with when its operations were applied, UTC; None while it is pending."""

    turn: StoredTurn
    done_at: datetime | None


def line_record(line: LoggedOperation) -> dict[str, object]:
    """A log line as a record; times in ISO."""
    record: dict[str, object] = {field.name: getattr(line, field.name) for field in fields(line)}
    said_at = line.said_at.isoformat() if line.said_at else None
    return {**record, "kind": line.kind.value, "at": iso(line.at), "said_at": said_at, "turn_ids": list(line.turn_ids)}


def line_of(record: Record) -> LoggedOperation:
    """The log line of a record; raises ValueError that names the field."""
    _known(record, [field.name for field in fields(LoggedOperation)])
    return LoggedOperation(
        seq=_number(record, "seq"),
        kind=_kind(record),
        at=_moment(record, "at"),
        decided_by=_text(record, "decided_by"),
        entry_id=_maybe(_text, record, "entry_id"),
        version=_maybe(_number, record, "version"),
        text=_maybe(_text, record, "text"),
        speaker=_maybe(_text, record, "speaker"),
        said_at=_maybe(_wall_clock, record, "said_at"),
        turn_ids=_texts(record, "turn_ids"),
        batch=_number(record, "batch"),
        undoes=_maybe(_number, record, "undoes"),
    )


def turn_record(kept: KeptTurn) -> dict[str, object]:
    """A turn as a record."""
    turn, done = kept.turn, kept.done_at
    record: dict[str, object] = {field.name: getattr(turn, field.name) for field in fields(turn)}
    return {**record, "at": turn.at.isoformat() if turn.at else None, "done_at": iso(done) if done else None}


def turn_of(record: Record) -> KeptTurn:
    """The turn of a record; raises ValueError that names the field."""
    _known(record, [*(field.name for field in fields(StoredTurn)), "done_at"])
    turn = StoredTurn(
        id=_text(record, "id"),
        speaker=_text(record, "speaker"),
        text=_text(record, "text"),
        at=_maybe(_wall_clock, record, "at"),
        dialogue_id=_maybe(_text, record, "dialogue_id"),
    )
    return KeptTurn(turn, _maybe(_moment, record, "done_at"))


def _known(record: Record, names: list[str]) -> None:
    unknown, missing = sorted(record.keys() - set(names)), sorted(set(names) - record.keys())
    if unknown or missing:
        raise ValueError(f"got unknown fields {unknown} and lacks {missing}, expected the fields {names}")


def _maybe(read: Any, record: Record, name: str) -> Any:
    return None if record[name] is None else read(record, name)


def _number(record: Record, name: str) -> int:
    value = record[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= HIGHEST:
        raise ValueError(f"{name} is {str(value)[:60]}, expected a number from 1 to {HIGHEST}")
    return value


def _text(record: Record, name: str) -> str:
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r:.60}, expected a text that is not empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has a lone surrogate at character {error.start}, expected valid Unicode") from error
    return value


def _texts(record: Record, name: str) -> tuple[str, ...]:
    values = record[name]
    if not isinstance(values, list):
        raise ValueError(f"{name} is {values!r:.60}, expected a list of texts")
    return tuple(_text({name: value}, name) for value in values)


def _kind(record: Record) -> OperationKind:
    try:
        return OperationKind(record["kind"])
    except ValueError as error:
        raise ValueError(f"kind is {record['kind']!r:.60}, expected one of: {', '.join(OperationKind)}") from error


def _moment(record: Record, name: str) -> datetime:
    moment = _time(record, name)
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"{name} is {record[name]!r}, expected a time in UTC such as 2024-05-01T12:00:00.000000+00:00")
    if moment >= LATEST:
        raise ValueError(f"{name} is {record[name]!r}, expected a time before {LATEST:%Y}")
    return moment.astimezone(UTC)


def _wall_clock(record: Record, name: str) -> datetime:
    time = _time(record, name)
    if time.tzinfo is not None:
        raise ValueError(f"{name} is {record[name]!r}, expected a wall clock without a zone")
    return time


def _time(record: Record, name: str) -> datetime:
    try:
        return datetime.fromisoformat(record[name])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {record[name]!r:.60}, expected an ISO time") from error
