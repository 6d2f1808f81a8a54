"""Multi-Session Chat (arXiv:2107.07567): two crowd workers over a few sessions, and questions about what they said.

Two files are read. MSC-Self-Instruct (MemGPT, arXiv:2310.08560) has a question for each conversation, a JSON object a
line, about so:

    {"previous_dialogs": [{"dialog": [{"text": "I have two jobs."}], "time_back": "2 days ago"}],
     "dialog": [{"id": "Speaker 1", "text": "Hello again!"}],
     "self_instruct": {"B": "How many jobs did you say you have?", "A": "Two"}}

MSC's own sessions have the facts that people wrote down of each turn, a JSON object a line:

    {"initial_data_id": "valid_0",
     "sessions": [{"session": 1, "turns": [{"speaker": "Speaker 2", "text": "I have two jobs.",
                                            "persona_text": "I have two jobs."}]}]}

Turns have no dates, only how long ago a session was, so none is given. Where a turn does not say who speaks, speakers
take turns, Speaker 1 first. Left out: personas that were handed out beforehand, which nobody may ever say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_r1.bench.records import field_of, json_lines, object_of, read_bytes
from memory_r1.dialogue import Dialogue, DialogueFile, Question, Session, Turn
from memory_r1.memory.extract import Fact

_SPEAKERS = ("Speaker 1", "Speaker 2")
_QUESTIONS = "MSC-Self-Instruct, one JSON object a line"
_SESSIONS = "MSC's sessions, one JSON object a line"


@dataclass(frozen=True)
class MscFile(DialogueFile):
    """The dialogues, the questions about them where the file asks any, and what people wrote down of each.

    facts   by dialogue id: the facts that people wrote down, each with its turn; empty in MSC-Self-Instruct
    sha256  of the file's bytes, unpacked, to name it in results
    """

    facts: Mapping[str, tuple[Fact, ...]] = field(default_factory=dict)
    sha256: str = ""


def load_msc_questions(path: Path | str) -> MscFile:
    """Read MSC-Self-Instruct, or another file of its schema; .gz is unpacked.

    Dialogues are named by their place in the file ("msc-1").

    Raises:
        DialogueError: the file is missing, not JSON lines, or breaks the schema; names the record and the field.
    """
    path = Path(path)
    content = read_bytes(path, _QUESTIONS)
    dialogues, questions = [], []
    for number, record in enumerate(json_lines(content, path, _QUESTIONS), start=1):
        name = f"msc-{number}"
        fields = object_of(record, f"{path}, record {number}")
        dialogues.append(Dialogue(name, _asked_sessions(fields, name)))
        asked = object_of(field_of(fields, "self_instruct", dict, name), name)
        text, answer = (field_of(asked, part, str, f"{name}, self_instruct").strip() for part in ("B", "A"))
        questions.append(Question(f"{name}/q", name, text, answer))
    return MscFile(tuple(dialogues), tuple(questions), sha256=hashlib.sha256(content).hexdigest())


def load_msc_sessions(path: Path | str) -> MscFile:
    """Read MSC's sessions with what people wrote down of each turn; .gz is unpacked.

    Raises:
        DialogueError: the file is missing, not JSON lines, or breaks the schema; names the record and the field.
    """
    path = Path(path)
    content = read_bytes(path, _SESSIONS)
    dialogues, facts = [], {}
    for number, record in enumerate(json_lines(content, path, _SESSIONS), start=1):
        fields = object_of(record, f"{path}, record {number}")
        name = field_of(fields, "initial_data_id", str, f"{path}, record {number}")
        records = [object_of(one, name) for one in field_of(fields, "sessions", list, name)]
        sessions = tuple(
            Session(f"session_{place}", None, _turns(one, "turns", f"{name}:{place}"))
            for place, one in enumerate(records, start=1)
        )
        dialogues.append(Dialogue(name, sessions))
        pairs = zip(sessions, records, strict=True)
        facts[name] = tuple(fact for session, one in pairs for fact in _facts(session.turns, one["turns"]))
    return MscFile(tuple(dialogues), facts=facts, sha256=hashlib.sha256(content).hexdigest())


def _asked_sessions(fields: Mapping[str, Any], name: str) -> tuple[Session, ...]:
    """The sessions before, and the one in which the question is asked."""
    records = [*field_of(fields, "previous_dialogs", list, name), fields]
    return tuple(
        Session(f"session_{number}", None, _turns(object_of(record, name), "dialog", f"{name}:{number}"))
        for number, record in enumerate(records, start=1)
        if record is not fields or record.get("dialog")
    )


def _turns(fields: Mapping[str, Any], part: str, where: str) -> tuple[Turn, ...]:
    turns = []
    for place, record in enumerate(field_of(fields, part, list, where)):
        turn_id = f"{where}:{place + 1}"
        said = object_of(record, turn_id)
        speaker = said.get("speaker") or said.get("id") or _SPEAKERS[place % 2]
        turns.append(Turn(turn_id, str(speaker), field_of(said, "text", str, turn_id)))
    return tuple(turns)


def _facts(turns: tuple[Turn, ...], records: list[Any]) -> list[Fact]:
    """What was written down of these turns."""
    notes = (str(record.get("persona_text") or "").strip() for record in records)
    return [Fact(note, turn.speaker, None, (turn.id,)) for turn, note in zip(turns, notes, strict=True) if note]
