"""Memory: every turn is settled once or stays pending with a reason, whatever the model and other writers do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from memory_r1.bank import Bank, HashingEmbedder, Operation, OperationKind
from memory_r1.dialogue import Dialogue, Session, Turn
from memory_r1.errors import BankError, EndpointError, InputError, PromptError, ReplyError
from memory_r1.memory import (
    AddOnlyManager,
    Answer,
    AnswerSettings,
    Decision,
    Fact,
    Failure,
    LLMManager,
    Memory,
    RememberReport,
    TurnExtractor,
)
from memory_r1.policy import Completion, Prompt, Sampling, ScriptedPolicy

MONDAY, TUESDAY = datetime(2023, 5, 8), datetime(2023, 5, 9)
NOOP_REPLY = '{"operations": []}'


@pytest.fixture
def bank() -> Iterator[Bank]:
    with open_bank() as bank:
        yield bank


def open_bank(path: object = ":memory:") -> Bank:
    return Bank.open(str(path), embedder=HashingEmbedder(32))


def dialogue(*sessions: Sequence[str], name: str = "d") -> Dialogue:
    """Sessions of these texts, a day apart, turn ids t1, t2 and so on; Ann and Bob take turns."""
    made, number = [], 0
    for day, texts in enumerate(sessions):
        at, turns = MONDAY.replace(day=MONDAY.day + day), []
        for text in texts:
            number += 1
            turns.append(Turn(f"t{number}", ("Bob", "Ann")[number % 2], text, at))
        made.append(Session(f"s{day}", at, tuple(turns)))
    return Dialogue(name, tuple(made))


def texts(bank: Bank) -> list[str]:
    return [entry.text for entry in bank.entries()]


def pending(bank: Bank) -> list[str]:
    return [turn.id for turn in bank.pending_turns()]


def pairs() -> TurnExtractor:
    return TurnExtractor(turns_at_once=2)


def add_reply(*added: str) -> str:
    items = [{"fact": n, "op": "ADD", "id": None, "text": text} for n, text in enumerate(added, start=1)]
    return json.dumps({"operations": items})


@dataclass
class FakeManager:
    """Adds every fact, after doing what `before` says with the facts."""

    before: Callable[[Sequence[Fact]], object]
    name: str = "fake"
    turns_at_once: int = 64

    def decide(self, facts: Sequence[Fact], bank: Bank) -> Decision:
        self.before(facts)
        return AddOnlyManager().decide(facts, bank)


@dataclass
class Down:
    """A policy that answers these replies and is down from then on."""

    replies: list[str] = field(default_factory=list)
    name: str = "down"

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        if not self.replies:
            raise EndpointError("the endpoint is down")
        return [Completion(self.replies.pop(0)) for _ in prompts]


# Remembering


def test_a_dialogue_is_remembered_whole_with_speakers_dates_and_turn_ids(bank: Bank) -> None:
    report = Memory(bank).remember(dialogue(["I got a dog yesterday", "nice"], ["see you tomorrow"]))
    assert [(e.text, e.speaker, e.said_at, e.turn_ids, e.decided_by) for e in bank.entries()] == [
        ("I got a dog yesterday (7 May 2023)", "Ann", MONDAY, ("t1",), "add-only"),
        ("nice", "Bob", MONDAY, ("t2",), "add-only"),
        ("see you tomorrow (10 May 2023)", "Ann", TUESDAY, ("t3",), "add-only"),
    ]
    assert pending(bank) == []
    assert bank.turn("t1").text == "I got a dog yesterday"
    assert bank.turn("t1").dialogue_id == "d"
    assert report.counts() == {"ADD": 3, "UPDATE": 0, "DELETE": 0, "NOOP": 0, "failed_turns": 0, "turns": 3}


def test_remembering_again_finds_nothing_new(bank: Bank) -> None:
    Memory(bank).remember(dialogue(["a", "b"]))
    before = bank.operations()
    assert Memory(bank).remember(dialogue(["a", "b"])) == RememberReport()
    assert bank.operations() == before


def test_a_dialogue_that_grew_brings_only_its_new_turns(bank: Bank) -> None:
    Memory(bank).remember(dialogue(["a", "b"]))
    report = Memory(bank).remember(dialogue(["a", "b"], ["c"]))
    assert (report.turns, texts(bank)) == (1, ["a", "b", "c"])


def test_what_the_bank_knows_already_counts_as_noop_and_not_as_operation(bank: Bank) -> None:
    report = Memory(bank).remember(dialogue(["tea", "x", "tea"]))
    assert [applied.kind for applied in report.operations] == [OperationKind.ADD, OperationKind.ADD]
    assert [applied.kind for applied in report.noops] == [OperationKind.NOOP]
    assert report.counts()["NOOP"] == 1
    assert report.turns == 3


def test_turns_whose_id_is_known_with_another_text_are_refused_and_nothing_is_stored(bank: Bank) -> None:
    Memory(bank).remember(dialogue(["a"]))
    with pytest.raises(BankError):
        Memory(bank).remember(dialogue(["z", "b"]))
    assert (texts(bank), pending(bank), bank.stats().turns) == (["a"], [], 1)


def test_a_call_of_the_extractor_never_crosses_a_session_or_its_limit(bank: Bank) -> None:
    seen: list[list[str]] = []

    class Watching(TurnExtractor):
        def extract(self, turns: Sequence[Turn]) -> list[Fact]:
            seen.append([turn.id for turn in turns])
            return super().extract(turns)

    Memory(bank, extractor=Watching(turns_at_once=2)).remember(dialogue(["a", "b", "c"], ["d"], ["e", "f"]))
    assert seen == [["t1", "t2"], ["t3"], ["t4"], ["t5", "t6"]]


def test_a_turn_is_stored_before_any_model_sees_it(bank: Bank) -> None:
    seen: list[list[str]] = []
    Memory(bank, manager=FakeManager(lambda facts: seen.append(pending(bank))), extractor=pairs()).remember(
        dialogue(["a", "b", "c"])
    )
    assert seen == [["t1", "t2", "t3"], ["t3"]]


def test_progress_counts_turns_that_are_settled_or_failed(bank: Bank) -> None:
    steps: list[tuple[int, int]] = []
    policy = ScriptedPolicy([NOOP_REPLY, "bad", "bad", NOOP_REPLY])
    memory = Memory(bank, manager=LLMManager(policy), extractor=pairs())
    memory.remember(dialogue(["a", "b", "c", "d", "e"]), lambda done, total: steps.append((done, total)))
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_a_reply_that_names_nothing_that_exists_fails_its_turn_after_one_retry(bank: Bank) -> None:
    reply = '{"operations": [{"fact": 9, "op": "ADD", "id": null, "text": "x"}]}'
    report = Memory(bank, manager=LLMManager(ScriptedPolicy([reply, reply]))).remember(dialogue(["a"]))
    assert [failure.reason for failure in report.failures] == ["ADD names fact 9, expected 1 to 1"]
    assert (report.turns, len(bank.pending_turns())) == (0, 1)


def test_a_prompt_that_cannot_be_completed_fails_its_turn_and_no_other(bank: Bank) -> None:
    class Refusing(ScriptedPolicy):
        def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
            if "poison" in prompts[0][-1]["content"]:
                raise PromptError("the model refused")
            return super().complete(prompts, sampling)

    policy = Refusing(lambda prompt: NOOP_REPLY)
    report = Memory(bank, manager=LLMManager(policy), extractor=TurnExtractor(turns_at_once=1)).remember(
        dialogue(["a", "poison", "c"])
    )
    assert [failure.reason for failure in report.failures] == ["the model refused"]
    assert (report.turns, [turn.text for turn in bank.pending_turns()]) == (2, ["poison"])


def test_operations_name_the_policy_that_decided_them(bank: Bank) -> None:
    policy = ScriptedPolicy([add_reply("Ann likes tea")], name="small")
    Memory(bank, manager=LLMManager(policy)).remember(dialogue(["I like tea"]))
    assert bank.entries()[0].decided_by == "small/manager-3"


# Failing


def test_turns_that_failed_stay_pending_with_their_reason_and_the_others_are_settled(bank: Bank) -> None:
    policy = ScriptedPolicy([add_reply("A", "B"), "bad", "worse", add_reply("E")])
    report = Memory(bank, manager=LLMManager(policy), extractor=pairs()).remember(dialogue(["a", "b", "c", "d", "e"]))
    assert texts(bank) == ["A", "B", "E"]
    assert pending(bank) == ["t3", "t4"]
    assert report.failures == [Failure(("t3", "t4"), "got 'worse', expected a JSON object")]
    assert (report.turns, report.counts()["failed_turns"]) == (3, 2)


def test_failed_turns_are_taken_up_by_the_next_remember_whatever_it_brings(bank: Bank) -> None:
    Memory(bank, manager=LLMManager(ScriptedPolicy(["bad", "bad"]))).remember(dialogue(["a", "b"]))
    report = Memory(bank).remember(Dialogue("other", (Session("s", None, (Turn("o1", "Eve", "c"),)),)))
    assert (report.turns, report.failures) == (3, [])
    assert (texts(bank), pending(bank)) == (["a", "b", "c"], [])


def test_a_model_that_is_down_ends_the_call_and_what_was_settled_stays(bank: Bank) -> None:
    memory = Memory(bank, manager=LLMManager(Down([add_reply("A", "B")])), extractor=pairs())
    with pytest.raises(EndpointError):
        memory.remember(dialogue(["a", "b", "c", "d", "e"]))
    assert (texts(bank), pending(bank)) == (["A", "B"], ["t3", "t4", "t5"])
    assert Memory(bank).take_up_pending().turns == 3
    assert (texts(bank), pending(bank)) == (["A", "B", "c", "d", "e"], [])


def test_pending_turns_outlive_the_process_that_stored_them(tmp_path: Path) -> None:
    with open_bank(tmp_path / "memory.db") as bank, pytest.raises(EndpointError):
        Memory(bank, manager=LLMManager(Down())).remember(dialogue(["a"]))
    with open_bank(tmp_path / "memory.db") as bank:
        assert Memory(bank).take_up_pending().turns == 1
        assert texts(bank) == ["a"]


def test_an_operation_no_bank_could_apply_is_a_failure_of_its_turns(bank: Bank) -> None:
    class Careless(AddOnlyManager):
        def decide(self, facts: Sequence[Fact], bank: Bank) -> Decision:
            return Decision((Operation(OperationKind.ADD),))

    report = Memory(bank, manager=Careless()).remember(dialogue(["a"]))
    assert "ADD has no text" in report.failures[0].reason
    assert pending(bank) == ["t1"]


def test_an_extractor_that_fails_leaves_the_turns_pending(bank: Bank) -> None:
    class Failing(TurnExtractor):
        def extract(self, turns: Sequence[Turn]) -> list[Fact]:
            raise ReplyError("no facts in it")

    report = Memory(bank, extractor=Failing()).remember(dialogue(["a"]))
    assert report.failures == [Failure(("t1",), "no facts in it")]
    assert (texts(bank), pending(bank)) == ([], ["t1"])


# Other writers


@dataclass
class Overtaken:
    """Deletes e1 by the version it sees; another Bank on the file changes e1 before it is applied, `times` times."""

    path: Path
    times: int
    name: str = "overtaken"
    turns_at_once: int = 64
    versions: list[int] = field(default_factory=list)

    def decide(self, facts: Sequence[Fact], bank: Bank) -> Decision:
        self.versions.append(bank.get("e1").version)
        decision = Decision((Operation.delete("e1", version=self.versions[-1]),))
        if len(self.versions) <= self.times:
            with open_bank(self.path) as other:
                other.apply([Operation.update("e1", f"version {self.versions[-1] + 1}")])
        return decision


def test_a_decision_on_a_version_that_another_writer_changed_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with open_bank(path) as bank:
        bank.apply([Operation.add("version 1")])
        manager = Overtaken(path, times=4)
        report = Memory(bank, manager=manager).remember(dialogue(["a"]))
        assert manager.versions == [1, 2, 3, 4, 5]
        assert (report.counts()["DELETE"], report.failures, pending(bank), texts(bank)) == (1, [], [], [])


@dataclass
class Reassured:
    """Finds every fact said already while e1 lives, else adds it; another Bank deletes e1 before that is applied."""

    path: Path
    name: str = "reassured"
    turns_at_once: int = 64

    def decide(self, facts: Sequence[Fact], bank: Bank) -> Decision:
        read = tuple(bank.entries())
        if not read:
            return Decision(tuple(Operation.add(fact.text) for fact in facts))
        with open_bank(self.path) as other:
            other.apply([Operation.delete("e1")])
        return Decision((Operation.noop(),), read)


def test_a_fact_found_said_already_is_not_lost_when_that_entry_is_deleted_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with open_bank(path) as bank:
        bank.apply([Operation.add("Ann has a dog")])
        report = Memory(bank, manager=Reassured(path)).remember(dialogue(["I have a dog"]))
        assert (texts(bank), pending(bank), report.counts()["ADD"]) == (["I have a dog"], [], 1)


@dataclass
class Hasty:
    """Deletes an entry that another operation of the batch has closed already; from the second turn on it adds."""

    name: str = "hasty"
    turns_at_once: int = 64
    turns: int = 0

    def decide(self, facts: Sequence[Fact], bank: Bank) -> Decision:
        self.turns += 1
        if self.turns == 1:
            return Decision((Operation.delete("e1"), Operation.delete("e1")))
        return Decision(tuple(Operation.add(fact.text) for fact in facts))


def test_a_decision_about_an_entry_that_is_gone_fails_alone_and_the_other_turns_go_on(tmp_path: Path) -> None:
    with open_bank(tmp_path / "memory.db") as bank:
        bank.apply([Operation.add("old")])
        report = Memory(bank, manager=Hasty()).remember(dialogue(["a"], ["b"]))
        assert [failure.turn_ids for failure in report.failures] == [("t1",)]
        assert (pending(bank), texts(bank)) == (["t1"], ["old", "b"])


def test_a_bank_that_keeps_changing_is_given_up_on_and_the_turn_stays_pending(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    with open_bank(path) as bank:
        bank.apply([Operation.add("version 1")])
        manager = Overtaken(path, times=99)
        report = Memory(bank, manager=manager).remember(dialogue(["a"]))
        assert manager.versions == [1, 2, 3, 4, 5]
        assert [failure.turn_ids for failure in report.failures] == [("t1",)]
        assert "decided on version 5, but version 6 is live" in report.failures[0].reason
        assert (report.turns, pending(bank), texts(bank)) == (0, ["t1"], ["version 6"])


@pytest.mark.parametrize("shared", [True, False], ids=["one bank", "two banks on one file"])
def test_two_threads_that_remember_the_same_dialogue_settle_every_turn_once(tmp_path: Path, shared: bool) -> None:
    said = dialogue([f"text {n}" for n in range(20)])
    path = tmp_path / "memory.db"
    meet = threading.Barrier(2, timeout=20)

    def remember(bank: Bank) -> RememberReport:
        bank.add_turns([])  # the file is open in both before either writes
        meet.wait()
        return Memory(bank, extractor=pairs()).remember(said)

    with open_bank(path) as one, open_bank(path) as two, ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(remember, [one, one if shared else two]))
        assert sorted(texts(one)) == sorted(turn.text for turn in said.turns)
        assert len(one.operations()) == 20
        assert pending(one) == pending(two) == []
    assert sum(report.turns for report in reports) == 20


def test_whoever_comes_second_to_a_turn_changes_nothing(tmp_path: Path) -> None:
    """It reports the turns as failed although another settled them: the bank cannot tell it more than "done"."""
    path = tmp_path / "memory.db"

    def settle_first(facts: Sequence[Fact]) -> None:
        with open_bank(path) as other:
            Memory(other).take_up_pending()

    with open_bank(path) as bank:
        Memory(bank, manager=FakeManager(settle_first)).remember(dialogue(["a", "b"]))
        assert (texts(bank), pending(bank), len(bank.operations())) == (["a", "b"], [], 2)


# Asking


def test_a_question_is_answered_from_the_bank(bank: Bank) -> None:
    policy = ScriptedPolicy(["Relevant: 1\nAnswer: a dog"])
    memory = Memory(bank, policy, settings=AnswerSettings(k=1, per_speaker=False))
    memory.remember(dialogue(["I got a dog", "fine weather"]))
    answer = memory.ask("Who got a dog?")
    assert (answer.text, answer.distilled) == ("a dog", (bank.get("e1"),))


def test_an_empty_bank_gives_an_empty_answer_without_asking_the_policy(bank: Bank) -> None:
    policy = ScriptedPolicy([])
    assert Memory(bank, policy).ask("Who?") == Answer("")
    assert policy.prompts == []


def test_asking_without_a_policy_is_refused(bank: Bank) -> None:
    memory = Memory(bank)
    with pytest.raises(InputError, match="no policy to answer with"):
        memory.ask("Who?")
    with pytest.raises(InputError, match="no policy to answer with"):
        memory.ask_all([])


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_an_empty_question_is_refused(bank: Bank, question: str) -> None:
    with pytest.raises(InputError, match="the question is empty"):
        Memory(bank, ScriptedPolicy([])).ask(question)


def test_a_model_that_is_down_is_an_error_and_no_empty_answer(bank: Bank) -> None:
    memory = Memory(bank, Down())
    memory.remember(dialogue(["a"]))
    with pytest.raises(EndpointError):
        memory.ask("Who?")
