"""Invented lives: the same for the same seed, honest about dates, evidence and what a bank should hold at the end."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from datetime import date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.bank import Bank, HashingEmbedder
from memory_r1.bench.dates import find_spans
from memory_r1.bench.metrics import groundedness, typed
from memory_r1.dialogue import Dialogue, Question, load_dialogues, save_dialogues
from memory_r1.errors import InputError
from memory_r1.lives import Invented, invent, when
from memory_r1.lives.plot import fill
from memory_r1.lives.stories import Part
from memory_r1.memory import TurnExtractor
from memory_r1.memory.dates import absolute_dates
from memory_r1.rl.tasks.lessons import GoldManager

CATEGORIES = {"single-hop", "multi-hop", "temporal", "update", "open"}
PARTS: tuple[Part, Part] = ("train", "held-out")


@pytest.fixture(scope="module", params=["train", "held-out"])
def made(request: pytest.FixtureRequest) -> Invented:
    return invent(3, 8, request.param)


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    assert invent(5, 2) == invent(5, 2)
    assert invent(5, 2).dialogues[0] == invent(5, 1).dialogues[0]
    assert invent(5, 1).dialogues[0].turns != invent(6, 1).dialogues[0].turns


def test_the_text_does_not_depend_on_the_process_that_writes_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memory_r1.lives", "--seed", "5", "--dialogues", "2", "--out"]
    for name in ("a", "b"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True)
    save_dialogues(tmp_path / "here", invent(5, 2).dialogues, invent(5, 2).questions)
    assert len({(tmp_path / name).read_bytes() for name in ("a", "b", "here")}) == 1


def test_no_dialogues_are_refused() -> None:
    with pytest.raises(InputError, match="dialogues is 0"):
        invent(0, 0)


def test_a_file_of_them_comes_back_as_it_was_written(tmp_path: Path, made: Invented) -> None:
    save_dialogues(tmp_path / "lives.jsonl", made.dialogues, made.questions)
    file = load_dialogues(tmp_path / "lives.jsonl")
    assert (file.dialogues, file.questions) == (made.dialogues, made.questions)


# The talk


def test_two_people_take_turns_over_months(made: Invented) -> None:
    for dialogue in made.dialogues:
        assert len(dialogue.speakers) == 2
        assert 8 <= len(dialogue.sessions) <= 15
        for session in dialogue.sessions:
            assert all(first.speaker != second.speaker for first, second in pairwise(session.turns))
        begun = [session.at for session in dialogue.sessions if session.at]
        assert begun == sorted(set(begun))
        assert (begun[-1] - begun[0]).days >= 56


def test_sessions_have_about_eight_to_twenty_turns(made: Invented) -> None:
    sizes = sorted(len(session.turns) for dialogue in made.dialogues for session in dialogue.sessions)
    assert 10 <= sizes[len(sizes) // 2] <= 18
    assert sizes[0] >= 4
    assert sizes[-1] <= 28


def test_half_the_turns_or_more_hold_nothing_to_keep_and_every_operation_occurs(made: Invented) -> None:
    turns = [turn for dialogue in made.dialogues for turn in dialogue.turns]
    assert 0.45 <= sum(turn.operations == () for turn in turns) / len(turns) <= 0.7
    kinds = Counter(operation.op for turn in turns for operation in turn.operations or ())
    assert kinds["ADD"] > kinds["UPDATE"] > kinds["DELETE"] > 0


def test_a_turn_tells_at_most_two_things_and_some_tell_two(made: Invented) -> None:
    assert max(len(turn.operations or ()) for dialogue in made.dialogues for turn in dialogue.turns) == 2


def test_no_slot_and_no_gap_is_left_in_a_text(made: Invented) -> None:
    texts = [turn.text for dialogue in made.dialogues for turn in dialogue.turns]
    texts += [each for question in made.questions for each in (question.text, question.answer)]
    assert [text for text in texts if any(mark in text for mark in ("{", "}", "  ", " ,", "~", "None"))] == []


def test_the_parts_share_no_turn_and_no_question() -> None:
    train, held = ({turn.text for one in invent(3, 8, part).dialogues for turn in one.turns} for part in PARTS)
    asked, held_asked = ({question.text for question in invent(3, 8, part).questions} for part in PARTS)
    assert train.isdisjoint(held)
    assert asked.isdisjoint(held_asked)


def test_the_parts_have_no_speaker_in_common() -> None:
    train, held = ({name for one in invent(3, 20, part).dialogues for name in one.speakers} for part in PARTS)
    assert train.isdisjoint(held)
    assert min(len(train), len(held)) >= 10


# The questions


def test_each_dialogue_has_25_to_40_questions_of_every_category(made: Invented) -> None:
    for dialogue in made.dialogues:
        questions = [question for question in made.questions if question.dialogue_id == dialogue.id]
        assert 25 <= len(questions) <= 40
        assert {question.category for question in questions} == CATEGORIES
        assert len({question.text for question in questions}) == len(questions)


def test_evidence_is_turns_of_the_questions_own_dialogue(made: Invented) -> None:
    known = {dialogue.id: {turn.id for turn in dialogue.turns} for dialogue in made.dialogues}
    assert all(question.evidence for question in made.questions)
    assert [q.id for q in made.questions if not set(q.evidence) <= known[q.dialogue_id]] == []


def test_answers_are_short_and_a_right_answer_scores_one(made: Invented) -> None:
    assert [q.answer for q in made.questions if len(q.answer.split()) > 6 or typed(q.answer, q.answer) < 1] == []


def live_at_the_end(dialogue: Dialogue) -> Bank:
    """The bank that the gold operations leave."""
    bank, manager = Bank.open(":memory:", embedder=HashingEmbedder(16)), GoldManager.of(dialogue)
    assert manager is not None
    for turn in dialogue.turns:
        bank.apply(manager.decide(TurnExtractor().extract([turn]), bank).operations, decided_by="gold")
    return bank


def supported(question: Question, bank: Bank) -> bool:
    """Whether what the evidence left in the bank says the answer; yes, no and counts are worked out from it."""
    texts = [entry.text for entry in bank.entries() if set(entry.turn_ids) & set(question.evidence)]
    if question.category == "open" or "number" in question.text or "How many" in question.text:
        return bool(texts)
    return groundedness(question.answer, texts) == 1


def test_the_bank_at_the_end_says_every_gold_answer(made: Invented) -> None:
    banks = {dialogue.id: live_at_the_end(dialogue) for dialogue in made.dialogues}
    assert [f"{q.text} {q.answer}" for q in made.questions if not supported(q, banks[q.dialogue_id])] == []


def test_the_bank_at_the_end_holds_what_is_current_and_not_what_was_replaced(made: Invented) -> None:
    for dialogue in made.dialogues:
        gold = [operation for turn in dialogue.turns for operation in turn.operations or ()]
        replaced = {operation.old for operation in gold if operation.old}
        current = {operation.text for operation in gold if operation.text} - replaced
        live = {entry.text for entry in live_at_the_end(dialogue).entries()}
        assert live == current
        assert len(replaced) >= 5


# The dates

DAYS = st.dates(date(2015, 1, 10), date(2035, 1, 1))


def named(answer: str) -> tuple[date, date]:
    (span,) = find_spans(answer)
    return span.start, span.end


@settings(max_examples=200, deadline=None)
@given(at=DAYS, back=st.integers(2, 80), seed=st.integers(0, 10**6))
def test_a_past_time_lies_between_its_bounds_and_its_answer_names_it(at: date, back: int, seed: int) -> None:
    told = when.past(at, at - timedelta(back), random.Random(seed))
    first, last = named(told.answer)
    assert at - timedelta(back) < told.first <= first <= last <= told.last <= at + timedelta(0)
    assert named(told.on) == (first, last)


@settings(max_examples=200, deadline=None)
@given(at=DAYS, ahead=st.integers(0, 60), room=st.integers(3, 60), seed=st.integers(0, 10**6))
def test_a_future_time_lies_between_its_bounds_and_its_answer_names_it(
    at: date, ahead: int, room: int, seed: int
) -> None:
    after, before = at + timedelta(ahead), at + timedelta(ahead + room)
    told = when.future(at, after, before, random.Random(seed))
    first, last = named(told.answer)
    assert at < first
    assert after < told.first <= first <= last <= told.last < before


@settings(max_examples=200, deadline=None)
@given(at=DAYS, seed=st.integers(0, 10**6))
def test_what_the_extractor_writes_behind_a_phrase_is_the_gold_answer(at: date, seed: int) -> None:
    draw = random.Random(seed)
    for told in (*when._past(at, draw), *when._future(at, draw), when.years_ago(at, draw)):
        written = absolute_dates(told.said, datetime.combine(at, time(12)))
        if written == told.said:  # a day of the calendar, to which only the year is missing
            assert find_spans(f"{told.said.removeprefix('on ')}") or told.said.startswith(("in ", "back in "))
        else:
            assert written == f"{told.said} ({told.answer})"


def test_a_capital_follows_a_full_stop_and_an_stands_before_a_vowel() -> None:
    slots = {"when": "last week", "breed": "otterhound", "subject": "unicycle"}
    assert fill("{when} I got a {breed}. a {subject}, too", slots) == "Last week I got an otterhound. A unicycle, too"
