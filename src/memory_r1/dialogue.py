"""What comes in: turns, sessions, dialogues and the questions asked about them, and the JSONL file people keep them in.

One JSON object per line, a turn or a question; docs/own-data.md shows the format. Left out: benchmark files, whose
loaders live in bench/, and images, of which only a caption's text is kept by those loaders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from memory_r1.errors import DialogueError, InputError


@dataclass(frozen=True)
class GoldOperation:
    """What a good memory manager decides about a turn, by texts: `old` is the text that an UPDATE or DELETE replaces.

    An ADD has `text`, a DELETE `old`, an UPDATE both. Only training reads it.
    """

    op: Literal["ADD", "UPDATE", "DELETE"]
    text: str | None = None
    old: str | None = None


@dataclass(frozen=True)
class Turn:
    """One utterance. `id` is unique in the scope that remembers it; `at` is the session's wall clock, zone-free.

    `operations` are the gold ones where somebody has written them down: none of them is a NOOP, None is unknown.
    """

    id: str
    speaker: str
    text: str
    at: datetime | None = None
    operations: tuple[GoldOperation, ...] | None = None


@dataclass(frozen=True)
class Session:
    """Turns of one sitting, in order."""

    id: str
    at: datetime | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Dialogue:
    """Sessions in the order they happened."""

    id: str
    sessions: tuple[Session, ...]

    @property
    def turns(self) -> tuple[Turn, ...]:
        return tuple(turn for session in self.sessions for turn in session.turns)

    @property
    def speakers(self) -> tuple[str, ...]:
        """Everyone who speaks, in order of first appearance."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns))

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for turn in self.turns:
            if turn.id in seen:
                raise DialogueError(f"dialogue {self.id!r}: turn id {turn.id!r} appears twice, expected unique ids")
            seen.add(turn.id)
        if not seen:
            raise DialogueError(f"dialogue {self.id!r} has no turns, expected at least one")


@dataclass(frozen=True)
class Question:
    """A question about a dialogue, with its gold answer.

    `evidence` holds the ids of the turns the answer rests on, where known; `category` is the data set's own label, and
    `rules` says whether LoCoMo's scoring rules for its categories apply. One that is not `answerable` asks for what was
    never said; its gold answer says so.
    """

    id: str
    dialogue_id: str
    text: str
    answer: str
    category: str = "all"
    evidence: tuple[str, ...] = ()
    asked_at: datetime | None = None
    rules: Literal["plain", "locomo"] = "plain"
    answerable: bool = True


@dataclass(frozen=True)
class DialogueFile:
    """The content of one JSONL file: its dialogues and the questions about them."""

    dialogues: tuple[Dialogue, ...]
    questions: tuple[Question, ...] = ()

    def dialogue(self, dialogue_id: str) -> Dialogue:
        """Find a dialogue by id; raises InputError, naming the known ids."""
        for dialogue in self.dialogues:
            if dialogue.id == dialogue_id:
                return dialogue
        known = ", ".join(dialogue.id for dialogue in self.dialogues)
        raise InputError(f"unknown dialogue {dialogue_id!r}, the file has: {known}")

    def questions_of(self, dialogue_ids: Iterable[str]) -> list[Question]:
        """The questions about these dialogues, in file order; raises InputError on an unknown id."""
        wanted = {self.dialogue(dialogue_id).id for dialogue_id in dialogue_ids}
        return [question for question in self.questions if question.dialogue_id in wanted]


def load_dialogues(path: Path | str) -> DialogueFile:
    """Read a JSONL file of turns and questions.

    Raises:
        DialogueError: the file is missing, not UTF-8, empty, or a line breaks the schema; names line and field.
    """
    path = Path(path)
    builder = _Builder(path.stem or "dialogue")
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        record = _Record(_parse(line, f"{path}, line {number}"), f"{path}, line {number}")
        if record.has("question"):
            builder.add_question(record)
        else:
            builder.add_turn(record)
    return builder.build(path)


def save_dialogues(path: Path | str, dialogues: Iterable[Dialogue], questions: Iterable[Question] = ()) -> None:
    """Write dialogues and questions in the format `load_dialogues` reads."""
    records = [*_turn_records(dialogues), *(_question_record(question) for question in questions)]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    Path(path).write_bytes(text.encode())  # encoded before the file is opened: what cannot be written spoils no file


def _turn_records(dialogues: Iterable[Dialogue]) -> Iterator[dict[str, object]]:
    for dialogue in dialogues:
        for session in dialogue.sessions:
            for turn in session.turns:
                at = {"at": _iso(session.at)} if session.at else {}
                gold = {} if turn.operations is None else {"operations": [_gold(one) for one in turn.operations]}
                yield {
                    "dialogue": dialogue.id, "session": session.id, **at,
                    "turn": turn.id, "speaker": turn.speaker, "text": turn.text, **gold,
                }  # fmt: skip


def _gold(operation: GoldOperation) -> dict[str, str]:
    return {name: value for name, value in vars(operation).items() if value is not None}


def _question_record(question: Question) -> dict[str, object]:
    record: dict[str, object] = {
        "dialogue": question.dialogue_id, "id": question.id, "question": question.text, "answer": question.answer,
        "category": question.category, "evidence": list(question.evidence),
    }  # fmt: skip
    if question.asked_at:
        record["asked_at"] = _iso(question.asked_at)
    return record


def _iso(time: datetime) -> str:
    """To the minute where that says it all, else in full."""
    return time.isoformat(timespec="auto" if time.second or time.microsecond else "minutes")


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DialogueError(f"{path}: no such file, expected a JSONL file of turns and questions") from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path no file can have
        raise DialogueError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _parse(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DialogueError(f"{where}: not JSON ({error.msg} at column {error.colno}), expected one object") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested without end
        raise DialogueError(f"{where}: JSON that cannot be read ({error}), expected one object") from error
    if not isinstance(record, dict):
        raise DialogueError(f"{where}: got {type(record).__name__}, expected a JSON object with a turn or a question")
    return record


@dataclass(frozen=True)
class _Record:
    """One JSON object with typed access; every refusal names the line and the field."""

    fields: Mapping[str, Any]
    where: str

    def has(self, name: str) -> bool:
        return self.fields.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        value = self.fields.get(name, default)
        if value is None:
            raise DialogueError(f"{self.where}: field {name!r} is missing")
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            raise DialogueError(f"{self.where}: field {name!r} is {value!r:.60}, expected a non-empty string")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise DialogueError(f"{self.where}: field {name!r} has a lone surrogate, expected valid Unicode")
        return value

    def time(self, name: str) -> datetime | None:
        if not self.has(name):
            return None
        value = self.text(name)
        try:
            return datetime.fromisoformat(value).replace(tzinfo=None)
        except ValueError as error:
            raise DialogueError(
                f"{self.where}: field {name!r} is {value!r:.60}, expected an ISO time such as 2025-03-02T19:10"
            ) from error

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.fields.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise DialogueError(f"{self.where}: field {name!r} is {value!r:.60}, expected a list of strings")
        return tuple(value)

    def operations(self) -> tuple[GoldOperation, ...] | None:
        value = self.fields.get("operations")
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise DialogueError(f"{self.where}: field 'operations' is {value!r:.60}, expected a list of objects")
        return tuple(_Record(item, f"{self.where}, operation {n}").gold() for n, item in enumerate(value, start=1))

    def gold(self) -> GoldOperation:
        """This record as one gold operation: its op says which of text and old it has."""
        match self.text("op"):
            case "ADD":
                return GoldOperation("ADD", self.text("text"))
            case "UPDATE":
                return GoldOperation("UPDATE", self.text("text"), self.text("old"))
            case "DELETE":
                return GoldOperation("DELETE", old=self.text("old"))
            case other:
                raise DialogueError(
                    f"{self.where}: field 'op' is {other!r:.60}, expected ADD, UPDATE or DELETE; [] keeps nothing"
                )


@dataclass
class _Builder:
    """Collects lines into dialogues; sessions keep the order in which the file first names them."""

    default: str  # name of the dialogue where a line gives none
    sessions: dict[str, dict[str, list[Turn]]] = field(default_factory=dict)
    times: dict[tuple[str, str], datetime | None] = field(default_factory=dict)
    turn_places: dict[str, str] = field(default_factory=dict)
    questions: list[tuple[Question, str]] = field(default_factory=list)

    def add_turn(self, record: _Record) -> None:
        dialogue, session = record.text("dialogue", self.default), record.text("session", "session-1")
        at = self._session_time(record, dialogue, session)
        turns = self.sessions.setdefault(dialogue, {}).setdefault(session, [])
        turn_id = record.text("turn", f"{dialogue}/{session}/{len(turns) + 1}")
        if turn_id in self.turn_places:
            raise DialogueError(
                f"{record.where}: turn id {turn_id!r} was used at {self.turn_places[turn_id]}: give each turn its own"
            )
        self.turn_places[turn_id] = record.where
        turns.append(Turn(turn_id, record.text("speaker"), record.text("text"), at, record.operations()))

    def _session_time(self, record: _Record, dialogue: str, session: str) -> datetime | None:
        key, at = (dialogue, session), record.time("at")
        known = self.times.setdefault(key, at)
        if at is not None and at != known:
            raise DialogueError(f"{record.where}: field 'at' is {at}, but session {session!r} began at {known}")
        return known

    def add_question(self, record: _Record) -> None:
        dialogue = record.text("dialogue", self.default)
        question = Question(
            id=record.text("id", f"{dialogue}/q{len(self.questions) + 1}"),
            dialogue_id=dialogue,
            text=record.text("question"),
            answer=record.text("answer"),
            category=record.text("category", "all"),
            evidence=record.texts("evidence"),
            asked_at=record.time("asked_at"),
        )
        self.questions.append((question, record.where))

    def build(self, path: Path) -> DialogueFile:
        if not self.sessions:
            raise DialogueError(f"{path}: holds no turns, expected at least one")
        dialogues = tuple(
            Dialogue(name, tuple(Session(s, self.times[(name, s)], tuple(turns)) for s, turns in sessions.items()))
            for name, sessions in self.sessions.items()
        )
        self._check_questions()
        for dialogue in dialogues:
            self._check_operations(dialogue)
        return DialogueFile(dialogues, tuple(question for question, _ in self.questions))

    def _check_operations(self, dialogue: Dialogue) -> None:
        """What gold operations replace must have been written before, and not been replaced since."""
        live: set[str] = set()
        for turn in dialogue.turns:
            for operation in turn.operations or ():
                if operation.old is not None and operation.old not in live:
                    raise DialogueError(
                        f"{self.turn_places[turn.id]}: the {operation.op} replaces {operation.old!r:.60}, "
                        "expected a text that an earlier operation of the dialogue wrote and none replaced"
                    )
                live.discard(operation.old or "")
                live |= {operation.text} if operation.text is not None else set()

    def _check_questions(self) -> None:
        seen: set[str] = set()
        for question, where in self.questions:
            if question.id in seen:
                raise DialogueError(f"{where}: question id {question.id!r} appears twice, expected unique ids")
            seen.add(question.id)
            if question.dialogue_id not in self.sessions:
                raise DialogueError(f"{where}: field 'dialogue' is {question.dialogue_id!r}, which has no turns here")
            missing = [turn_id for turn_id in question.evidence if turn_id not in self.turn_places]
            if missing:
                raise DialogueError(f"{where}: field 'evidence' names {missing[0]!r}, which is no turn of this file")
