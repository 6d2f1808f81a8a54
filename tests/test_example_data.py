"""The bundled example file keeps its promises: long dialogues, honest evidence, answers a reader can find."""

import re
from collections import Counter
from datetime import datetime
from itertools import pairwise

import pytest

from memory_r1.data import example_path
from memory_r1.dialogue import Dialogue, DialogueFile, Question, load_dialogues

CATEGORIES = {"single-hop", "multi-hop", "temporal", "update"}
STOP_WORDS = {"a", "an", "and", "from", "he", "her", "his", "in", "is", "of", "on", "she", "the", "to", "too"}
DIALOGUES = ("ines-tom", "ravi-hanna")


@pytest.fixture(scope="module")
def example() -> DialogueFile:
    return load_dialogues(example_path())


def session_times(dialogue: Dialogue) -> list[datetime]:
    return [session.at for session in dialogue.sessions if session.at is not None]


def content_words(text: str) -> list[str]:
    """Lower-case words without stop words; "9th" counts as "9", "1,100" stays whole."""
    words = re.findall(r"\w+(?:[,.]\d+)?", re.sub(r"(\d)(?:st|nd|rd|th)\b", r"\1", text.lower()))
    return [word for word in words if word not in STOP_WORDS]


def evidence_texts(example: DialogueFile, question: Question) -> list[str]:
    texts = {turn.id: turn.text for turn in example.dialogue(question.dialogue_id).turns}
    return [texts[turn_id] for turn_id in question.evidence]


def test_the_file_holds_the_training_dialogue_and_the_held_out_one(example: DialogueFile) -> None:
    assert tuple(dialogue.id for dialogue in example.dialogues) == DIALOGUES


@pytest.mark.parametrize("name", DIALOGUES)
def test_a_dialogue_has_two_speakers_who_take_turns(example: DialogueFile, name: str) -> None:
    dialogue = example.dialogue(name)
    assert len(dialogue.speakers) == 2
    for session in dialogue.sessions:
        speakers = [turn.speaker for turn in session.turns]
        assert all(first != second for first, second in pairwise(speakers))


@pytest.mark.parametrize("name", DIALOGUES)
def test_a_dialogue_runs_over_months_in_order_of_time(example: DialogueFile, name: str) -> None:
    dialogue = example.dialogue(name)
    times = session_times(dialogue)
    assert len(times) == len(dialogue.sessions) >= 6
    assert times == sorted(set(times))
    assert (times[-1] - times[0]).days >= 150


def test_the_two_dialogues_share_no_speaker(example: DialogueFile) -> None:
    first, second = (set(example.dialogue(name).speakers) for name in DIALOGUES)
    assert not first & second


@pytest.mark.parametrize("name", DIALOGUES)
def test_every_category_has_at_least_a_sixth_of_the_questions(example: DialogueFile, name: str) -> None:
    questions = example.questions_of([name])
    counts = Counter(question.category for question in questions)
    assert len(questions) >= 40
    assert set(counts) == CATEGORIES
    assert min(counts.values()) * 6 >= len(questions)


def test_no_answer_is_longer_than_six_words(example: DialogueFile) -> None:
    assert [question.id for question in example.questions if len(question.answer.split()) > 6] == []


def test_every_evidence_turn_belongs_to_the_dialogue_of_its_question(example: DialogueFile) -> None:
    turn_ids = {name: {turn.id for turn in example.dialogue(name).turns} for name in DIALOGUES}
    strays = [
        question.id for question in example.questions if not set(question.evidence) <= turn_ids[question.dialogue_id]
    ]
    assert strays == []


def test_a_question_rests_on_as_many_turns_as_its_category_says(example: DialogueFile) -> None:
    sizes = {"single-hop": {1}, "multi-hop": {2, 3, 4}, "temporal": {1, 2}, "update": {1, 2, 3}}
    assert [q.id for q in example.questions if len(q.evidence) not in sizes[q.category]] == []


def test_most_words_of_the_non_temporal_answers_stand_in_their_evidence(example: DialogueFile) -> None:
    found = [
        word in content_words(" ".join(evidence_texts(example, question)))
        for question in example.questions
        if question.category != "temporal"
        for word in content_words(question.answer)
    ]
    assert sum(found) >= 0.7 * len(found)


def test_no_two_questions_have_the_same_wording(example: DialogueFile) -> None:
    texts = Counter(question.text.casefold() for question in example.questions)
    assert [text for text, count in texts.items() if count > 1] == []
