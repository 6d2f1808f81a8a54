"""The operations log of one scope in memory, and what follows from it: which version of which entry was live when.

A version is a row; rows are numbered in the order the log opened them and never change, only close. A log may branch:
the branch shares the rows of the log it left, as they were at that moment, and numbers its own after them. Left out:
how the log is kept (store.py, branch.py), what a line holds (lines.py) and how rows are ranked (search.py).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_r1.bank.chains import Chains
from memory_r1.bank.column import Bools, Floats, Rows
from memory_r1.bank.lines import Lines, Outline
from memory_r1.bank.operation import Entry, LoggedOperation, OperationKind
from memory_r1.bank.postings import Postings
from memory_r1.bank.signs import Signs
from memory_r1.bank.vectors import Vectors, VectorSource
from memory_r1.errors import BankError

_OPENING = (OperationKind.ADD, OperationKind.UPDATE)
_CLOSING = (OperationKind.UPDATE, OperationKind.DELETE)
_STILL_OPEN = np.iinfo(np.int32).max


class Said(NamedTuple):
    """What a version says, and whose it is."""

    text: str
    speaker: str | None


@dataclass(frozen=True)
class Segment:
    """The part of one log that a reader sees: its rows before `stop` and its first `lines` lines.

    `position` is the number of the last line seen, be it of this log or of one below.
    """

    log: Log
    stop: int
    lines: int
    position: int

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


class Log:
    """One scope's log, followed by appending its lines in order."""

    def __init__(self, source: VectorSource, below: tuple[Segment, ...] = ()) -> None:
        """`source` gives the vectors of its own rows; `below` is what a branch shares with the logs it left."""
        self._below = below
        self._lines = Lines()
        self._opened_by = array("i")  # by row: the place in _lines of the line that opened it
        self._closed_by = array("i")  # by row: the same for the line that closed it
        self._closed_below: dict[int, int] = {}  # the same for rows of the logs below
        self._rows_of_id = Chains()
        self._rows_of_text = Chains()  # this and what follows is brought up to the last row when it is asked for
        self._speaker_codes: dict[str | None, int] = {}
        self._speaker = array("i")  # by row
        self._said_at = array("d")  # by row: seconds, NaN where it is not known
        self._segments: tuple[Segment, ...] | None = below
        self._source = source
        self.start = self._texts_until = below[-1].stop if below else 0
        self.position = below[-1].position if below else 0

    @property
    def stop(self) -> int:
        """The number of rows, those below the branch included."""
        return self.start + len(self._opened_by)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Everything that can be seen from here, oldest first."""
        if self._segments is None:
            self._segments = (*self._below, Segment(self, self.stop, len(self._lines), self.position))
        return self._segments

    @cached_property
    def postings(self) -> Postings:
        """The inverted index of this log's own rows; search.py brings it up to the last row."""
        return Postings()

    @cached_property
    def vectors(self) -> Vectors:
        """The vectors of this log's own rows, read when asked for."""
        return Vectors(self._source)

    @cached_property
    def signs(self) -> Signs:
        """The signs of the vectors of this log's own rows."""
        return Signs(self.vectors)

    def branch(self, source: VectorSource) -> Log:
        """A log that starts from what this one says now; neither sees what the other appends later. Copies nothing."""
        return Log(source, self.segments)

    # Following

    def append(self, lines: LoggedOperation | Lines) -> None:
        """Follow the log by a line or by many."""
        first = len(self._lines)
        if isinstance(lines, Lines):
            self._lines.extend(lines)
        else:
            self._lines.append(lines)
        self._follow(first)

    def _follow(self, first: int) -> None:
        """Take note of the rows that the lines from this place on open and close."""
        kinds, ids = self._lines.kind, self._lines.entry_id
        for place in range(first, len(kinds)):
            if kinds[place] in _CLOSING:
                self._close(ids[place], place)
            if kinds[place] in _OPENING:
                self._rows_of_id.add(ids[place], self.start + len(self._opened_by))
                self._opened_by.append(place)
                self._closed_by.append(_STILL_OPEN)
        self.position = self._lines.seq[-1]
        self._segments = None

    def _close(self, entry_id: str | None, place: int) -> None:
        self._segments = None
        row = self._live_row(entry_id)
        if row is None:
            seq = self._lines.seq[place]
            raise BankError(f"operation {seq} closes {entry_id}, which is not live: run memory-r1 bank verify")
        if row < self.start:
            self._closed_below[row] = place
        else:
            self._closed_by[row - self.start] = place

    # Lines and entries

    def lines(self) -> list[LoggedOperation]:
        """The whole log, oldest first."""
        return [segment.log._lines.operation(place) for segment in self.segments for place in range(segment.lines)]

    def outline(self) -> list[Outline]:
        """The whole log, oldest first, without what its lines are about: takes a tenth of the time of `lines`."""
        return [outline for segment in self.segments for outline in segment.log._lines.outlines(segment.lines)]

    def batch(self, number: int) -> list[LoggedOperation]:
        """The lines of one batch, in order."""
        return [
            segment.log._lines.operation(place)
            for segment in self.segments
            for place in segment.log._lines.of_batch(number, segment.lines)
        ]

    def live(self, entry_id: str) -> Entry | None:
        """The live version of an entry."""
        row = self._live_row(entry_id)
        return None if row is None else self.entry(row)

    def live_with(self, speaker: str | None, text: str) -> Entry | None:
        """The live entry that says exactly this."""
        rows = chain.from_iterable(s.log._texts().newest_first((speaker, text), s.stop) for s in self.segments)
        row = next((row for row in rows if self._closed(row) is None), None)
        return None if row is None else self.entry(row)

    def versions(self, entry_id: str) -> list[Entry]:
        """Every version of an entry, oldest first; empty for an id this log never saw."""
        return [self.entry(row) for row in self._versions(entry_id)][::-1]

    def last_version(self, entry_id: str) -> Entry | None:
        """The newest version of an entry, live or not; None for an id this log never saw."""
        row = next(self._versions(entry_id), None)
        return None if row is None else self.entry(row)

    def live_at(self, time: datetime) -> list[Entry]:
        """The versions believed at this time, in the order their entries were added."""
        return self._entries(self._live([segment.log._at(segment, time) for segment in self.segments]))

    def live_entries(self) -> list[Entry]:
        """The live versions, in the order their entries were added."""
        return self._entries(self.live_rows())

    def _entries(self, rows: Bools) -> list[Entry]:
        entries = map(self.entry, np.flatnonzero(rows).tolist())
        return sorted(entries, key=lambda entry: int(entry.id.removeprefix("e")))

    # Rows

    def entry(self, row: int) -> Entry:
        """The version in this row, with its valid_to as seen from here."""
        segment = self._segment(row)
        return segment.log._lines.entry(segment.log._opened_by[row - segment.start], self._closed(row))

    def vector(self, entry: Entry) -> Floats:
        """The vector (D,) of a version of an entry."""
        row = next(row for row in self._versions(entry.id) if self.entry(row).version == entry.version)
        segment = self._segment(row)
        vector: Floats = segment.vectors[row - segment.start]
        return vector

    def said_at(self, rows: Rows) -> NDArray[np.float64]:
        """When these ascending rows were said, in seconds, (N,); NaN where it is not known."""
        return np.concatenate([segment.log._times()[segment.places(rows)] for segment in self.segments])

    def speakers(self, rows: Rows) -> list[str | None]:
        """Whose these ascending rows are."""
        speakers: list[str | None] = []
        for segment in self.segments:
            codes, names = segment.log._speakers()[segment.places(rows)], tuple(segment.log._speaker_codes)
            speakers += [names[code] for code in codes.tolist()]
        return speakers

    def openings(self, start: int, stop: int) -> Iterator[Said]:
        """What this log's own rows from `start` up to `stop` say, and whose they are."""
        for place in self._opened_by[start - self.start : stop - self.start]:
            text = self._lines.text[place]
            assert text is not None
            yield Said(text, self._lines.speaker[place])

    def live_rows(self, speaker: str | None = None) -> Bools:
        """Which rows are live, and of this speaker where one is given, (rows,) bool."""
        return self._live(self.segments, speaker)

    def _live(self, segments: Sequence[Segment], speaker: str | None = None) -> Bools:
        live = np.zeros(self.stop, dtype=np.bool_)
        for segment in segments:
            live[segment.start : segment.stop] = segment.log._left_open(segment, speaker)
            live[[row for row, place in segment.log._closed_below.items() if place < segment.lines]] = False
        return live

    def _left_open(self, segment: Segment, speaker: str | None) -> Bools:
        """Which rows of this log the lines of the segment left open, and are of the speaker where one is given."""
        rows: Bools = np.frombuffer(self._closed_by, dtype=np.int32)[: segment.rows] >= segment.lines
        if speaker is not None:
            rows &= self._speakers()[: segment.rows] == self._speaker_codes.get(speaker, -1)
        return rows

    def _at(self, segment: Segment, time: datetime) -> Segment:
        """What could be seen of a segment of this log at a time."""
        lines = min(segment.lines, self._lines.until(time))
        return replace(segment, lines=lines, stop=self.start + bisect_left(self._opened_by, lines))

    def _segment(self, row: int) -> Segment:
        return next(segment for segment in self.segments if row < segment.stop)

    def _versions(self, entry_id: str | None) -> Iterator[int]:
        """The rows of an entry's versions, newest first."""
        for segment in reversed(self.segments):
            yield from segment.log._rows_of_id.newest_first(entry_id, segment.stop)

    def _live_row(self, entry_id: str | None) -> int | None:
        """The row of an entry's last version, if it is live."""
        row = next(self._versions(entry_id), None)
        return row if row is not None and self._closed(row) is None else None

    def _texts(self) -> Chains:
        """This log's own rows by speaker and text."""
        if self._texts_until < self.stop:
            for row, (text, speaker) in enumerate(self.openings(self._texts_until, self.stop), start=self._texts_until):
                self._rows_of_text.add((speaker, text), row)
            self._texts_until = self.stop
        return self._rows_of_text

    def _speakers(self) -> NDArray[np.int32]:
        """The code of the speaker of each of this log's own rows."""
        codes, new = self._speaker_codes, self._opened_by[len(self._speaker) :]
        self._speaker.extend(codes.setdefault(self._lines.speaker[place], len(codes)) for place in new)
        return np.frombuffer(self._speaker, dtype=np.int32)

    def _times(self) -> NDArray[np.float64]:
        """When each of this log's own rows was said, in seconds."""
        new = [self._lines.said_at[place] for place in self._opened_by[len(self._said_at) :]]
        moments = np.array(new, dtype="datetime64[us]")
        self._said_at.frombytes(np.where(np.isnat(moments), np.nan, moments.astype(np.int64) / 1e6).tobytes())
        return np.frombuffer(self._said_at)

    def _closed(self, row: int) -> str | None:
        """When the row was closed, ISO; None where it is live."""
        for segment in self.segments:
            place = segment.log._closing(row)
            if place < segment.lines:
                return segment.log._lines.at[place]
        return None

    def _closing(self, row: int) -> int:
        """The place of this log's line that closed the row, its own or one below; the highest number for none."""
        if self.start <= row < self.stop:
            return self._closed_by[row - self.start]
        return self._closed_below.get(row, _STILL_OPEN)
