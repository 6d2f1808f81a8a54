"""The answer agent's episodes: what a reply earns, and what a demonstration shows."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime

import pytest

from memory_r1.bank import Bank, Entry, HashingEmbedder, Operation
from memory_r1.bench.judge import Answered
from memory_r1.dialogue import Question
from memory_r1.memory.answer import AnswerSettings
from memory_r1.policy.base import Completion
from memory_r1.rl.tasks.answer_episodes import AnswerEpisode, answer_episodes
from memory_r1.rl.tasks.reward import RewardName, answer_reward, each, em, f1, mix, typed

SETTINGS = AnswerSettings(k=5, per_speaker=False)
ENTRIES = tuple(
    Entry(f"e{i}", text, speaker="Ann", turn_ids=(f"t{i}",))
    for i, text in enumerate(["I like tea", "My dog is called Rex", "I moved to Lisbon", "Rex is a black dog"], start=1)
)
QUESTION = Question("q1", "d1", "What is the dog called?", "Rex", evidence=("t2", "t4"))
EPISODE = AnswerEpisode(QUESTION, ENTRIES, SETTINGS, each(em))


# The reward


@pytest.mark.parametrize(
    ("reply", "value", "well_formed", "distilled"),
    [
        ("Relevant: 2, 4\nAnswer: Rex", 1.0, 1.0, 2),
        ("Relevant: 2\nAnswer: Max", 0.0, 1.0, 1),
        ("Relevant: none\nAnswer: rex.", 1.0, 1.0, 0),
        ("Relevant: 9, 2, 2\nAnswer: Rex", 1.0, 1.0, 1),  # numbers of no entry, and repeated ones, count for nothing
        ("Rex", 1.0, 0.0, 0),  # no format at all: the whole reply is the answer
        ("Answer: Rex", 1.0, 0.0, 0),  # half of it
        ("Relevant: 2\nAnswer:", 0.0, 0.0, 1),
        ("", 0.0, 0.0, 0),
        ("   \n ", 0.0, 0.0, 0),
        ("\ufffd\ufffd Relevant Relevant: 2 Answer", 0.0, 0.0, 1),
    ],
)
def test_a_reply_earns_by_its_answer_alone_and_malformed_ones_never_raise(
    reply: str, value: float, well_formed: float, distilled: int
) -> None:
    reward = EPISODE.reward(Completion(reply))
    assert reward.value == value
    assert reward.parts == {"exact_match": value, "well_formed": well_formed, "distilled": distilled}


@pytest.mark.parametrize(("reply", "value"), [("Relevant: 2\nAnswer: Rex", 1.0), ("Rex", 0.75), ("", -0.25)])
def test_the_format_coefficient_is_taken_off_a_malformed_reply(reply: str, value: float) -> None:
    assert replace(EPISODE, format_coef=0.25).reward(Completion(reply)).value == value


def test_an_empty_answer_earns_nothing_under_any_reward() -> None:
    always = replace(EPISODE, earn=each(lambda answer, gold: 1.0))
    assert always.reward(Completion("")).value == 0


def test_the_same_completion_always_earns_the_same() -> None:
    replies = [Completion("Relevant: 2\nAnswer: Rex"), Completion("nonsense")]
    assert [EPISODE.reward(one) for one in replies] == [EPISODE.reward(one) for one in replies]


def test_a_reply_cannot_earn_by_repeating_the_question_or_its_memories() -> None:
    for reply in (EPISODE.prompt[-1]["content"], "\n".join(entry.text for entry in ENTRIES)):
        assert EPISODE.reward(Completion(reply)).value == 0


def test_each_reward_gives_the_number_worked_by_hand() -> None:
    answer, gold = "black dog", "big black dog"  # 2 of 2 and 2 of 3 tokens: F1 is 2 * 2 / 5
    assert em(answer, gold) == 0
    assert f1(answer, gold) == pytest.approx(0.8)
    assert typed(answer, gold) == pytest.approx(0.8)
    assert mix(answer, gold) == pytest.approx(0.4)
    assert mix(gold, gold) == 1.0
    assert f1("8 May 2023", "7 May 2023") == pytest.approx(2 / 3)
    assert typed("8 May 2023", "7 May 2023") == 0  # a date is right or wrong
    pairs = [Answered("?", answer, gold), Answered("?", gold, gold)]
    named: dict[RewardName, float] = {"em": 0.0, "f1": 0.8, "typed": 0.8, "mix": 0.4}
    for name, value in named.items():
        assert answer_reward(name)(pairs) == pytest.approx([value, 1.0])


# Demonstrations


def test_a_demonstration_shows_the_entries_with_evidence_and_the_gold_answer() -> None:
    shown = EPISODE.demonstration()
    assert shown.reply == "Relevant: 2, 4\nAnswer: Rex"
    assert shown.prompt == EPISODE.prompt
    assert shown.id == "q1"


def test_a_demonstration_earns_the_whole_reward() -> None:
    reward = EPISODE.reward(Completion(EPISODE.demonstration().reply))
    assert reward.value == reward.parts["well_formed"] == 1


def test_the_numbers_of_a_shuffled_demonstration_still_name_the_evidence() -> None:
    shuffle, replies = random.Random(0), set()
    for _ in range(20):
        shown = EPISODE.demonstration(shuffle)
        lines = shown.prompt[-1]["content"].splitlines()
        numbers = shown.reply.splitlines()[0].removeprefix("Relevant: ").split(", ")
        named = {line for line in lines if line.split(".")[0] in numbers}
        assert {line.split("Ann: ")[1] for line in named} == {"My dog is called Rex", "Rex is a black dog"}
        replies.add(shown.reply)
    assert len(replies) > 3


def test_shuffling_leaves_the_episode_as_it_was() -> None:
    before = EPISODE.prompt
    EPISODE.demonstration(random.Random(1))
    assert EPISODE.prompt == before


def test_without_distillation_a_demonstration_is_the_answer_alone() -> None:
    assert replace(EPISODE, settings=AnswerSettings(distill=False)).demonstration().reply == "Answer: Rex"


def test_a_demonstration_without_retrieved_evidence_names_no_entry() -> None:
    assert replace(EPISODE, entries=ENTRIES[:1]).demonstration().reply == "Relevant: none\nAnswer: Rex"


@pytest.mark.parametrize(
    ("evidence", "entries", "answerable"),
    [(("t2",), ENTRIES, True), (("t9", "t2"), ENTRIES, True), (("t9",), ENTRIES, False), ((), ENTRIES[:1], True)],
)
def test_a_question_is_answerable_where_evidence_was_retrieved_or_none_is_known(
    evidence: tuple[str, ...], entries: tuple[Entry, ...], answerable: bool
) -> None:
    assert AnswerEpisode(replace(QUESTION, evidence=evidence), entries, SETTINGS, each(em)).answerable is answerable


# From a bank


def test_episodes_hold_what_the_bank_retrieves_now() -> None:
    with Bank.open(":memory:", embedder=HashingEmbedder()) as bank:
        assert answer_episodes(bank, [QUESTION], SETTINGS, each(em)) == []  # nothing retrieved, nothing to learn from
        said = datetime(2023, 5, 8)
        bank.apply([Operation.add("My dog is called Rex", speaker="Ann", said_at=said, turn_ids=["t2"])])
        (episode,) = answer_episodes(bank, [QUESTION], SETTINGS, each(em), format_coef=0.1)
        bank.apply([Operation.add("The dog is called Max now", speaker="Ann")])
    assert [entry.text for entry in episode.entries] == ["My dog is called Rex"]
    assert episode.id == "q1"
    assert episode.format_coef == 0.1
    body = episode.prompt[-1]["content"]
    assert "1. [8 May 2023] Ann: My dog is called Rex" in body
    assert "Question: What is the dog called?" in body
    assert not any("Rex" in line for line in body.splitlines() if "Ann" not in line)  # the gold answer is not shown
