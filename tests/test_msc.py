"""Multi-Session Chat: questions over it, and the facts that people wrote down of its turns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import real_data
from memory_r1.bench.msc import load_msc_questions, load_msc_sessions
from memory_r1.errors import DialogueError


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "personas": [["I have two jobs."], []],
        "previous_dialogs": [
            {"dialog": [{"text": "Hello"}, {"text": "I have two jobs."}], "time_back": "2 days ago"},
            {"dialog": [{"text": "And how are they?"}]},
        ],
        "dialog": [{"id": "Speaker 2", "text": "Tired!"}, {"id": "Speaker 1", "text": "Poor you."}],
        "self_instruct": {"B": "How many jobs did you say you have?", "A": "Two "},
        **changes,
    }


def told(**changes: Any) -> dict[str, Any]:
    first = [
        {"speaker": "Speaker 1", "text": "Hi!"},
        {"speaker": "Speaker 2", "text": "I have two jobs.", "persona_text": "I work two jobs."},
    ]
    second = [{"speaker": "Speaker 1", "text": "I read a lot.", "persona_text": "I like to read. I own books."}]
    sessions = [{"session": 1, "turns": first}, {"session": 2, "turns": second}]
    return {"initial_data_id": "valid_0", "init_personas": [], "sessions": sessions, **changes}


def written(folder: Path, *records: object, name: str = "msc.jsonl") -> Path:
    path = folder / name
    content = "".join(f"{json.dumps(record)}\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def test_a_question_is_asked_of_the_sessions_before_and_the_one_it_stands_in(tmp_path: Path) -> None:
    file = load_msc_questions(written(tmp_path, asked(), asked()))
    assert [dialogue.id for dialogue in file.dialogues] == ["msc-1", "msc-2"]
    assert [session.id for session in file.dialogues[0].sessions] == ["session_1", "session_2", "session_3"]
    assert [(turn.id, turn.speaker, turn.text) for turn in file.dialogues[0].turns] == [
        ("msc-1:1:1", "Speaker 1", "Hello"),
        ("msc-1:1:2", "Speaker 2", "I have two jobs."),
        ("msc-1:2:1", "Speaker 1", "And how are they?"),
        ("msc-1:3:1", "Speaker 2", "Tired!"),
        ("msc-1:3:2", "Speaker 1", "Poor you."),
    ]
    question = file.questions[0]
    assert (question.dialogue_id, question.answer) == ("msc-1", "Two")
    assert question.text == "How many jobs did you say you have?"


def test_a_conversation_without_a_last_session_has_those_before(tmp_path: Path) -> None:
    [dialogue] = load_msc_questions(written(tmp_path, asked(dialog=[]))).dialogues
    assert len(dialogue.sessions) == 2


def test_what_people_wrote_down_is_a_fact_of_its_turn_and_its_speaker(tmp_path: Path) -> None:
    file = load_msc_sessions(written(tmp_path, told()))
    assert [(fact.text, fact.speaker, fact.turn_ids) for fact in file.facts["valid_0"]] == [
        ("I work two jobs.", "Speaker 2", ("valid_0:1:2",)),
        ("I like to read. I own books.", "Speaker 1", ("valid_0:2:1",)),
    ]
    assert file.questions == ()
    assert [turn.at for turn in file.dialogues[0].turns] == [None] * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"self_instruct": {"B": "q"}}, r"msc-1, self_instruct: field 'A' is missing"),
        ({"self_instruct": "x"}, r"msc-1: field 'self_instruct' is 'x', expected dict"),
        ({"dialog": [{"id": "Speaker 1"}]}, r"msc-1:3:1: field 'text' is missing"),
        ({"previous_dialogs": [3]}, r"msc-1: got int, expected a JSON object"),
        ({"previous_dialogs": [], "dialog": []}, r"dialogue 'msc-1' has no turns"),
    ],
)
def test_a_question_that_breaks_the_schema_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DialogueError, match=said):
        load_msc_questions(written(tmp_path, asked(**changes)))


def test_sessions_that_break_the_schema_are_named(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match=r"valid_0: field 'sessions' is None, expected list"):
        load_msc_sessions(written(tmp_path, told(sessions=None)))
    with pytest.raises(DialogueError, match=r"valid_0:1:1: field 'text' is missing"):
        load_msc_sessions(written(tmp_path, told(sessions=[{"turns": [{"speaker": "Speaker 1"}]}])))


def test_a_line_that_is_not_json_is_named_by_its_number(tmp_path: Path) -> None:
    path = written(tmp_path, asked())
    path.write_text(path.read_text() + "\n{oops\n")
    with pytest.raises(DialogueError, match=r"msc\.jsonl, line 3: not JSON"):
        load_msc_questions(path)
    path.write_text("\n")
    with pytest.raises(DialogueError, match=r"msc\.jsonl: has no records"):
        load_msc_questions(path)


def test_the_official_validation_sessions_are_read_whole() -> None:
    file = load_msc_sessions(real_data("msc_valid_sessions1-4.jsonl.gz"))
    assert len(file.dialogues) == 500
    assert sum(len(dialogue.turns) for dialogue in file.dialogues) == 25459
    assert sum(len(facts) for facts in file.facts.values()) == 16432
