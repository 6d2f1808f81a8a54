"""verify finds every kind of damage and names it; deleting a scope leaves nothing of it; older files are brought up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from memory_r1.bank import Bank, HashingEmbedder, Operation, OperationKind, StoredTurn
from memory_r1.bank.reembed import reembed
from memory_r1.bank.schema import APPLICATION_ID, MIGRATIONS
from memory_r1.errors import BankError, UnknownEntryError

EMBEDDER = HashingEmbedder(16)


def open_bank(path: Path, scope: str = "default") -> Bank:
    return Bank.open(path, scope, EMBEDDER)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with two scopes and every kind of operation in it, the going back included."""
    with open_bank(tmp_path / "bank") as bank:
        bank.add_turns([StoredTurn("t1", "Ann", "I have a dog"), StoredTurn("t2", "Bob", "me too")])
        bank.apply([Operation.add("has a dog", speaker="Ann"), Operation.add("likes tea")], done=["t1"])
        bank.apply([Operation.update("e1", "has a cat"), Operation.delete("e2"), Operation.noop()])
        bank.restore("e2")
        bank.undo(3)
        bank.undo()
    with open_bank(tmp_path / "bank", "other") as bank:
        bank.apply([Operation.add("has a dog", speaker="Ann")])
    return tmp_path / "bank"


@pytest.fixture
def sql(path: Path) -> Iterator[sqlite3.Connection]:
    """The file behind the bank's back, its guards down."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def lower_guards(sql: sqlite3.Connection) -> None:
    for guard in ("operations_are_never_changed", "operations_are_never_deleted"):
        sql.execute(f"DROP TRIGGER {guard}")


def problems(path: Path) -> str:
    with open_bank(path) as bank:
        return "\n".join(bank.verify())


# Verify


def test_a_sound_file_has_no_problems(path: Path) -> None:
    assert problems(path) == ""


def test_an_empty_file_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path / "empty") == ""


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("UPDATE operations SET text = 'forged' WHERE seq = 3", "entry e1 version 2: not stored as the log tells"),
        (
            "UPDATE operations SET version = 7 WHERE seq = 3",
            "operation 3: UPDATE of e1 opens version 7",
        ),
        ("UPDATE operations SET speaker = 'Bob' WHERE seq = 3", "operation 3: UPDATE of e1 changes its speaker"),
        ("UPDATE operations SET entry_id = 'e9' WHERE seq = 4", "operation 4: DELETE of 'e9', which is not live"),
        (
            "UPDATE operations SET at = '2001-01-01T00:00:00.000000+00:00' WHERE seq = 6",
            "operation 6: it is dated",
        ),
        ("UPDATE operations SET at = 'noon' WHERE seq = 6", "operation 6: at is 'noon', expected an ISO time"),
        ("UPDATE operations SET turn_ids = '{' WHERE seq = 6", "operation 6: "),
        ("UPDATE operations SET batch = 1 WHERE seq = 6", "operation 6: it claims batch 1"),
        ("UPDATE operations SET undoes = 99 WHERE undoes IS NOT NULL", "it undoes batch 99, which is not before it"),
        ("UPDATE operations SET text = '  ' WHERE seq = 1", "operation 1: text is '  '"),
        ("DELETE FROM operations WHERE seq = 1", "operation 3: UPDATE of 'e1', which is not live"),
        ("DELETE FROM operations WHERE seq = 1", "entries row 1: what it refers to in operations is not there"),
        ("DELETE FROM entries WHERE id = 'e2'", "entry e2 version 1: not stored as the log tells"),
        ("UPDATE entries SET valid_to = NULL WHERE id = 'e1' AND version = 1", "e1 version 1"),
        ("UPDATE entries SET scope = 'other' WHERE id = 'e2'", "entry e2 version 1: the log does not tell of it so"),
        ("DELETE FROM vectors WHERE seq = 3", "vector 3: missing"),
        ("UPDATE vectors SET vector = x'00' WHERE seq = 3", "vector 3: has 1 bytes, expected 64"),
        ("UPDATE vectors SET vector = zeroblob(64) WHERE seq = 3", "vector 3: has length 0, expected 1"),
        ("INSERT INTO vectors VALUES (5, zeroblob(64))", "vector 5: no ADD or UPDATE has this number"),
        ("DELETE FROM embedder", "embedder: nobody is named"),
        ("UPDATE turns SET text = '' WHERE id = 't2'", "turn 't2' of scope 'default': text is ''"),
        ("UPDATE turns SET done_at = '2024-01-01T00:00:00' WHERE id = 't2'", "turn 't2' of scope 'default': done_at"),
        ("SELECT 1", "the trigger operations_are_never_changed is not as the bank's schema has it"),
        ("SELECT 1", "the index live_texts is not as the bank's schema has it"),
        ("INSERT INTO resets VALUES (3, 're-embedded', '2024')", "operation 3: a reset has the same number"),
    ],
)
def test_damage_is_found_and_named(path: Path, sql: sqlite3.Connection, damage: str, named: str) -> None:
    lower_guards(sql)
    for index in ("one_live_version", "live_texts"):
        sql.execute(f"DROP INDEX {index}")
    sql.execute(damage)
    assert named in problems(path)


def test_a_live_text_twice_in_the_log_is_found(path: Path, sql: sqlite3.Connection) -> None:
    sql.execute(
        "INSERT INTO operations SELECT 50, 'other', kind, 'e50', version, text, speaker, said_at, turn_ids, decided_by,"
        " at, 50, NULL FROM operations WHERE scope = 'other'"
    )
    assert "operation 50: ADD of e50 says what the live entry" in problems(path)


def test_damaged_pages_are_found(path: Path, sql: sqlite3.Connection) -> None:
    sql.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sql.execute("PRAGMA writable_schema = ON")
    sql.execute("UPDATE sqlite_master SET sql = replace(sql, 'ON turns (scope, number)', 'ON turns (scope, at)')")
    sql.close()
    assert "SQLite: " in problems(path)


def test_a_fork_has_no_file_to_verify(path: Path) -> None:
    with open_bank(path) as bank:
        for use in (bank.fork().verify, bank.fork().vacuum, bank.fork().delete_scope):
            with pytest.raises(BankError, match="fork"):
                use()


# Deleting a scope


def test_a_deleted_scope_is_gone_from_the_file_and_the_others_are_untouched(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    with open_bank(path, "secret scope") as secret, open_bank(path) as other:
        secret.add_turns([StoredTurn("t1", "Zoe Secret", "my secret turn")])
        secret.apply([Operation.add("a secret fact", speaker="Zoe Secret")], done=["t1"])
        other.apply([Operation.add("a plain fact")])
        said = (other.entries(), other.operations(), other.search("fact"))
        secret.delete_scope()
        assert (secret.entries(), secret.operations(), secret.pending_turns()) == ([], [], [])
        assert (other.entries(), other.operations(), other.search("fact")) == said
        assert secret.scopes() == ["default"]
        assert secret.verify() == []
    assert all(b"ecret" not in file.read_bytes() for file in tmp_path.iterdir())
    assert b"a plain fact" in path.read_bytes()


def test_a_deleted_scope_can_be_used_again_and_no_number_comes_back(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("one"), Operation.add("two")])
        bank.delete_scope()
        bank.apply([Operation.add("one")])
        assert [(entry.id, entry.text) for entry in bank.entries()] == [("e4", "one")]
        with pytest.raises(UnknownEntryError):
            bank.history("e1")
        assert bank.verify() == []


def test_another_bank_open_on_a_deleted_scope_finds_it_empty_and_goes_on(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank, open_bank(tmp_path / "bank") as other:
        bank.apply([Operation.add("one"), Operation.add("two")])
        assert len(other.search("one")) == 2
        bank.delete_scope()
        assert other.search("one") == []
        bank.apply([Operation.add("three")])
        assert [entry.text for entry in other.search("one")] == ["three"]
        other.apply([Operation.update("e4", "four")])
        assert [entry.text for entry in bank.search("four")] == ["four"]


def test_a_fork_keeps_what_it_left_with_when_the_scope_is_deleted(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("one")])
        fork = bank.fork()
        assert len(fork.search("one")) == 1
        bank.delete_scope()
        assert [entry.text for entry in fork.search("one")] == ["one"]


def test_vacuum_gives_room_back_and_loses_nothing(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank", "big") as big, open_bank(tmp_path / "bank") as bank:
        big.apply([Operation.add(f"{number} " + "x" * 1000) for number in range(500)])
        bank.apply([Operation.add("stays")])
        big.delete_scope()
        before = bank.stats().bytes
        bank.vacuum()
        assert bank.stats().bytes < before / 4
        assert [entry.text for entry in bank.search("stays")] == ["stays"]
        assert bank.verify() == []


# Older schemas


def of_schema_1(path: Path) -> None:
    """A file as the first schema's program left it: two batches in one scope, one in another."""
    at = [datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC).isoformat(timespec="microseconds") for second in range(3)]
    lines = [
        (1, "default", "ADD", "e1", 1, "has a dog", None, at[0]),
        (2, "default", "ADD", "e2", 1, "likes tea", None, at[0]),
        (3, "other", "ADD", "e3", 1, "has a dog", None, at[1]),
        (4, "default", "UPDATE", "e1", 2, "has a cat", None, at[2]),
    ]
    with sqlite3.connect(path) as connection:
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        for seq, scope, kind, id_, version, text, speaker, time in lines:
            what = (seq, scope, kind, id_, version, text, speaker, None, "[]", "person", time)
            connection.execute(f"INSERT INTO operations VALUES ({', '.join('?' * 11)})", what)
            entry = (
                id_,
                version,
                scope,
                speaker,
                text,
                time,
                at[2] if seq == 1 else None,
                seq,
                4 if seq == 1 else None,
            )
            connection.execute(f"INSERT INTO entries VALUES ({', '.join('?' * 9)})", entry)
            vector = EMBEDDER.embed([text])[0].astype(np.float32).tobytes()
            connection.execute("INSERT INTO vectors VALUES (?, ?)", (seq, vector))
        connection.execute("INSERT INTO embedder (name, dimension) VALUES ('hashing-16', 16)")
        connection.execute("INSERT INTO turns (scope, id, speaker, text) VALUES ('default', 't1', 'Ann', 'hello')")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")


def test_a_bank_of_the_first_schema_is_brought_up_to_date_whole(tmp_path: Path) -> None:
    of_schema_1(tmp_path / "old")
    with open_bank(tmp_path / "old") as bank:
        assert bank.verify() == []
        assert [line.batch for line in bank.operations()] == [1, 1, 4]
        assert bank.search("cat", k=1, mode="dense")[0].text == "has a cat"
        assert [turn.id for turn in bank.pending_turns()] == ["t1"]
        assert [one.kind for one in bank.undo()] == [OperationKind.UPDATE]
        assert bank.get("e1").text == "has a dog"
        with pytest.raises(sqlite3.IntegrityError, match="append-only"), sqlite3.connect(tmp_path / "old") as raw:
            raw.execute("UPDATE operations SET text = 'forged'")


def test_every_schema_has_a_test_that_starts_from_it() -> None:
    assert len(MIGRATIONS) == 2, "add a test that opens a file of the schema before the newest"


@pytest.mark.parametrize("event", ["scope deleted", "re-embedded"])
def test_a_fork_that_never_read_its_vectors_says_that_the_file_changed_under_it(tmp_path: Path, event: str) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("green tea"), Operation.add("a dog")])
        fork = bank.fork()
        if event == "scope deleted":
            bank.delete_scope()
        else:
            reembed(tmp_path / "bank", Renamed(16))
        with pytest.raises(BankError, match="fork again"):
            fork.search("tea", mode="dense")
        assert [entry.text for entry in fork.search("tea", mode="bm25")] == ["green tea"]


class Renamed(HashingEmbedder):
    """Another embedder of the same dimension."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.name = "renamed"
