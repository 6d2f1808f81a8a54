"""Lessons of the memory manager: gold operations replayed over a bank, shown as prompts and replies."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from memory_r1.bank import Bank, HashingEmbedder, OperationKind
from memory_r1.bench.dataset import load_dataset
from memory_r1.dialogue import Dialogue, GoldOperation, Question, Session, Turn, save_dialogues
from memory_r1.errors import InputError
from memory_r1.lives import invent
from memory_r1.memory import Fact, TurnExtractor
from memory_r1.memory.manage import ManagerSettings, manager_reply, parse_decision
from memory_r1.memory.reply import find_json
from memory_r1.policy import ScriptedPolicy
from memory_r1.rl.settings import TrainSettings
from memory_r1.rl.tasks.lessons import GoldManager, Lessons, LessonSettings, fewer_noops, lessons
from memory_r1.rl.tasks.reward import each, em
from memory_r1.rl.tasks.task import Task, manager_task
from memory_r1.rl.types import Demonstration

ADD, UPDATE, DELETE, NOOP = OperationKind
ONE, TWO = "Ann has a dog, Buddy.", "Ann has two dogs, Buddy and Scout."
TALK: tuple[tuple[str, tuple[GoldOperation, ...] | None], ...] = (
    ("I have a dog, Buddy", (GoldOperation("ADD", ONE),)),
    ("Nice weather", ()),
    ("I got a second dog, Scout", (GoldOperation("UPDATE", TWO, ONE), GoldOperation("ADD", "Ann likes dogs."))),
    ("The dogs live with Bob now", (GoldOperation("DELETE", old=TWO),)),
)


def said(talk: Sequence[tuple[str, tuple[GoldOperation, ...] | None]]) -> Dialogue:
    turns = tuple(
        Turn(f"t{number}", "Ann", text, datetime(2024, 5, 1), gold) for number, (text, gold) in enumerate(talk, start=1)
    )
    return Dialogue("d", (Session("s", datetime(2024, 5, 1), turns),))


def taught(talk: Sequence[tuple[str, tuple[GoldOperation, ...] | None]], k: int = 5) -> Lessons:
    return lessons(said(talk), TurnExtractor(), k=k, embedder=HashingEmbedder(64))


def test_each_turn_is_shown_with_the_entries_its_bank_holds_and_the_gold_reply() -> None:
    made = taught(TALK)
    assert [lesson.id for lesson in made.demonstrations] == ["d/t1", "d/t2", "d/t3", "d/t4"]
    assert [lesson.reply for lesson in made.demonstrations[:3]] == [
        manager_reply([(1, ADD, None, ONE)]),
        manager_reply([(1, NOOP, None, None)]),
        manager_reply([(1, UPDATE, 0, TWO), (1, ADD, None, "Ann likes dogs.")]),
    ]
    assert f"0. [1 May 2024] Ann: {ONE}" in made.demonstrations[2].prompt[-1]["content"]
    assert (made.found, made.missed) == (2, 0)


def test_a_deletion_names_the_number_under_which_the_entry_is_shown() -> None:
    last = taught(TALK).demonstrations[-1]
    lines = last.prompt[-1]["content"].splitlines()
    number = next(int(line.split(".")[0]) for line in lines if line.endswith(TWO))
    assert last.reply == manager_reply([(1, DELETE, number, None)])


def test_what_was_not_retrieved_is_added_or_left_alone_and_counted() -> None:
    crowd = [(f"Scout number {n}", (GoldOperation("ADD", f"I got a second dog, Scout number {n}."),)) for n in range(3)]
    made = taught([TALK[0], *crowd, *TALK[2:]], k=1)
    changed, deleted = made.demonstrations[-2:]
    assert changed.reply == manager_reply([(1, ADD, None, TWO), (1, ADD, None, "Ann likes dogs.")])
    blind = deleted.reply == manager_reply([(1, NOOP, None, None)])
    assert (made.found, made.missed) == ((0, 2) if blind else (1, 1))


def test_turns_without_gold_operations_teach_nothing_and_are_added() -> None:
    made = taught([("I have a cat", None), TALK[1]])
    assert [lesson.id for lesson in made.demonstrations] == ["d/t2"]
    assert "Ann: I have a cat" in made.demonstrations[0].prompt[-1]["content"]
    assert taught([("I have a cat", None)]) == Lessons(())


def test_several_facts_of_one_turn_cannot_be_told_apart_and_teach_nothing() -> None:
    class Twice(TurnExtractor):
        def extract(self, turns: Sequence[Turn]) -> list[Fact]:
            return super().extract(turns) * 2

    assert lessons(said(TALK), Twice(), embedder=HashingEmbedder(64)).demonstrations == ()


def test_an_update_whose_entry_is_gone_adds_its_text_and_a_deletion_does_nothing() -> None:
    manager = GoldManager.of(said(TALK))
    assert manager is not None
    bank = Bank.open(":memory:", embedder=HashingEmbedder(64))
    facts = TurnExtractor().extract(said(TALK).turns)
    assert [one.kind for one in manager.decide(facts[2:3], bank).operations] == [ADD, ADD]
    assert [one.kind for one in manager.decide(facts[3:4], bank).operations] == [NOOP]


def test_replaying_the_replies_themselves_leaves_the_same_bank_where_nothing_was_missed() -> None:
    dialogue = invent(1).dialogues[0]
    made = lessons(dialogue, TurnExtractor(), k=50, embedder=HashingEmbedder(64))
    assert made.missed == 0
    assert made.found > 5
    gold, replayed = (Bank.open(":memory:", embedder=HashingEmbedder(64)) for _ in range(2))
    manager = GoldManager.of(dialogue)
    assert manager is not None
    for turn, lesson in zip(dialogue.turns, made.demonstrations, strict=True):
        facts = TurnExtractor().extract([turn])
        numbered = [line for line in lesson.prompt[-1]["content"].splitlines() if line[0:1].isdigit()][:-1]
        texts = {entry.text: entry for entry in replayed.entries()}
        related = [texts[line.split(": ", 1)[1]] for line in numbered]
        replayed.apply(parse_decision(find_json(lesson.reply), facts, related).operations, decided_by="reply")
        gold.apply(manager.decide(facts, gold).operations, decided_by="gold")
    assert [entry.text for entry in replayed.entries()] == [entry.text for entry in gold.entries()]


OWN: tuple[tuple[str, tuple[GoldOperation, ...] | None], ...] = (
    TALK[0],
    ("I got a second dog, Scout", (GoldOperation("UPDATE", TWO, ONE),)),
    ("A third one, Rex, and I love them", (GoldOperation("UPDATE", "three dogs", TWO), GoldOperation("ADD", "love"))),
    ("The dogs live with Bob now", (GoldOperation("DELETE", old="three dogs"),)),
)


def own_words(talk: Sequence[tuple[str, tuple[GoldOperation, ...] | None]], k: int = 5) -> Lessons:
    return lessons(said(talk), TurnExtractor(), k=k, own_words=True, embedder=HashingEmbedder(64))


def memories(lesson: Demonstration) -> list[str]:
    return lesson.prompt[-1]["content"].split("\n\n")[0].splitlines()[1:]


def test_an_operation_alone_about_a_turn_keeps_its_words_and_is_found_by_the_gold_text_it_stands_for() -> None:
    made = own_words(OWN)
    first, second, third, last = made.demonstrations
    assert first.reply == manager_reply([(1, ADD, None, None)])
    assert memories(second) == ["0. [1 May 2024] Ann: I have a dog, Buddy"]
    assert second.reply == manager_reply([(1, UPDATE, 0, None)])
    assert memories(third) == [
        "0. [1 May 2024] Ann: I got a second dog, Scout (before, 1 May 2024: I have a dog, Buddy)"
    ]
    assert third.reply == manager_reply([(1, UPDATE, 0, "three dogs"), (1, ADD, None, "love")])
    number = next(line.split(".")[0] for line in memories(last) if line.endswith("three dogs"))
    assert last.reply == manager_reply([(1, DELETE, int(number), None)])
    assert (made.found, made.missed) == (3, 0)


def test_an_update_whose_entry_is_not_shown_adds_the_turns_own_words() -> None:
    crowd = [(f"I got a second dog, Scout number {n}", (GoldOperation("ADD", f"gold {n}"),)) for n in range(3)]
    made = own_words([TALK[0], *crowd, OWN[1]], k=1)
    assert made.missed == 1
    assert made.demonstrations[-1].reply == manager_reply([(1, ADD, None, None)])


def test_of_two_adds_about_one_turn_neither_keeps_its_words() -> None:
    two = (GoldOperation("ADD", ONE), GoldOperation("ADD", "Ann likes dogs."))
    made = lessons(said([("I love dogs, I have Buddy", two)]), TurnExtractor(), own_words=True)
    assert made.demonstrations[0].reply == manager_reply([(1, ADD, None, ONE), (1, ADD, None, "Ann likes dogs.")])


@pytest.mark.parametrize(("noops", "left"), [(0.0, 0), (0.5, 1), (1.0, 2), (9.0, 6)])
def test_noops_are_thinned_to_a_multiple_of_the_lessons_that_change_something(noops: float, left: int) -> None:
    idle = manager_reply([(1, NOOP, None, None)])
    talk = [*(("Nice weather", ()) for _ in range(6)), TALK[0], ("I got a cat", (GoldOperation("ADD", "A cat"),))]
    shown = taught(talk).demonstrations
    kept = fewer_noops(shown, noops, seed=0)
    assert [one.reply == idle for one in kept] == [True] * left + [False, False]
    assert kept == fewer_noops(shown, noops, seed=0)
    assert [one for one in shown if one in kept] == kept


def test_a_negative_share_of_noops_is_refused() -> None:
    with pytest.raises(InputError, match=r"lessons.noops is -1, expected 0 or more"):
        LessonSettings(noops=-1)


# The training task


def task(tmp_path: Path, talk: Sequence[tuple[str, tuple[GoldOperation, ...] | None]]) -> Task:
    question = Question("q", "d", "How many dogs does Ann have?", "two", evidence=("t1", "t3"))
    save_dialogues(tmp_path / "mine.jsonl", [said(talk)], [question])
    dataset = load_dataset(tmp_path / "mine.jsonl")
    extractor = dataset.extractor("turns")
    return manager_task(
        dataset,
        TrainSettings(),
        extractor,
        ManagerSettings(),
        each(em),
        ScriptedPolicy(["Relevant: 1\nAnswer: two"]),
        embedder=HashingEmbedder(64),
    )


def test_the_warm_start_imitates_gold_operations_where_the_file_has_them(tmp_path: Path) -> None:
    made = task(tmp_path, TALK)
    own = lessons(said(TALK), TurnExtractor(), own_words=True, embedder=HashingEmbedder(64))
    assert tuple(made.demonstrations) == own.demonstrations
    assert "0. [1 May 2024] Ann: I have a dog, Buddy" in made.episodes[1].prompt[-1]["content"]


def test_without_gold_operations_it_imitates_adding_the_turns_asked_about(tmp_path: Path) -> None:
    made = task(tmp_path, [(text, None) for text, _ in TALK])
    replies = [lesson.reply for lesson in made.demonstrations]
    assert replies == [manager_reply([(1, ADD, None, None)])] * 2


@pytest.mark.parametrize("part", ["train", "held-out"])
def test_invented_lives_make_lessons_whose_entries_are_mostly_found(part: str) -> None:
    made = lessons(invent(2, 1, part).dialogues[0], TurnExtractor(), embedder=HashingEmbedder(256))  # type: ignore[arg-type]
    assert made.found >= 0.9 * (made.found + made.missed)
