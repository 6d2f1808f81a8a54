"""Log lines in columns, times and turn ids as the file writes them: an operation is made only of a line asked for.

A bank reads its whole log when it is opened and hardly ever looks at most of it again. So every line costs its texts
and a few bytes, no object of its own. Left out: what follows from the lines (log.py).
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, NamedTuple

from memory_r1.bank.operation import Entry, LoggedOperation, OperationKind, iso

FIELDS = tuple(field.name for field in fields(LoggedOperation))

Row = Sequence[Any]
"""The values of FIELDS as the file keeps them: `at` and `said_at` in ISO, `turn_ids` as a JSON list."""

_KINDS = {kind.value: kind for kind in OperationKind}
_REPEATED = {"at", "decided_by", "speaker", "said_at"}


class Outline(NamedTuple):
    """A line without what it is about; the fields are those of LoggedOperation."""

    seq: int
    kind: OperationKind
    batch: int
    undoes: int | None


class Lines:
    """Lines in the order of the log; each attribute is a column."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.seq = array("q")
        self.kind: list[OperationKind] = []
        self.at: list[str] = []
        self.decided_by: list[str] = []
        self.entry_id: list[str | None] = []
        self.version: list[int | None] = []
        self.text: list[str | None] = []
        self.speaker: list[str | None] = []
        self.said_at: list[str | None] = []
        self.turn_ids: list[str] = []
        self.batch = array("q")
        self.undoes: list[int | None] = []
        for name, values in zip(FIELDS, zip(*rows, strict=True), strict=False):
            getattr(self, name).extend(_shared(name, values))

    @classmethod
    def of(cls, lines: Iterable[LoggedOperation]) -> Lines:
        """Operations as lines."""
        columns = cls()
        for line in lines:
            columns.append(line)
        return columns

    def __len__(self) -> int:
        return len(self.seq)

    def append(self, line: LoggedOperation) -> None:
        """Append an operation."""
        self.seq.append(line.seq)
        self.kind.append(line.kind)
        self.at.append(iso(line.at))
        self.decided_by.append(line.decided_by)
        self.entry_id.append(line.entry_id)
        self.version.append(line.version)
        self.text.append(line.text)
        self.speaker.append(line.speaker)
        self.said_at.append(line.said_at.isoformat() if line.said_at else None)
        self.turn_ids.append(json.dumps(line.turn_ids) if line.turn_ids else "[]")
        self.batch.append(line.batch)
        self.undoes.append(line.undoes)

    def extend(self, lines: Lines) -> None:
        """Append other lines, all of them later."""
        for name in FIELDS:
            getattr(self, name).extend(getattr(lines, name))

    def operation(self, place: int) -> LoggedOperation:
        """The line at this place, from 0."""
        return operation_of([getattr(self, name)[place] for name in FIELDS])

    def entry(self, place: int, closed: str | None) -> Entry:
        """The entry version that the ADD or UPDATE at this place opened, and when it was closed."""
        entry_id, version, text = self.entry_id[place], self.version[place], self.text[place]
        assert entry_id is not None
        assert version is not None
        assert text is not None
        return Entry(
            id=entry_id,
            text=text,
            version=version,
            speaker=self.speaker[place],
            said_at=_time(self.said_at[place]),
            valid_from=_time(self.at[place]),
            valid_to=_time(closed),
            turn_ids=_turn_ids(self.turn_ids[place]),
            decided_by=self.decided_by[place],
        )

    def outlines(self, stop: int) -> Iterator[Outline]:
        """The outlines of the lines before this place."""
        return map(Outline, self.seq[:stop], self.kind[:stop], self.batch[:stop], self.undoes[:stop])

    def of_batch(self, batch: int, stop: int) -> range:
        """The places before `stop` where the lines of a batch stand."""
        return range(bisect_left(self.batch, batch, hi=stop), bisect_right(self.batch, batch, hi=stop))

    def until(self, time: datetime) -> int:
        """How many lines were written at this time, UTC, or before."""
        return bisect_right(self.at, iso(time))


def operation_of(row: Row) -> LoggedOperation:
    """The operation that a row of the file says."""
    seq, kind, at, decided_by, entry_id, version, text, speaker, said_at, turn_ids, batch, undoes = row
    return LoggedOperation(
        seq=seq,
        kind=_KINDS[kind],
        at=datetime.fromisoformat(at),
        decided_by=decided_by,
        entry_id=entry_id,
        version=version,
        text=text,
        speaker=speaker,
        said_at=_time(said_at),
        turn_ids=_turn_ids(turn_ids),
        batch=batch,
        undoes=undoes,
    )


def _time(iso: str | None) -> datetime | None:
    return datetime.fromisoformat(iso) if iso else None


def _turn_ids(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text)) if text != "[]" else ()


def _shared(name: str, values: Sequence[Any]) -> Iterable[Any]:
    """The same values, equal ones being one object: a file gives every line texts of its own."""
    if name == "kind":
        return map(_KINDS.__getitem__, values)
    if name in _REPEATED:
        known: dict[Any, Any] = {}
        return map(known.setdefault, values, values)
    return values
