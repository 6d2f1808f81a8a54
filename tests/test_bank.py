"""What the bank promises about operations, history, scopes, turns and forks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from memory_r1.bank import Applied, Bank, HashingEmbedder, Operation, OperationKind, StoredTurn
from memory_r1.bank.column import Floats
from memory_r1.errors import BankError, ConflictError, InputError, OperationError, UnknownEntryError

ADD, UPDATE, DELETE, NOOP = OperationKind


def open_bank(path: object = ":memory:", scope: str = "default") -> Bank:
    return Bank.open(str(path), scope, HashingEmbedder(32))


@pytest.fixture
def bank() -> Iterator[Bank]:
    with open_bank() as bank:
        yield bank


def add(bank: Bank, text: str, speaker: str | None = None) -> str:
    """Add one entry, give its id."""
    entry = bank.apply([Operation.add(text, speaker=speaker)])[0].entry
    assert entry is not None
    return entry.id


def texts(bank: Bank) -> list[str]:
    return [entry.text for entry in bank.entries()]


# Operations


def test_an_added_entry_comes_back_with_everything_that_was_said_about_it(bank: Bank) -> None:
    said = datetime(2023, 5, 8, 13, 56)
    (applied,) = bank.apply(
        [Operation.add("Ann has a dog", speaker="Ann", said_at=said, turn_ids=["D1:3"])], decided_by="gpt@1"
    )
    entry = bank.get("e1")
    assert (applied.kind, applied.entry, applied.seq) == (ADD, entry, 1)
    assert (entry.text, entry.version, entry.speaker, entry.said_at) == ("Ann has a dog", 1, "Ann", said)
    assert (entry.turn_ids, entry.decided_by, entry.valid_to) == (("D1:3",), "gpt@1", None)
    assert entry.valid_from is not None
    assert entry.valid_from.utcoffset() == timedelta(0)


def test_entries_keep_the_order_they_were_added_in_even_when_updated(bank: Bank) -> None:
    first, _, _ = add(bank, "one"), add(bank, "two"), add(bank, "three")
    bank.apply([Operation.update(first, "one and a half")])
    assert texts(bank) == ["one and a half", "two", "three"]


def test_an_update_keeps_id_and_speaker_and_joins_the_turn_ids(bank: Bank) -> None:
    said = datetime(2024, 1, 1)
    bank.apply([Operation.add("likes tea", speaker="Ann", said_at=said, turn_ids=["t1", "t2"])])
    (applied,) = bank.apply([Operation.update("e1", "likes coffee", turn_ids=["t2", "t3"], version=1)])
    assert applied.kind is UPDATE
    assert applied.entry == bank.get("e1")
    assert (bank.get("e1").version, bank.get("e1").speaker) == (2, "Ann")
    assert (bank.get("e1").turn_ids, bank.get("e1").said_at) == (("t1", "t2", "t3"), said)


def test_a_deleted_entry_stays_in_the_history(bank: Bank) -> None:
    entry_id = add(bank, "likes tea")
    bank.apply([Operation.update(entry_id, "likes coffee")])
    (applied,) = bank.apply([Operation.delete(entry_id)])
    first, second = bank.history(entry_id)
    assert texts(bank) == []
    assert applied.entry == second
    assert [(v.text, v.version) for v in (first, second)] == [("likes tea", 1), ("likes coffee", 2)]
    assert first.valid_to == second.valid_from
    assert second.valid_to is not None


def test_adding_what_is_already_said_is_a_noop_that_names_the_entry(bank: Bank) -> None:
    entry_id = add(bank, "likes tea", "Ann")
    (applied,) = bank.apply([Operation.add("likes tea", speaker="Ann", turn_ids=["t9"])])
    assert applied.kind is NOOP
    assert applied.entry == bank.get(entry_id)
    assert (bank.operations()[-1].kind, bank.operations()[-1].turn_ids) == (NOOP, ("t9",))
    assert texts(bank) == ["likes tea"]


def test_the_same_text_twice_in_one_batch_is_stored_once(bank: Bank) -> None:
    kinds = [applied.kind for applied in bank.apply([Operation.add("likes tea"), Operation.add("likes tea")])]
    assert kinds == [ADD, NOOP]


def test_two_speakers_and_no_speaker_may_say_the_same(bank: Bank) -> None:
    for speaker in ("Ann", "Bob", None):
        add(bank, "likes tea", speaker)
    assert [entry.speaker for entry in bank.entries()] == ["Ann", "Bob", None]
    assert bank.apply([Operation.add("likes tea")])[0].kind is NOOP


def test_a_deleted_text_may_be_added_again_as_a_new_entry(bank: Bank) -> None:
    first = add(bank, "likes tea")
    bank.apply([Operation.delete(first)])
    assert add(bank, "likes tea") != first
    assert texts(bank) == ["likes tea"]


def test_an_update_to_its_own_text_is_a_noop(bank: Bank) -> None:
    entry_id = add(bank, "likes tea")
    assert bank.apply([Operation.update(entry_id, "likes tea", turn_ids=["t2"])])[0].kind is NOOP
    assert bank.get(entry_id).version == 1


def test_an_update_to_the_text_of_another_entry_closes_the_updated_one(bank: Bank) -> None:
    tea, coffee = add(bank, "likes tea"), add(bank, "likes coffee")
    (applied,) = bank.apply([Operation.update(tea, "likes coffee")])
    assert applied.kind is DELETE
    assert applied.entry == bank.history(tea)[-1]
    assert [entry.id for entry in bank.entries()] == [coffee]


def test_a_noop_is_logged_and_touches_no_entry(bank: Bank) -> None:
    (applied,) = bank.apply([Operation.noop(turn_ids=["t1"])], decided_by="manager@3")
    (line,) = bank.operations()
    assert (applied.kind, applied.entry) == (NOOP, None)
    assert (line.kind, line.entry_id, line.turn_ids, line.decided_by) == (NOOP, None, ("t1",), "manager@3")


def test_the_log_says_who_did_what_in_order(bank: Bank) -> None:
    bank.apply([Operation.add("likes tea", speaker="Ann")], decided_by="a")
    bank.apply([Operation.update("e1", "likes coffee"), Operation.delete("e1")], decided_by="b")
    log = [(line.seq, line.kind, line.entry_id, line.version, line.text, line.decided_by) for line in bank.operations()]
    assert log == [
        (1, ADD, "e1", 1, "likes tea", "a"),
        (2, UPDATE, "e1", 2, "likes coffee", "b"),
        (3, DELETE, "e1", 2, None, "b"),
    ]


# Refusals


@pytest.mark.parametrize("operation", [Operation.update("e1", "new", version=1), Operation.delete("e1", version=1)])
def test_a_decision_on_an_older_version_is_a_conflict_and_nothing_of_its_batch_is_done(
    bank: Bank, operation: Operation
) -> None:
    add(bank, "old")
    bank.apply([Operation.update("e1", "newer")])
    before = bank.operations()
    with pytest.raises(ConflictError, match="version 1, but version 2 is live"):
        bank.apply([Operation.add("bystander"), operation])
    assert bank.operations() == before
    assert texts(bank) == ["newer"]


def test_a_decision_on_a_version_that_was_deleted_meanwhile_is_a_conflict(bank: Bank) -> None:
    add(bank, "old")
    bank.apply([Operation.delete("e1")])
    with pytest.raises(ConflictError, match="it is deleted"):
        bank.apply([Operation.update("e1", "new", version=1)])
    assert bank.history("e1")[-1].text == "old"


@pytest.mark.parametrize("entry_id", ["e1", "e99", "", "nonsense"])
def test_an_id_that_is_not_live_is_refused_and_nothing_of_its_batch_is_done(bank: Bank, entry_id: str) -> None:
    add(bank, "old")
    bank.apply([Operation.delete("e1")])
    for operation in (Operation.update(entry_id, "new"), Operation.delete(entry_id)):
        with pytest.raises((UnknownEntryError, OperationError)):
            bank.apply([Operation.add("bystander"), operation])
    with pytest.raises(UnknownEntryError):
        bank.get(entry_id)
    assert texts(bank) == []


def test_history_of_an_id_that_never_was_is_refused(bank: Bank) -> None:
    with pytest.raises(UnknownEntryError, match="'e5'"):
        bank.history("e5")


@pytest.mark.parametrize(
    "operation",
    [
        Operation(ADD),
        Operation(ADD, text=" "),
        Operation(ADD, text="lone \ud800"),
        Operation(ADD, text="fine", speaker="\udfff"),
        Operation(ADD, text="fine", turn_ids=("\udfff",)),
        Operation(ADD, text="fine", said_at=datetime(2024, 1, 1, tzinfo=UTC)),
        Operation(UPDATE, entry_id="e1"),
        Operation(UPDATE, text="fine"),
        Operation(DELETE),
    ],
)
def test_an_operation_that_no_bank_could_apply_is_refused(bank: Bank, operation: Operation) -> None:
    add(bank, "old")
    with pytest.raises(OperationError):
        bank.apply([operation])
    assert texts(bank) == ["old"]


def test_an_embedder_that_gives_the_wrong_shape_is_refused_and_nothing_is_written() -> None:
    class Broken(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            return np.zeros((1, 3), dtype=np.float32)

    bank = Bank.open(":memory:", embedder=Broken(32))
    with pytest.raises(BankError, match=r"shape \(1, 3\), expected \(1, 32\)"):
        bank.apply([Operation.add("x")])
    assert bank.operations() == []


@pytest.mark.parametrize("scope", ["", " ", "\ud800"])
def test_a_scope_that_is_not_a_name_is_refused(scope: str) -> None:
    with pytest.raises(InputError, match="scope"):
        open_bank(scope=scope)


# Time


def ticking(*times: datetime) -> Bank:
    """A bank whose clock shows these times, one per batch."""
    moments = iter(times)
    return Bank.open(":memory:", embedder=HashingEmbedder(32), clock=lambda: next(moments))


def test_as_of_shows_what_was_believed_at_that_time() -> None:
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3)]
    bank = ticking(*days)
    bank.apply([Operation.add("likes tea"), Operation.add("has a dog")])
    bank.apply([Operation.update("e1", "likes coffee")])
    bank.apply([Operation.delete("e1")])
    noon = timedelta(hours=12)
    believed = [[entry.text for entry in bank.as_of(day + noon)] for day in (days[0] - 2 * noon, *days)]
    assert believed == [[], ["likes tea", "has a dog"], ["likes coffee", "has a dog"], ["has a dog"]]
    assert [entry.text for entry in bank.as_of(days[1])] == ["likes coffee", "has a dog"]
    assert bank.as_of(days[1].replace(tzinfo=None)) == bank.as_of(days[1])


def test_times_ascend_even_when_the_clock_goes_backwards() -> None:
    late, early = datetime(2024, 5, 5, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)
    bank = ticking(late, early, early)
    bank.apply([Operation.add("one")])
    bank.apply([Operation.update("e1", "two")])
    bank.apply([Operation.delete("e1")])
    first, second = bank.history("e1")
    assert first.valid_from == late
    assert first.valid_to == second.valid_from
    times = [first.valid_from, first.valid_to, second.valid_to]
    assert times == sorted(set(times), key=times.index)
    assert first.valid_from < first.valid_to < second.valid_to  # type: ignore[operator]


# Scopes


def test_scopes_of_one_file_do_not_see_each_other(tmp_path: object) -> None:
    path = f"{tmp_path}/bank"
    ann, bob = open_bank(path, "ann"), open_bank(path, "bob")
    anns = add(ann, "a secret")
    bobs = add(bob, "a secret")
    ann.add_turns([StoredTurn("t1", "Ann", "hello")])
    assert anns != bobs
    assert [entry.id for entry in bob.entries()] == [bobs]
    assert [entry.id for entry in bob.search("a secret")] == [bobs]
    assert [line.entry_id for line in bob.operations()] == [bobs]
    assert bob.pending_turns() == []
    with pytest.raises(UnknownEntryError):
        bob.apply([Operation.delete(anns)])
    with pytest.raises(UnknownEntryError):
        bob.history(anns)
    with pytest.raises(BankError, match="'t1'"):
        bob.turn("t1")
    assert ann.scopes() == bob.scopes() == ["ann", "bob"]


# Turns

HELLO = StoredTurn("D1:1", "Ann", "Hello!", datetime(2024, 1, 1, 9), "conv-1")
BYE = StoredTurn("D1:2", "Bob", "Bye.")


def test_turns_are_pending_until_a_batch_settles_them(bank: Bank) -> None:
    assert bank.add_turns([HELLO, BYE]) == [HELLO, BYE]
    assert bank.pending_turns() == [HELLO, BYE]
    bank.apply([Operation.add("Ann says hello", turn_ids=["D1:1"])], done=["D1:1", "D1:1"])
    assert bank.pending_turns() == [BYE]
    bank.apply([], done=["D1:2"])
    assert bank.pending_turns() == []
    assert [bank.turn("D1:1"), bank.turn("D1:2")] == [HELLO, BYE]


def test_an_equal_turn_is_stored_once_and_stays_done(bank: Bank) -> None:
    bank.add_turns([HELLO, HELLO])
    bank.apply([], done=["D1:1"])
    assert bank.add_turns([HELLO, BYE]) == [BYE]
    assert bank.pending_turns() == [BYE]


def test_a_turn_id_with_another_content_is_refused_and_nothing_is_stored(bank: Bank) -> None:
    bank.add_turns([HELLO])
    with pytest.raises(BankError, match="'D1:1' is stored with another content"):
        bank.add_turns([BYE, replace(HELLO, text="Goodbye!")])
    assert bank.pending_turns() == [HELLO]


def test_a_turn_is_settled_once(bank: Bank) -> None:
    bank.add_turns([HELLO])
    bank.apply([], done=["D1:1"])
    with pytest.raises(ConflictError, match="done already"):
        bank.apply([Operation.add("once more")], done=["D1:1"])
    assert bank.entries() == []


def test_settling_a_turn_that_is_not_stored_is_refused_and_nothing_is_done(bank: Bank) -> None:
    bank.add_turns([HELLO])
    with pytest.raises(BankError, match="'D9:9' is not stored"):
        bank.apply([Operation.add("something")], done=["D1:1", "D9:9"])
    assert bank.entries() == []
    assert bank.pending_turns() == [HELLO]


def test_a_refused_batch_leaves_its_turn_pending(bank: Bank) -> None:
    bank.add_turns([HELLO])
    with pytest.raises(UnknownEntryError):
        bank.apply([Operation.delete("e7")], done=["D1:1"])
    assert bank.pending_turns() == [HELLO]


@pytest.mark.parametrize("turn", [replace(HELLO, id=""), replace(HELLO, text="\ud800"), replace(HELLO, speaker=" ")])
def test_a_turn_without_id_speaker_or_text_is_refused(bank: Bank, turn: StoredTurn) -> None:
    with pytest.raises(InputError, match="turn"):
        bank.add_turns([turn])
    assert bank.pending_turns() == []


# Forks


def test_a_fork_and_its_bank_do_not_see_each_others_writes(bank: Bank) -> None:
    add(bank, "one"), add(bank, "two")
    fork = bank.fork()
    fork.apply([Operation.update("e1", "one in the fork"), Operation.add("three in the fork")])
    bank.apply([Operation.delete("e1"), Operation.add("three in the bank")])
    assert texts(fork) == ["one in the fork", "two", "three in the fork"]
    assert texts(bank) == ["two", "three in the bank"]
    assert [version.text for version in fork.history("e1")] == ["one", "one in the fork"]
    assert [version.valid_to is None for version in fork.history("e1")] == [False, True]
    assert [version.valid_to is None for version in bank.history("e1")] == [False]
    assert [line.kind for line in fork.operations()] == [ADD, ADD, UPDATE, ADD]
    assert [line.kind for line in bank.operations()] == [ADD, ADD, DELETE, ADD]
    assert {entry.text for entry in fork.search("three", mode="bm25")} == {"three in the fork"}
    assert {entry.text for entry in bank.search("three", mode="bm25")} == {"three in the bank"}


def test_a_fork_keeps_its_history_when_its_bank_writes_on(bank: Bank) -> None:
    add(bank, "one")
    fork = bank.fork()
    bank.apply([Operation.update("e1", "one in the bank"), Operation.add("two in the bank")])
    fork.apply([Operation.add("two in the fork"), Operation.add("two in the bank")])
    assert [version.text for version in fork.history("e1")] == ["one"]
    assert texts(fork) == ["one", "two in the fork", "two in the bank"]
    assert texts(bank) == ["one in the bank", "two in the bank"]


def test_a_fork_of_a_fork_starts_from_the_fork(bank: Bank) -> None:
    add(bank, "one")
    fork = bank.fork()
    add(fork, "two")
    grandchild = fork.fork()
    grandchild.apply([Operation.delete("e1")])
    add(fork, "late")
    assert texts(grandchild) == ["two"]
    assert texts(fork) == ["one", "two", "late"]
    assert texts(bank) == ["one"]
    assert [entry.text for entry in grandchild.search("one two late")] == ["two"]


def test_a_fork_numbers_on_from_its_bank_and_refuses_as_it_does(bank: Bank) -> None:
    add(bank, "one"), add(bank, "two")
    fork = bank.fork()
    assert add(fork, "three") == "e3"
    assert fork.apply([Operation.add("two")])[0].kind is NOOP
    with pytest.raises(ConflictError):
        fork.apply([Operation.add("bystander"), Operation.delete("e1", version=4)])
    assert texts(fork) == ["one", "two", "three"]


def test_a_fork_has_the_turns_of_its_moment_and_settles_them_for_itself(bank: Bank) -> None:
    bank.add_turns([HELLO])
    fork = bank.fork()
    bank.apply([], done=["D1:1"])
    bank.add_turns([replace(BYE, text="Only in the bank.")])
    assert fork.pending_turns() == [HELLO]
    assert fork.add_turns([HELLO, BYE]) == [BYE]
    fork.apply([Operation.add("both settled")], done=["D1:1", "D1:2"])
    assert fork.pending_turns() == []
    assert fork.turn("D1:2") == BYE
    assert bank.turn("D1:2").text == "Only in the bank."
    with pytest.raises(ConflictError):
        fork.apply([], done=["D1:1"])
    with pytest.raises(BankError, match="another content"):
        fork.fork().add_turns([replace(BYE, text="Different.")])


def test_a_fork_writes_nothing_to_the_file(tmp_path: object) -> None:
    bank = open_bank(f"{tmp_path}/bank")
    bank.add_turns([HELLO])
    add(bank, "one")
    fork = bank.fork()
    fork.apply([Operation.delete("e1"), Operation.add("two")], done=["D1:1"])
    fork.add_turns([BYE])
    other = open_bank(f"{tmp_path}/bank")
    assert texts(other) == ["one"]
    assert other.pending_turns() == [HELLO]
    assert fork.stats().bytes == 0


def test_a_fork_of_ten_thousand_entries_copies_none_of_them(bank: Bank) -> None:
    bank.apply([Operation.add(f"entry number {number}") for number in range(10_000)])
    bank.search("number", k=1)
    fork = bank.fork()
    fork.apply([Operation.add("a penguin"), Operation.delete("e5")])
    hits = fork.search("penguin", mode="bm25")
    with bank._follower.reading() as log, fork._follower.reading() as branch:
        below, own = branch.segments
        assert below.log is log
        assert np.shares_memory(below.vectors, log.segments[0].vectors)
    assert (below.rows, own.rows, len(own.log.postings)) == (10_000, 1, 1)
    assert [entry.text for entry in hits] == ["a penguin"]
    assert (fork.stats().live, bank.stats().live) == (10_000, 10_000)


# Counting


def test_stats_count_the_scope(tmp_path: object) -> None:
    bank = open_bank(f"{tmp_path}/bank")
    add(open_bank(f"{tmp_path}/bank", "another scope"), "not counted")
    bank.add_turns([HELLO, BYE])
    bank.apply([Operation.add("one"), Operation.add("one"), Operation.add("two")], done=["D1:1"])
    first = bank.entries()[0].id
    bank.apply([Operation.update(first, "changed"), Operation.delete(first)])
    stats = bank.stats()
    assert (stats.live, stats.versions, stats.turns, stats.pending_turns) == (1, 3, 2, 1)
    assert stats.operations == {ADD: 2, UPDATE: 1, DELETE: 1, NOOP: 1}
    assert stats.bytes >= 4096


def test_applied_gives_the_operations_back_in_order(bank: Bank) -> None:
    operations = [Operation.add("one"), Operation.noop(), Operation.add("two")]
    applied = bank.apply(iter(operations))
    assert [item.operation for item in applied] == operations
    assert [item.seq for item in applied] == [1, 2, 3]
    assert all(isinstance(item, Applied) for item in applied)


def test_a_text_searched_for_again_is_not_embedded_again(tmp_path: Path) -> None:
    embedded: list[str] = []

    class Counting(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            embedded.extend(texts)
            return super().embed(texts)

    with Bank.open(tmp_path / "bank", embedder=Counting(16)) as bank:
        bank.apply([Operation.add("tea", speaker="Ann"), Operation.add("coffee", speaker="Bob")])
        embedded.clear()
        found = [bank.search("tea", speaker=speaker) for speaker in ("Ann", "Bob", None)]
        assert [[entry.text for entry in entries] for entries in found] == [["tea"], ["coffee"], ["tea", "coffee"]]
        bank.search("coffee")
        assert embedded == ["tea", "coffee"]
