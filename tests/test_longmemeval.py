"""LongMemEval's file: what is read of it, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import real_data
from memory_r1.bench.dataset import load_dataset
from memory_r1.bench.longmemeval import ORACLE_SHA256, TYPES, load_longmemeval
from memory_r1.errors import DialogueError


def record(**changes: Any) -> dict[str, Any]:
    """One question whose later session stands first, as some in the official file do."""
    return {
        "question_id": "q1",
        "question_type": "multi-session",
        "question": "How many ducks do I keep?",
        "answer": 5,
        "question_date": "2023/06/01 (Thu) 09:30",
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/02 (Tue) 18:00"],
        "haystack_session_ids": ["later", "earlier"],
        "haystack_sessions": [
            [
                {"role": "user", "content": "Two more ducks hatched.", "has_answer": True},
                {"role": "assistant", "content": "Congratulations!", "has_answer": False},
            ],
            [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": "Hi there"},
                {"role": "user", "content": "I keep three ducks.", "has_answer": True},
            ],
        ],
        "answer_session_ids": ["later", "earlier"],
        **changes,
    }


def written(folder: Path, *records: object, name: str = "lme.json") -> Path:
    path = folder / name
    content = json.dumps(records).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def test_each_question_has_a_dialogue_of_its_own_with_its_sessions_in_the_order_of_their_dates(tmp_path: Path) -> None:
    file = load_longmemeval(written(tmp_path, record(), record(question_id="q2")))
    assert [dialogue.id for dialogue in file.dialogues] == ["q1", "q2"]
    [first, _] = file.dialogues
    assert [session.id for session in first.sessions] == ["earlier", "later"]
    assert [turn.id for turn in first.turns] == ["earlier:1", "earlier:2", "earlier:3", "later:1", "later:2"]
    assert (first.turns[2].speaker, first.turns[2].text) == ("user", "I keep three ducks.")
    assert first.turns[0].at == datetime(2023, 5, 2, 18)


def test_a_question_knows_its_type_its_date_its_evidence_and_the_sessions_that_answer_it(tmp_path: Path) -> None:
    file = load_longmemeval(written(tmp_path, record()))
    [question] = file.questions
    assert (question.text, question.answer, question.category) == ("How many ducks do I keep?", "5", "multi-session")
    assert question.asked_at == datetime(2023, 6, 1, 9, 30)
    assert question.evidence == ("later:1", "earlier:3")
    assert file.answer_sessions == {"q1": ("later", "earlier")}
    assert question.answerable


def test_a_question_about_what_was_never_said_cannot_be_answered_and_has_no_evidence(tmp_path: Path) -> None:
    [question] = load_longmemeval(written(tmp_path, record(question_id="q1_abs"))).questions
    assert not question.answerable
    assert question.evidence == ()


def test_a_packed_file_is_the_file_that_is_in_it(tmp_path: Path) -> None:
    plain, packed = (load_longmemeval(written(tmp_path, record(), name=name)) for name in ("a.json", "a.json.gz"))
    assert packed == plain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question_type": "riddle"}, r"q1: question_type is 'riddle', expected one of: single-session-user"),
        ({"question_date": "June"}, r"q1: question_date is 'June', expected a time such as '2023/04/10 \(Mon\) 23:07'"),
        ({"haystack_dates": []}, r"q1: 2 haystack_session_ids, 0 dates and 2 sessions, expected as many of each"),
        ({"answer_session_ids": ["x"]}, r"q1: answer_session_ids has 'x', which is no session of its history"),
        ({"answer": None}, r"q1: field 'answer' is None, expected str or int or float"),
        ({"haystack_sessions": [[], [{"role": "user"}]]}, r"q1, session 'earlier', turn earlier:1: field 'content'"),
        ({"haystack_sessions": [[], "x"]}, r"q1, session 'earlier': expected an id, a date and a list of turns"),
        ({"haystack_session_ids": ["same", "same"]}, r"dialogue 'q1': turn id 'same:1' appears twice"),
    ],
)
def test_what_breaks_the_schema_is_named_by_question_and_field(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(DialogueError, match=said):
        load_longmemeval(written(tmp_path, record(**changes)))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{}", "got dict, expected a JSON list"), (b"[", "not JSON"), (b"[1]", "record 1: got int, expected a JSON obj")],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "other.json").write_bytes(content)
    with pytest.raises(DialogueError, match=said):
        load_longmemeval(tmp_path / "other.json")


def test_a_packed_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, record(), name="lme.json.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DialogueError, match=r"lme\.json\.gz: cannot be read"):
        load_longmemeval(path)


def test_a_packed_file_that_was_altered_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, record(), name="lme.json.gz")
    content = bytearray(path.read_bytes())
    content[20:60] = b"\xff" * 40
    path.write_bytes(bytes(content))
    for load in (load_longmemeval, load_dataset):
        with pytest.raises(DialogueError, match=r"lme\.json\.gz: cannot be read"):
            load(path)


def test_the_official_oracle_file_is_read_whole() -> None:
    file = load_longmemeval(real_data("longmemeval_oracle.json.gz"))
    assert file.sha256 == ORACLE_SHA256
    assert Counter(question.category for question in file.questions) == dict(
        zip(TYPES, (70, 30, 56, 133, 78, 133), strict=True)
    )
    assert sum(not question.answerable for question in file.questions) == 30
    assert all(question.evidence for question in file.questions if question.answerable)
    assert sum(len(dialogue.turns) for dialogue in file.dialogues) == 10960
