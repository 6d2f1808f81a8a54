"""The operations log of one scope in memory, and what follows from it: which version of which entry was live when.

A version is a row; rows are numbered in the order the log opened them and never change, only close. A log may branch:
the branch shares the rows of the log it left, as they were at that moment, and numbers its own after them. Left out:
how the log is kept (store.py, branch.py) and how rows are ranked (search.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from memory_r1.bank.column import Bools, Column, Floats, Rows
from memory_r1.bank.operation import Entry, LoggedOperation, OperationKind
from memory_r1.bank.postings import Postings
from memory_r1.bank.vectors import Vectors, VectorSource

_STILL_OPEN = np.iinfo(np.int64).max
_EPOCH = datetime(1970, 1, 1)


@dataclass(frozen=True)
class Segment:
    """The part of one log that a reader sees: its rows before `stop` and its lines up to log position `position`."""

    log: Log
    stop: int
    position: int
    lines: int

    @property
    def start(self) -> int:
        return self.log.start

    @property
    def rows(self) -> int:
        """How many rows of this log are seen."""
        return self.stop - self.start

    @property
    def vectors(self) -> Floats:
        """The vectors of the rows seen, (rows, D); there must be one."""
        return self.log.vectors.first(self.rows)

    def places(self, rows: Rows) -> Rows:
        """Where in this log those of the rows stand that it holds and the reader sees."""
        return rows[(self.start <= rows) & (rows < self.stop)] - self.start

    def hides(self, row: int) -> LoggedOperation | None:
        """The line of this log that closed the row, if the reader sees that line."""
        line = self.log.closings.get(row)
        return line if line is not None and line.seq <= self.position else None


class Log:
    """One scope's log, followed by appending its lines in order.

    `postings` and `vectors` are the search indexes of this log's own rows; they are filled when first searched.
    `closings` has the line that closed each row closed in this log, be the row its own or below.
    """

    def __init__(self, source: VectorSource, below: tuple[Segment, ...] = ()) -> None:
        """`source` gives the vectors of its own rows; `below` is what a branch shares with the logs it left."""
        self._below = below
        self._lines: list[LoggedOperation] = []
        self._openings: list[LoggedOperation] = []
        self._closed_at = Column(np.int64)
        self._closed_below: list[int] = []
        self._said_at = Column(np.float64)  # seconds, NaN where it is not known
        self._speaker = Column(np.int32)
        self._speaker_codes: dict[str | None, int] = {}
        self._rows_of_id: dict[str, list[int]] = {}
        self._rows_of_text: dict[tuple[str | None, str], list[int]] = {}
        self._segments: tuple[Segment, ...] | None = below
        self.closings: dict[int, LoggedOperation] = {}
        self.postings = Postings()
        self.vectors = Vectors(source)
        self.start = below[-1].stop if below else 0
        self.position = below[-1].position if below else 0

    @property
    def stop(self) -> int:
        """The number of rows, those below the branch included."""
        return self.start + len(self._openings)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Everything that can be seen from here, oldest first."""
        if self._segments is None:
            self._segments = (*self._below, Segment(self, self.stop, self.position, len(self._lines)))
        return self._segments

    def branch(self, source: VectorSource) -> Log:
        """A log that starts from what this one says now; neither sees what the other appends later. Copies nothing."""
        return Log(source, self.segments)

    def append(self, line: LoggedOperation) -> None:
        """Follow the log by one line."""
        if line.kind in (OperationKind.UPDATE, OperationKind.DELETE):
            self._close(line)
        if line.kind in (OperationKind.ADD, OperationKind.UPDATE):
            self._open(line)
        self._lines.append(line)
        self.position = line.seq
        self._segments = None

    def _close(self, line: LoggedOperation) -> None:
        assert line.entry_id is not None
        row = self._live_row(self._rows(line.entry_id))
        assert row is not None, f"log line {line.seq} closes {line.entry_id}, which is not live"
        self.closings[row] = line
        if row < self.start:
            self._closed_below.append(row)
        else:
            self._closed_at.view[row - self.start] = line.seq

    def _open(self, line: LoggedOperation) -> None:
        assert line.entry_id is not None
        assert line.text is not None
        self._rows_of_id.setdefault(line.entry_id, []).append(self.stop)
        self._rows_of_text.setdefault((line.speaker, line.text), []).append(self.stop)
        self._openings.append(line)
        self._closed_at.append(_STILL_OPEN)
        self._said_at.append((line.said_at - _EPOCH).total_seconds() if line.said_at else np.nan)
        self._speaker.append(self._speaker_codes.setdefault(line.speaker, len(self._speaker_codes)))

    def lines(self) -> list[LoggedOperation]:
        """The whole log, oldest first."""
        return [line for segment in self.segments for line in segment.log._lines[: segment.lines]]

    def live(self, entry_id: str) -> Entry | None:
        """The live version of an entry."""
        row = self._live_row(self._rows(entry_id))
        return None if row is None else self.entry(row)

    def live_with(self, speaker: str | None, text: str) -> Entry | None:
        """The live entry that says exactly this."""
        rows = [r for s in self.segments for r in s.log._rows_of_text.get((speaker, text), ()) if r < s.stop]
        row = self._live_row(rows)
        return None if row is None else self.entry(row)

    def versions(self, entry_id: str) -> list[Entry]:
        """Every version of an entry, oldest first; empty for an id this log never saw."""
        return [self.entry(row) for row in self._rows(entry_id)]

    def entry(self, row: int) -> Entry:
        """The version in this row, with its valid_to as seen from here."""
        closing = self._closing(row)
        return self.opening(row).entry(valid_to=closing.at if closing else None)

    def vector(self, entry: Entry) -> Floats:
        """The vector (D,) of a version of an entry."""
        row = next(row for row in self._rows(entry.id) if self.opening(row).version == entry.version)
        segment = next(segment for segment in self.segments if row < segment.stop)
        vector: Floats = segment.vectors[row - segment.start]
        return vector

    def opening(self, row: int) -> LoggedOperation:
        """The line that opened this row."""
        segment = next(segment for segment in self.segments if row < segment.stop)
        return segment.log._openings[row - segment.start]

    def said_at(self, rows: Rows) -> NDArray[np.float64]:
        """When these ascending rows were said, in seconds, (N,); NaN where it is not known."""
        return np.concatenate([segment.log._said_at.view[segment.places(rows)] for segment in self.segments])

    def speakers(self, rows: Rows) -> list[str | None]:
        """Whose these ascending rows are."""
        speakers: list[str | None] = []
        for segment in self.segments:
            names = tuple(segment.log._speaker_codes)
            speakers += [names[code] for code in segment.log._speaker.view[segment.places(rows)].tolist()]
        return speakers

    def openings(self, start: int, stop: int) -> list[LoggedOperation]:
        """The lines that opened this log's own rows from `start` up to `stop`."""
        return self._openings[start - self.start : stop - self.start]

    def live_rows(self, speaker: str | None = None) -> Bools:
        """Which rows are live, and of this speaker where one is given, (rows,) bool."""
        live = np.empty(self.stop, dtype=np.bool_)
        for segment in self.segments:
            live[segment.start : segment.stop] = segment.log._own_rows(segment, speaker)
            live[[row for row in segment.log._closed_below if segment.hides(row)]] = False
        return live

    def _own_rows(self, segment: Segment, speaker: str | None) -> Bools:
        """Which of this log's rows it left open up to a position, and are of the speaker where one is given."""
        rows: Bools = self._closed_at.view[: segment.rows] > segment.position
        if speaker is not None:
            rows &= self._speaker.view[: segment.rows] == self._speaker_codes.get(speaker, -1)
        return rows

    def live_at(self, time: datetime) -> list[Entry]:
        """The versions believed at this time, in the order their entries were added."""
        return _in_order(self.entry(row) for row in range(self.stop) if self._was_live(row, time))

    def _was_live(self, row: int, time: datetime) -> bool:
        closing = self._closing(row)
        return self.opening(row).at <= time and (closing is None or time < closing.at)

    def live_entries(self) -> list[Entry]:
        """The live versions, in the order their entries were added."""
        return _in_order(self.entry(int(row)) for row in np.flatnonzero(self.live_rows()))

    def _rows(self, entry_id: str) -> list[int]:
        return [r for s in self.segments for r in s.log._rows_of_id.get(entry_id, ()) if r < s.stop]

    def _live_row(self, rows: list[int]) -> int | None:
        """Of rows that cannot be live together, the one that is."""
        return next((row for row in reversed(rows) if self._closing(row) is None), None)

    def _closing(self, row: int) -> LoggedOperation | None:
        return next(filter(None, (segment.hides(row) for segment in self.segments)), None)


def _in_order(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: int(entry.id.removeprefix("e")))
