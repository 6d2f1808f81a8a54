"""What the bank promises about its file: what was written is there, and files that are no banks are left alone.

Left out: crashes, full disks (test_bank_faults.py) and many writers (test_bank_crowd.py).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from memory_r1.bank import Bank, HashingEmbedder, Operation, OperationKind, StoredTurn
from memory_r1.bank.column import Floats
from memory_r1.bank.lines import Lines
from memory_r1.bank.log import Log
from memory_r1.bank.schema import MIGRATIONS
from memory_r1.errors import BankError, BankFileError, InputError, UnknownEntryError

EMBEDDER = HashingEmbedder(16)


def open_bank(path: Path, scope: str = "default") -> Bank:
    return Bank.open(path, scope, EMBEDDER)


def texts(bank: Bank) -> list[str]:
    return [entry.text for entry in bank.entries()]


def sql(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Run one statement on the file behind the bank's back."""
    with sqlite3.connect(path) as connection:
        return connection.execute(statement).fetchall()


# Reopening


def test_a_reopened_bank_says_what_the_closed_one_said(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.add_turns([StoredTurn("t1", "Ann", "I have a dog", dialogue_id="d")])
        bank.apply([Operation.add("Ann has a dog", speaker="Ann"), Operation.add("Ann likes tea")], done=["t1"])
        bank.apply([Operation.update("e2", "Ann likes coffee")], decided_by="manager@2")
        said = (bank.entries(), bank.operations(), bank.history("e2"), bank.stats(), bank.ranked("dog"))
    with open_bank(tmp_path / "bank") as bank:
        assert (bank.entries(), bank.operations(), bank.history("e2"), bank.stats(), bank.ranked("dog")) == said
        assert bank.pending_turns() == []


@pytest.mark.parametrize(
    "text",
    [
        "nul \x00 inside",
        "family \U0001f469\u200d\U0001f467, flag \U0001f3f3\ufe0f\u200d\U0001f308",
        "שלום עולם \u202eabc",
        "日本語 हिन्दी",
        "'; DROP TABLE operations; --",
        "x" * 2**20,
        "many words " * 2**16,
    ],
    ids=["nul", "emoji", "right-to-left", "scripts", "quotes", "one-long-word", "many-words"],
)
def test_a_text_comes_back_exactly(tmp_path: Path, text: str) -> None:
    with open_bank(tmp_path / "bank", scope=text[:20]) as bank:
        bank.add_turns([StoredTurn(text[:50], text[:20], text)])
        bank.apply([Operation.add(text, speaker=text[:20], turn_ids=[text[:50]])], decided_by=text[:20])
    with open_bank(tmp_path / "bank", scope=text[:20]) as bank:
        entry = bank.entries()[0]
        assert (entry.text, entry.speaker, entry.turn_ids) == (text, text[:20], (text[:50],))
        assert bank.turn(text[:50]).text == text
        assert bank.apply([Operation.add(text, speaker=text[:20])])[0].kind is OperationKind.NOOP
        assert bank.search(text) == [entry]


def test_the_live_entries_can_be_rebuilt_from_the_log_alone(tmp_path: Path) -> None:
    bank = open_bank(tmp_path / "bank")
    bank.apply([Operation.add(f"fact {number}", speaker="Ann") for number in range(6)])
    bank.apply([Operation.update("e2", "changed"), Operation.delete("e3"), Operation.update("e2", "changed again")])
    rebuilt = Log(source=lambda after: ())
    for line in bank.operations():
        rebuilt.append(line)
    stored = sql(tmp_path / "bank", "SELECT id, version, text, speaker FROM entries WHERE valid_to IS NULL")
    assert rebuilt.live_entries() == bank.entries()
    assert sorted(stored) == sorted((e.id, e.version, e.text, e.speaker) for e in bank.entries())
    assert rebuilt.versions("e2") == bank.history("e2")


@pytest.mark.parametrize("statement", ["UPDATE operations SET text = 'forged'", "DELETE FROM operations"])
def test_the_log_cannot_be_rewritten_even_by_sql(tmp_path: Path, statement: str) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("true")])
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sql(tmp_path / "bank", statement)
    assert texts(open_bank(tmp_path / "bank")) == ["true"]


@pytest.mark.parametrize("speaker", ["'Ann'", "NULL"])
def test_the_database_itself_refuses_a_live_text_twice(tmp_path: Path, speaker: str) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("once", speaker=None if speaker == "NULL" else "Ann")])
    with pytest.raises(sqlite3.IntegrityError, match="live_texts"):
        sql(
            tmp_path / "bank",
            "INSERT INTO entries (id, version, scope, speaker, text, valid_from, opened) "
            f"VALUES ('e9', 1, 'default', {speaker}, 'once', '2024', 1)",
        )
    assert len(open_bank(tmp_path / "bank").entries()) == 1


# Files that are no banks


def test_a_file_that_is_not_sqlite_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Dear diary, " * 100)
    with pytest.raises(BankFileError, match="not a database"):
        open_bank(path)
    assert path.read_text() == "Dear diary, " * 100


def test_an_sqlite_file_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    sql(path, "CREATE TABLE entries (id)")
    before = path.read_bytes()
    with pytest.raises(BankFileError, match="another program"):
        open_bank(path)
    assert path.read_bytes() == before


def test_a_bank_of_a_newer_schema_is_refused_naming_both_versions(tmp_path: Path) -> None:
    open_bank(tmp_path / "bank").close()
    sql(tmp_path / "bank", "PRAGMA user_version = 99")
    with pytest.raises(BankFileError, match=f"schema 99, this memory-r1 knows {len(MIGRATIONS)} "):
        open_bank(tmp_path / "bank")
    assert sql(tmp_path / "bank", "PRAGMA user_version") == [(99,)]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BankFileError, match="folder"):
        open_bank(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_path_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BankFileError, match="create it first"):
        open_bank(tmp_path / "nowhere" / "bank")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["", "nul\0inside"])
def test_a_path_that_names_no_file_is_refused(path: str) -> None:
    with pytest.raises(InputError, match="path"):
        Bank.open(path)


def test_a_truncated_bank_is_refused(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add(f"fact {number}") for number in range(500)])
    content = (tmp_path / "bank").read_bytes()
    (tmp_path / "bank").write_bytes(content[: len(content) // 2])
    with pytest.raises(BankFileError, match="malformed"):
        open_bank(tmp_path / "bank").entries()


def test_a_closed_bank_says_so(tmp_path: Path) -> None:
    bank = open_bank(tmp_path / "bank")
    bank.close()
    bank.close()
    for use in (bank.entries, bank.pending_turns, lambda: bank.apply([Operation.noop()])):
        with pytest.raises(BankError, match="closed"):
            use()


# Embedders


def test_vectors_of_another_embedder_are_never_compared(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("likes tea")])
    other = Bank.open(tmp_path / "bank", embedder=HashingEmbedder(8))
    for mode in ("dense", "hybrid"):
        with pytest.raises(BankError, match=r"hashing-16.*hashing-8"):
            other.search("tea", mode=mode)
    with pytest.raises(BankError, match=r"hashing-16.*hashing-8"):
        other.apply([Operation.add("likes coffee")])
    assert [entry.text for entry in other.search("tea", mode="bm25")] == ["likes tea"]
    other.apply([Operation.delete("e1")])
    assert texts(other) == []


def test_opening_reading_and_deleting_need_no_embedder(tmp_path: Path) -> None:
    class Absent(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            raise AssertionError("the embedder was asked")

    with Bank.open(tmp_path / "bank", embedder=Absent()) as bank:
        bank.add_turns([StoredTurn("t1", "Ann", "hello")])
        bank.apply([Operation.noop()], done=["t1"])
        assert bank.search("anything") == []
        with pytest.raises(UnknownEntryError):
            bank.apply([Operation.delete("e1")])


# Other writers


def test_a_bank_sees_at_once_what_another_one_wrote(tmp_path: Path) -> None:
    ours, theirs = open_bank(tmp_path / "bank"), open_bank(tmp_path / "bank")
    assert ours.search("tea") == []
    theirs.apply([Operation.add("likes tea")])
    assert texts(ours) == ["likes tea"]
    assert [entry.text for entry in ours.search("tea", mode="dense")] == ["likes tea"]
    theirs.apply([Operation.update("e1", "likes coffee"), Operation.add("has a dog")])
    assert ours.get("e1").text == "likes coffee"
    assert [hit.entry.text for hit in ours.ranked("tea", mode="bm25")] == []
    assert ours.ranked("coffee") == theirs.ranked("coffee")


def test_no_write_lock_is_held_while_the_embedder_works(tmp_path: Path) -> None:
    other = open_bank(tmp_path / "bank")

    class Meddler(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            other.apply([Operation.delete("e1")] if other.entries() else [Operation.noop()])
            return super().embed(texts)

    bank = Bank.open(tmp_path / "bank", embedder=Meddler(16))
    bank.apply([Operation.add("one")])
    assert [line.kind for line in bank.operations()] == [OperationKind.NOOP, OperationKind.ADD]


def test_readers_and_a_writer_share_one_bank_object(tmp_path: Path) -> None:
    bank = open_bank(tmp_path / "bank")
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                assert len(bank.fork().search("fact", k=5)) == min(5, len(bank.search("fact", k=5)))
        except BaseException as error:
            failures.append(error)

    bank.apply([Operation.add(f"fact {number}") for number in range(5)])
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(5, 60):
        bank.apply([Operation.add(f"fact {number}"), Operation.update("e1", f"fact one, {number} times over")])
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(bank.entries()) == 60


@pytest.mark.parametrize("value", [0.0, float("nan"), 3.0])
def test_an_embedder_that_gives_no_unit_vectors_is_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    class Careless(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            return super().embed(texts) * np.float32(value)

    with Bank.open(tmp_path / "bank", embedder=Careless(16)) as bank:
        with pytest.raises(BankError, match="expected 1: mend the embedder"):
            bank.apply([Operation.add("tea")])
        assert bank.operations() == []


def test_a_read_interrupted_half_way_is_made_again_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bank(tmp_path / "bank") as writer, open_bank(tmp_path / "bank") as bank:
        writer.apply([Operation.add("one"), Operation.add("two")])
        follow = Log.append

        def interrupted(log: Log, lines: Lines) -> None:
            follow(log, lines)
            raise KeyboardInterrupt

        monkeypatch.setattr(Log, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bank.entries()
        monkeypatch.setattr(Log, "append", follow)
        assert texts(bank) == ["one", "two"]
        assert len(bank.search("two")) == 2


def test_deleting_a_scope_under_a_reader_says_that_old_pages_stay(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("secret")])
        with closing(sqlite3.connect(tmp_path / "bank")) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM operations").fetchone()
            bank._store._connection.execute("PRAGMA busy_timeout = 10")  # type: ignore[union-attr]
            assert bank.delete_scope() is False
        assert bank.entries() == []
        bank.vacuum()
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())
