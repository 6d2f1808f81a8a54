"""The LoCoMo loader on rows written for this project, and on the real file where it is found."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import real_data
from memory_r1.bench.locomo import NOT_MENTIONED, SPLITS, EvidenceRepair, load_locomo, split
from memory_r1.errors import DialogueError, InputError
from memory_r1.memory.extract import Fact

SAMPLE: dict[str, Any] = {
    "sample_id": "conv-1",
    "conversation": {
        "speaker_a": "Ada",
        "speaker_b": "Ben",
        "session_10_date_time": "12:05 am on 2 June, 2023",
        "session_10": [{"speaker": "Ada", "dia_id": "D10:1", "text": "Back from Rome."}],
        "session_2_date_time": "1:56 pm on 8 May, 2023",
        "session_2": [
            {"speaker": "Ada", "dia_id": "D2:1", "text": "Look!", "blip_caption": "a photo of a red kite"},
            {"speaker": "Ben", "dia_id": "D2:2", "text": "Lovely. I got two cats."},
        ],
        "session_11_date_time": "9:00 am on 3 June, 2023",
    },
    "observation": {
        "session_2_observation": {"Ada": [["Ada flew a kite.", "D2:1"]], "Ben": [["Ben has cats.", ["D2:1", "D2:2"]]]},
        "session_10_observation": {"Ada": [["Ada was in Rome.", "D10:1, D2:1"]]},
    },
    "qa": [
        {"question": "How many cats has Ben?", "answer": 2, "evidence": ["D2:2"], "category": 1},
        {"question": "Who owns a dog?", "adversarial_answer": "Ben", "evidence": ["D2:2"], "category": 5},
        {"question": "Does Ada own a cat?", "answer": "No", "adversarial_answer": "Yes", "evidence": [], "category": 5},
        {"question": "Where?", "answer": "Rome", "evidence": ["D:10:01", "D2:1; D2:2", "D", "D2:9"], "category": 4},
    ],
}  # fmt: skip


def written(tmp_path: Path, *samples: object) -> Path:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps(samples), encoding="utf-8")
    return path


def test_sessions_come_in_order_with_their_times(tmp_path: Path) -> None:
    dialogue = load_locomo(written(tmp_path, SAMPLE)).dialogue("conv-1")
    assert [(session.id, session.at) for session in dialogue.sessions] == [
        ("session_2", datetime(2023, 5, 8, 13, 56)),
        ("session_10", datetime(2023, 6, 2, 0, 5)),
    ]
    assert dialogue.speakers == ("Ada", "Ben")
    assert [turn.id for turn in dialogue.turns] == ["D2:1", "D2:2", "D10:1"]


def test_a_caption_is_part_of_the_turn(tmp_path: Path) -> None:
    turn = load_locomo(written(tmp_path, SAMPLE)).dialogues[0].turns[0]
    assert turn.text == "Look! [shares a photo: a photo of a red kite]"


def test_adversarial_questions_stay_out_and_leave_the_ids_alone(tmp_path: Path) -> None:
    questions = load_locomo(written(tmp_path, SAMPLE)).questions
    assert [(question.id, question.answer, question.category) for question in questions] == [
        ("conv-1/q1", "2", "1"),
        ("conv-1/q4", "Rome", "4"),
    ]


def test_the_trap_of_an_adversarial_question_is_never_its_gold(tmp_path: Path) -> None:
    questions = load_locomo(written(tmp_path, SAMPLE), adversarial=True).questions
    assert [question.answer for question in questions] == ["2", NOT_MENTIONED, "No", "Rome"]


def test_malformed_evidence_is_mended_or_dropped_and_reported(tmp_path: Path) -> None:
    file = load_locomo(written(tmp_path, SAMPLE))
    assert file.questions[1].evidence == ("D10:1", "D2:1", "D2:2")
    assert file.repairs == (
        EvidenceRepair("conv-1/q4", "D:10:01", ("D10:1",)),
        EvidenceRepair("conv-1/q4", "D2:1; D2:2", ("D2:1", "D2:2")),
        EvidenceRepair("conv-1/q4", "D", ()),
        EvidenceRepair("conv-1/q4", "D2:9", ()),
    )
    assert [repair.given for repair in file.dropped] == ["D", "D2:9"]


def test_observations_are_ready_made_facts_when_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, SAMPLE)
    may, june = datetime(2023, 5, 8, 13, 56), datetime(2023, 6, 2, 0, 5)
    assert load_locomo(path, facts=True).facts == {
        "conv-1": (
            Fact("Ada flew a kite.", "Ada", may, ("D2:1",)),
            Fact("Ben has cats.", "Ben", may, ("D2:1", "D2:2")),
            Fact("Ada was in Rome.", "Ada", june, ("D10:1", "D2:1")),
        )
    }
    assert load_locomo(path).facts == {}


def test_the_files_hash_names_it(tmp_path: Path) -> None:
    path = written(tmp_path, SAMPLE)
    assert load_locomo(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def _drop_time(sample: Any) -> None:
    del sample["conversation"]["session_2_date_time"]


def _garble_time(sample: Any) -> None:
    sample["conversation"]["session_2_date_time"] = "yesterday"


def _number_as_text(sample: Any) -> None:
    sample["conversation"]["session_2"][1]["text"] = 7


def _drop_answer(sample: Any) -> None:
    del sample["qa"][3]["answer"]


def _drop_qa(sample: Any) -> None:
    del sample["qa"]


def _bare_fact(sample: Any) -> None:
    sample["observation"]["session_2_observation"]["Ada"] = ["Ada flew a kite."]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_drop_time, "'conv-1'.*'session_2_date_time' is missing"),
        (_garble_time, "'conv-1'.*'session_2_date_time' is 'yesterday', expected a time"),
        (_number_as_text, "'conv-1', session_2, turn 2.*'text' is 7, expected str"),
        (_drop_answer, "conv-1/q4.*'answer' is missing"),
        (_drop_qa, "'conv-1'.*'qa' is missing"),
        (_bare_fact, "conv-1/session_2_observation/Ada: got 'Ada flew a kite.', expected"),
    ],
)
def test_a_broken_schema_is_refused_naming_sample_and_field(
    tmp_path: Path, damage: Callable[[Any], None], named: str
) -> None:
    sample = copy.deepcopy(SAMPLE)
    damage(sample)
    with pytest.raises(DialogueError, match=named):
        load_locomo(written(tmp_path, sample), facts=True)


@pytest.mark.parametrize("content", ["", "not json", '{"a": 1}', "[]", "[7]", b"\xff\xfe\x00"])
def test_a_file_that_is_not_locomo_is_refused(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DialogueError, match=r"other\.json"):
        load_locomo(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match="no such file"):
        load_locomo(tmp_path / "locomo10.json")


def test_an_unknown_split_lists_the_known_ones() -> None:
    assert split("val") == ("conv-30",)
    assert split("conv-44") == ("conv-44",)
    assert len(split("all")) == 10
    with pytest.raises(InputError, match=r"'dev'.*train, val, test, all, conv-26"):
        split("dev")


def test_the_official_file_has_the_published_counts() -> None:
    path = real_data("locomo10.json")
    file = load_locomo(path, facts=True)
    assert {name: len(file.questions_of(split(name))) for name in SPLITS} == {"train": 152, "val": 81, "test": 1307}
    by_category = Counter(question.category for question in file.questions_of(split("test")))
    assert by_category == {"1": 239, "2": 258, "3": 83, "4": 727}
    assert len(load_locomo(path, adversarial=True).questions) == 1986
    assert [repair.given for repair in file.dropped] == ["D10:19", "D", "D4:36"]
    assert all(fact.turn_ids for facts in file.facts.values() for fact in facts)
