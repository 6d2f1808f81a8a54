"""LongMemEval: 500 questions, each with the chat history it is asked of (arXiv:2410.10813, official JSON, MIT).

The oracle file holds the sessions with evidence alone, the S file about 40 sessions a question. A record is about so:

    {"question_id": "gpt4_2655b836", "question_type": "temporal-reasoning",
     "question": "What was the first issue ...?", "answer": "GPS system not functioning correctly",
     "question_date": "2023/04/10 (Mon) 23:07",
     "haystack_dates": ["2023/04/10 (Mon) 17:50"], "haystack_session_ids": ["answer_4be1b6b4_2"],
     "haystack_sessions": [[{"role": "user", "content": "I'm ...", "has_answer": true}]],
     "answer_session_ids": ["answer_4be1b6b4_2"]}

Every question is asked of a dialogue of its own, which has the question's id; sessions stand in the order of their
dates, which the file does not always keep. A turn's id is its session's and its place in it ("answer_4be1b6b4_2:1").
Evidence are the turns marked as holding the answer; a question that cannot be answered has none.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from memory_r1.bench.records import field_of, json_list, object_of, read_bytes
from memory_r1.dialogue import Dialogue, DialogueFile, Question, Session, Turn
from memory_r1.errors import DialogueError

ORACLE_SHA256 = "821a2034d219ab45846873dd14c14f12cfe7776e73527a483f9dac095d38620c"
"""Of the official oracle file, unpacked."""

TYPES = (
    "single-session-user",
    "single-session-preference",
    "single-session-assistant",
    "multi-session",
    "knowledge-update",
    "temporal-reasoning",
)
"""The six question types; a question whose id ends in _abs is of one of them and cannot be answered."""

_EXPECTED = "an official LongMemEval file"


@dataclass(frozen=True)
class LongMemEvalFile(DialogueFile):
    """The dialogues and their questions, one each.

    answer_sessions  by question id: the sessions that hold the answer
    sha256           of the file's bytes, unpacked, to name it in results
    """

    answer_sessions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sha256: str = ""


def load_longmemeval(path: Path | str) -> LongMemEvalFile:
    """Read an official file, or another of its schema; .gz is unpacked.

    Raises:
        DialogueError: the file is missing, not JSON, or breaks the schema; names the question and the field.
    """
    path = Path(path)
    content = read_bytes(path, _EXPECTED)
    records = [
        _Record.of(record, f"{path}, record {number}")
        for number, record in enumerate(json_list(content, path, _EXPECTED), start=1)
    ]
    return LongMemEvalFile(
        dialogues=tuple(record.dialogue() for record in records),
        questions=tuple(record.question() for record in records),
        answer_sessions={record.id: record.answer_sessions() for record in records},
        sha256=hashlib.sha256(content).hexdigest(),
    )


@dataclass(frozen=True)
class _Record:
    """One question of the file with its history."""

    id: str
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, record: object, where: str) -> _Record:
        fields = object_of(record, where)
        return cls(field_of(fields, "question_id", str, where), fields)

    @property
    def answerable(self) -> bool:
        return not self.id.endswith("_abs")

    def dialogue(self) -> Dialogue:
        """The sessions in the order of their dates."""
        names, dates, said = (self._list(f"haystack_{part}") for part in ("session_ids", "dates", "sessions"))
        if not len(names) == len(dates) == len(said):
            raise DialogueError(
                f"{self.id}: {len(names)} haystack_session_ids, {len(dates)} dates and {len(said)} sessions, expected "
                "as many of each"
            )
        sessions = [self._session(*one) for one in zip(names, dates, said, strict=True)]
        return Dialogue(self.id, tuple(sorted(sessions, key=lambda session: session.at or datetime.min)))

    def question(self) -> Question:
        """The question, asked after the last session."""
        kind = field_of(self.fields, "question_type", str, self.id)
        if kind not in TYPES:
            raise DialogueError(f"{self.id}: question_type is {kind!r:.60}, expected one of: {', '.join(TYPES)}")
        return Question(
            id=self.id,
            dialogue_id=self.id,
            text=field_of(self.fields, "question", str, self.id),
            answer=str(field_of(self.fields, "answer", (str, int, float), self.id)).strip(),
            category=kind,
            evidence=self._evidence(),
            asked_at=self._time(field_of(self.fields, "question_date", str, self.id), "question_date"),
            answerable=self.answerable,
        )

    def answer_sessions(self) -> tuple[str, ...]:
        """The ids of the sessions that hold the answer."""
        known = set(self._list("haystack_session_ids"))
        named = tuple(map(str, self._list("answer_session_ids")))
        if unknown := [name for name in named if name not in known]:
            raise DialogueError(f"{self.id}: answer_session_ids has {unknown[0]!r}, which is no session of its history")
        return named

    def _evidence(self) -> tuple[str, ...]:
        """The turns marked as holding the answer."""
        marked = (
            f"{name}:{number}"
            for name, said in zip(self._list("haystack_session_ids"), self._list("haystack_sessions"), strict=True)
            for number, turn in enumerate(said, start=1)
            if turn.get("has_answer")
        )
        return tuple(marked) if self.answerable else ()

    def _session(self, name: object, date: object, said: object) -> Session:
        where = f"{self.id}, session {name!r:.60}"
        if not isinstance(name, str) or not isinstance(date, str) or not isinstance(said, list):
            raise DialogueError(f"{where}: expected an id, a date and a list of turns")
        at = self._time(date, "haystack_dates")
        return Session(name, at, tuple(_turn(one, f"{name}:{n}", at, where) for n, one in enumerate(said, start=1)))

    def _list(self, name: str) -> list[Any]:
        found: list[Any] = field_of(self.fields, name, list, self.id)
        return found

    def _time(self, text: str, name: str) -> datetime:
        try:
            return datetime.strptime(re.sub(r" \(\w+\) ", " ", text), "%Y/%m/%d %H:%M")
        except ValueError as error:
            raise DialogueError(
                f"{self.id}: {name} is {text!r:.60}, expected a time such as '2023/04/10 (Mon) 23:07'"
            ) from error


def _turn(record: object, turn_id: str, at: datetime, where: str) -> Turn:
    fields = object_of(record, f"{where}, turn {turn_id}")
    role, content = (field_of(fields, name, str, f"{where}, turn {turn_id}") for name in ("role", "content"))
    return Turn(turn_id, role, content, at)
