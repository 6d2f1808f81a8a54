"""Going back: what restore and undo promise, on a file and in a fork."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from memory_r1.bank import Bank, HashingEmbedder, Operation, OperationKind, StoredTurn
from memory_r1.errors import ConflictError, OperationError, UnknownEntryError

EMBEDDER = HashingEmbedder(32)
MAY = datetime(2023, 5, 8)


@pytest.fixture(params=["file", "fork"])
def bank(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bank]:
    with Bank.open(tmp_path / "bank", embedder=EMBEDDER) as opened:
        yield opened.fork() if request.param == "fork" else opened


def texts(bank: Bank) -> dict[str, str]:
    return {entry.id: entry.text for entry in bank.entries()}


def add(bank: Bank, *facts: str) -> list[str]:
    """Add facts in one batch, give their ids."""
    applied = bank.apply([Operation.add(fact, speaker="Ann") for fact in facts])
    return [one.entry.id for one in applied if one.entry]


# Restore


def test_restore_makes_the_version_before_live_again_as_a_new_version(bank: Bank) -> None:
    bank.apply([Operation.add("has a dog", speaker="Ann", said_at=MAY, turn_ids=["t1"])])
    bank.apply([Operation.update("e1", "has a cat", turn_ids=["t2"])], decided_by="manager@1")
    applied = bank.restore("e1", decided_by="Bea")
    entry = bank.get("e1")
    assert (entry.text, entry.version, entry.speaker, entry.said_at) == ("has a dog", 3, "Ann", MAY)
    assert (entry.turn_ids, entry.decided_by) == (("t1",), "Bea")
    assert (applied.kind, applied.entry, applied.seq) == (OperationKind.UPDATE, entry, 3)
    assert [version.text for version in bank.history("e1")] == ["has a dog", "has a cat", "has a dog"]


def test_restore_takes_any_version(bank: Bank) -> None:
    add(bank, "one")
    bank.apply([Operation.update("e1", "two"), Operation.update("e1", "three")])
    bank.restore("e1", 1)
    assert (bank.get("e1").text, bank.get("e1").version) == ("one", 4)


def test_restore_brings_a_deleted_entry_back_under_its_id_and_place(bank: Bank) -> None:
    add(bank, "first", "second")
    bank.apply([Operation.delete("e1")])
    applied = bank.restore("e1")
    assert applied.kind is OperationKind.ADD
    assert list(texts(bank).items()) == [("e1", "first"), ("e2", "second")]
    gone, back = bank.history("e1")
    assert gone.valid_to is not None
    assert back.valid_from is not None
    assert gone.valid_to < back.valid_from
    assert [entry.id for entry in bank.as_of(gone.valid_to)] == ["e2"]


def test_a_restored_text_is_found_without_being_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = HashingEmbedder(32)
    with Bank.open(tmp_path / "bank", embedder=embedder) as bank:
        add(bank, "has a dog called Rex", "likes tea")
        bank.apply([Operation.delete("e1")])
        query = embedder.embed(["dog Rex"])
        monkeypatch.setattr(embedder, "embed", lambda texts: query[: len(texts)] if texts == ["dog Rex"] else 1 / 0)
        bank.restore("e1")
        assert [entry.id for entry in bank.search("dog Rex", mode="dense")] == ["e1", "e2"]


def test_restoring_the_live_version_changes_nothing(bank: Bank) -> None:
    add(bank, "one")
    assert bank.restore("e1", 1).kind is OperationKind.NOOP
    assert len(bank.history("e1")) == 1


@pytest.mark.parametrize(("entry_id", "version"), [("e9", None), ("e1", None), ("e1", 0), ("e1", 7), ("nonsense", 1)])
def test_restore_of_what_never_was_is_refused_and_nothing_is_written(
    bank: Bank, entry_id: str, version: int | None
) -> None:
    add(bank, "one")
    before = bank.operations()
    with pytest.raises(UnknownEntryError, match=entry_id):
        bank.restore(entry_id, version)
    assert bank.operations() == before


def test_restore_never_makes_a_live_text_twice(bank: Bank) -> None:
    add(bank, "tea")
    bank.apply([Operation.delete("e1"), Operation.add("tea", speaker="Ann")])
    with pytest.raises(ConflictError, match="e3 says it now"):
        bank.restore("e1")
    assert texts(bank) == {"e3": "tea"}


# Undo


def test_undo_takes_back_a_whole_batch_of_every_kind(bank: Bank) -> None:
    add(bank, "stays", "changes", "goes")
    before = texts(bank)
    bank.apply([Operation.add("comes", speaker="Ann"), Operation.update("e2", "changed"), Operation.delete("e3")])
    undone = bank.undo(decided_by="Bea")
    assert texts(bank) == before
    assert sorted(one.kind for one in undone) == ["ADD", "DELETE", "UPDATE"]
    assert {line.undoes for line in bank.operations()[6:]} == {4}
    assert {line.decided_by for line in bank.operations()[6:]} == {"Bea"}
    assert [version.text for version in bank.history("e2")] == ["changes", "changed", "changes"]


def test_undo_again_goes_further_back_and_says_when_nothing_is_left(bank: Bank) -> None:
    for fact in ("one", "two", "three"):
        add(bank, fact)
    bank.apply([Operation.noop()])
    for left in (["one", "two"], ["one"], []):
        bank.undo()
        assert list(texts(bank).values()) == left
    with pytest.raises(OperationError, match="nothing to undo"):
        bank.undo()


def test_an_undo_can_be_undone_and_then_undone_anew(bank: Bank) -> None:
    add(bank, "one")
    bank.undo()
    again = bank.undo(2)
    assert [one.kind for one in again] == [OperationKind.ADD]
    assert texts(bank) == {"e1": "one"}
    bank.undo()
    assert texts(bank) == {}
    assert len(bank.history("e1")) == 2


def test_undo_takes_a_batch_from_the_middle_that_nobody_built_on(bank: Bank) -> None:
    add(bank, "one")
    add(bank, "two", "two more")
    add(bank, "three")
    bank.undo(3)
    assert list(texts(bank).values()) == ["one", "three"]


def test_undo_refuses_a_batch_whose_entries_were_changed_since(bank: Bank) -> None:
    add(bank, "one", "two")
    bank.apply([Operation.update("e2", "two changed")])
    before = bank.operations()
    with pytest.raises(ConflictError, match="e2 was changed after operation 2"):
        bank.undo(1)
    assert bank.operations() == before


@pytest.mark.parametrize(("operation", "message"), [(9, "not in this scope's log"), (2, "changed nothing")])
def test_undo_of_what_is_not_there_or_changed_nothing_is_refused(bank: Bank, operation: int, message: str) -> None:
    add(bank, "one")
    add(bank, "one")
    with pytest.raises(OperationError, match=message):
        bank.undo(operation)


def test_a_batch_is_undone_once(bank: Bank) -> None:
    add(bank, "one")
    bank.undo()
    with pytest.raises(ConflictError, match="undone by operation 2"):
        bank.undo(1)


def test_entries_that_swapped_their_texts_swap_them_back(bank: Bank) -> None:
    add(bank, "a", "b")
    bank.apply([Operation.update("e1", "c"), Operation.update("e2", "a"), Operation.update("e1", "b")])
    assert texts(bank) == {"e1": "b", "e2": "a"}
    bank.undo()
    assert texts(bank) == {"e1": "a", "e2": "b"}


def test_what_a_batch_added_in_place_of_what_it_deleted_makes_room_again(bank: Bank) -> None:
    add(bank, "tea")
    bank.apply([Operation.delete("e1"), Operation.add("tea", speaker="Ann")])
    bank.undo()
    assert texts(bank) == {"e1": "tea"}


def test_undo_of_a_batch_that_came_to_nothing_is_noted_once(bank: Bank) -> None:
    bank.apply([Operation.add("brief"), Operation.delete("e1")])
    assert [one.kind for one in bank.undo()] == [OperationKind.NOOP]
    with pytest.raises(OperationError, match="nothing to undo"):
        bank.undo()


def test_undo_refuses_to_say_twice_what_was_added_since(bank: Bank) -> None:
    add(bank, "tea")
    bank.apply([Operation.delete("e1")])
    add(bank, "tea")
    with pytest.raises(ConflictError, match="e3 says it now"):
        bank.undo(2)


def test_settled_turns_stay_settled_after_an_undo(bank: Bank) -> None:
    bank.add_turns([StoredTurn("t1", "Ann", "I have a dog")])
    bank.apply([Operation.add("Ann has a dog")], done=["t1"])
    bank.undo()
    assert bank.pending_turns() == []
    assert bank.turn("t1").text == "I have a dog"


# Decisions rest on what was read


def test_a_noop_is_refused_when_the_entry_it_rests_on_was_deleted(bank: Bank) -> None:
    bank.add_turns([StoredTurn("t1", "Ann", "I have a dog")])
    add(bank, "Ann has a dog")
    read = bank.entries()
    bank.apply([Operation.delete("e1")])
    with pytest.raises(ConflictError, match=r"e1 version 1, but it is deleted"):
        bank.apply([Operation.noop()], done=["t1"], read=read)
    assert [turn.id for turn in bank.pending_turns()] == ["t1"]


def test_a_decision_stands_when_what_it_rests_on_is_as_it_was(bank: Bank) -> None:
    add(bank, "one", "two")
    read = [bank.get("e1")]
    bank.apply([Operation.update("e2", "two changed")])
    bank.apply([Operation.add("three")], read=read)
    assert sorted(texts(bank).values()) == ["one", "three", "two changed"]
