"""The verbs of memory-r1 bank that change, move and check a bank: what they print, and what a refusal leaves."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest

from memory_r1 import cli
from memory_r1.bank import Bank, HashingEmbedder, Operation, StoredTurn
from memory_r1.bank.mem0 import Mem0Entry, Mem0Owner, Mem0Store

VERBS = (
    "add", "update", "delete", "as-of", "log", "undo", "restore", "export", "import", "verify", "reembed", "vacuum",
    "delete-scope",
)  # fmt: skip
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bank(folder: Path) -> Path:
    """memory.db: e1 in two versions, e2, a deleted e3 and a turn in scope default; one entry in scope other."""
    path = folder / "memory.db"
    with Bank.open(path, embedder=HashingEmbedder(16)) as bank:
        bank.add_turns([StoredTurn("t1", "Ann", "hello")])
        bank.apply([Operation.add(text, speaker="Ann") for text in ("likes tea", "a dog", "a cat")], done=["t1"])
        bank.apply([Operation.update("e1", "likes green tea"), Operation.delete("e3")], decided_by="small")
    with Bank.open(path, "other", embedder=HashingEmbedder(16)) as bank:
        bank.apply([Operation.add("somebody else's")])
    return path


def run(*arguments: str) -> int:
    return cli.main(["bank", *arguments])


def live(path: Path, scope: str = "default") -> list[str]:
    with Bank.open(path, scope, embedder=HashingEmbedder(16)) as bank:
        return [entry.text for entry in bank.entries()]


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.endswith(" ...")]  # a progress line may precede
    assert len(lines) == 1, captured.err
    return lines[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_in_its_help(capsys: Capture, verb: str) -> None:
    with pytest.raises(SystemExit):
        run(verb, "--help")
    assert f"memory-r1 bank {verb}" in " ".join(capsys.readouterr().out.split())


# Editing and going back


def test_a_person_adds_corrects_and_deletes(capsys: Capture, bank: Path) -> None:
    assert run("add", "a goldfish", "--speaker", "Ann", "--said-at", "2025-03-01", "--by", "Bea") == 0
    assert run("update", "e2", "two dogs") == 0
    assert run("delete", "e1") == 0
    assert capsys.readouterr().out.splitlines() == [
        "7 ADD e7 version 1: a goldfish",
        "8 UPDATE e2 version 2: two dogs",
        "9 DELETE e1 version 2: likes green tea",
    ]
    assert live(bank) == ["two dogs", "a goldfish"]


def test_add_makes_a_bank_where_there_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("add", "first", "--bank", "new.db", "--embedder", "hashing-16") == 0
    assert live(folder / "new.db") == ["first"]


def test_undo_and_restore_print_what_they_did(capsys: Capture, bank: Path) -> None:
    assert run("undo") == 0
    assert run("restore", "e1", "--version", "2", "--by", "Bea") == 0
    assert capsys.readouterr().out.splitlines() == [
        "7 UPDATE e1 version 3: likes tea",
        "8 ADD e3 version 2: a cat",
        "9 UPDATE e1 version 4: likes green tea",
    ]
    assert live(bank) == ["likes green tea", "a dog", "a cat"]


def test_the_log_lists_numbers_deciders_and_what_was_undone(capsys: Capture, bank: Path) -> None:
    assert run("undo", "4", "--by", "Bea") == 0
    capsys.readouterr()
    assert run("log") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4", "5", "7", "8"]
    assert lines[3].endswith("UPDATE e1: likes green tea  by small")
    assert lines[5].endswith("UPDATE e1: likes tea (undoes 4)  by Bea")
    assert run("log", "--last", "1", "--json") == 0
    assert [line["seq"] for line in json.loads(capsys.readouterr().out)] == [8]


def test_as_of_shows_what_was_believed_then(capsys: Capture, bank: Path) -> None:
    with Bank.open(bank, embedder=HashingEmbedder(16)) as opened:
        then = opened.operations()[2].at.isoformat()
    assert run("as-of", then) == 0
    assert capsys.readouterr().out.splitlines() == ["e1 Ann: likes tea", "e2 Ann: a dog", "e3 Ann: a cat"]
    assert run("as-of", "2001-01-01", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["undo", "99"], "operation 99 is not in this scope's log"),
        (["undo", "6"], "operation 6 is not in this scope's log"),  # another scope's
        (["restore", "e6"], "'e6' was never in this scope"),
        (["restore", "e1", "--version", "9"], "e1 has no version 9"),
        (["restore", "e2"], "e2 has no version 0"),
        (["update", "e6", "stolen"], "'e6' was never in scope"),
        (["update", "e2", " "], "not empty"),
        (["update", "e1", "x", "--version", "1"], "decided on version 1"),
        (["delete", "e3"], "'e3'"),
        (["add", ""], "not empty"),
        (["add", "x", "--said-at", "noon"], "'noon', expected ISO"),
        (["add", "x", "--said-at", "2025-01-01T00:00+01:00"], "without a zone"),
        (["add", "x", "--by", ""], "decided_by is ''"),
        (["as-of", "yesterday"], "'yesterday', expected ISO"),
        (["as-of", "0001-01-01T00:00+05:00"], "expected one that UTC has too"),
        (["add", "x", "--said-at", "2025-01-01T00:00Z"], "without a zone"),
        (["list", "--bank", "a" * 300], "cannot be looked at"),
        (["import", "a" * 300, "--scope", "new"], "a" * 100),
        (["list", "--scope", ""], "scope is ''"),
        (["export", "out.jsonl", "--scope", "typo"], "'typo' holds nothing"),
        (["import", "missing.jsonl", "--scope", ""], "missing.jsonl: no such file"),
        (["log", "--last", "0"], "last is 0"),
        (["delete-scope", "--scope", "nobody", "--yes"], "expected one of: 'default', 'other'"),
        (["delete-scope"], "add --yes"),
        (["reembed", "no-such-model"], "no-such-model"),
        (["import", "missing.jsonl", "--scope", "new"], "missing.jsonl: no such file"),
        (["import", "memory.db", "--scope", "new"], "not lines of JSON"),
        (["import", ".", "--scope", "new"], "mem0"),
        (["import", "memory.db", "--owner", "alice"], "mem0"),
        (["export", "memory.db"], "is there already"),
        (["export", "nowhere/out.jsonl"], "nowhere/out.jsonl: cannot be written"),
    ],
)
def test_a_refused_verb_says_why_in_one_line_and_changes_nothing(
    capsys: Capture, bank: Path, arguments: list[str], message: str
) -> None:
    before = everything(bank)
    assert message in refused(capsys, *arguments)
    assert everything(bank) == before
    assert sorted(path.name for path in bank.parent.iterdir() if "-" not in path.name) == ["memory.db"]


def everything(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


@pytest.mark.parametrize(
    "arguments",
    [["undo"], ["restore", "e1"], ["update", "e1", "x"], ["delete", "e1"], ["as-of", "2025-01-01"], ["log"], ["verify"],
     ["vacuum"], ["export", "out.jsonl"], ["reembed", "hashing-16"], ["delete-scope", "--yes"]],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_a_bank_that_is_not_there_is_not_made(capsys: Capture, folder: Path, arguments: list[str]) -> None:
    assert "no such bank" in refused(capsys, *arguments)
    assert list(folder.iterdir()) == []


# Moving


def test_a_scope_moves_to_another_bank(capsys: Capture, bank: Path, folder: Path) -> None:
    assert run("export", "ann.jsonl") == 0
    assert run("import", "ann.jsonl", "--bank", "new.db", "--scope", "ann", "--embedder", "hashing-16") == 0
    assert capsys.readouterr().out == "ann: 1 turns, 5 operations\n"
    assert live(folder / "new.db", "ann") == live(bank)
    assert run("export", "again.jsonl", "--bank", "new.db", "--scope", "ann") == 0
    first, second = (Path(name).read_text(encoding="utf-8") for name in ("ann.jsonl", "again.jsonl"))
    assert first.splitlines()[1:] == second.splitlines()[1:]


def test_export_prints_to_the_standard_output_and_replaces_only_when_told(capsys: Capture, bank: Path) -> None:
    assert run("export", "-", "--no-vectors") == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 7
    assert "vector" not in printed
    Path("out.jsonl").write_text("precious")
    assert run("export", "out.jsonl", "--no-vectors", "--overwrite") == 0
    assert Path("out.jsonl").read_text(encoding="utf-8") == printed


def test_an_import_into_a_scope_that_is_used_is_refused(capsys: Capture, bank: Path) -> None:
    assert run("export", "ann.jsonl") == 0
    before = everything(bank)
    assert "not empty" in refused(capsys, "import", "ann.jsonl")
    assert everything(bank) == before


# Keeping in order


def test_verify_says_sound_or_names_what_is_broken_with_exit_code_1(capsys: Capture, bank: Path) -> None:
    assert run("verify") == 0
    assert capsys.readouterr().out == "memory.db: sound; scopes checked: 2\n"
    with closing(sqlite3.connect(bank)) as connection, connection:
        connection.execute("DELETE FROM vectors WHERE seq = 1")
    assert run("verify") == 1
    assert capsys.readouterr().out == "vector 1: missing\n"
    assert run("verify", "--json") == 1
    assert json.loads(capsys.readouterr().out) == ["vector 1: missing"]


def test_delete_scope_deletes_that_scope_alone(capsys: Capture, bank: Path) -> None:
    assert run("delete-scope", "--scope", "other", "--yes") == 0
    assert capsys.readouterr().out == "deleted scope other: 1 live entries, 1 versions and 0 turns\n"
    assert (live(bank, "other"), len(live(bank))) == ([], 2)


@pytest.mark.parametrize(("typed", "code", "left"), [("other", 0, 0), ("yes", 2, 1), ("", 2, 1)])
def test_delete_scope_asks_at_a_terminal_for_the_scopes_name(
    monkeypatch: pytest.MonkeyPatch, bank: Path, typed: str, code: int, left: int
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: typed)
    assert run("delete-scope", "--scope", "other") == code
    assert len(live(bank, "other")) == left


def test_delete_scope_takes_the_end_of_input_for_a_no(monkeypatch: pytest.MonkeyPatch, bank: Path) -> None:
    def nobody(prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", nobody)
    assert run("delete-scope", "--scope", "other") == 2
    assert len(live(bank, "other")) == 1


def test_vacuum_prints_both_sizes(capsys: Capture, bank: Path) -> None:
    assert run("vacuum") == 0
    assert "bytes before" in capsys.readouterr().out
    assert len(live(bank)) == 2


def test_reembed_changes_the_embedder_and_the_bank_is_opened_with_it_from_then_on(capsys: Capture, bank: Path) -> None:
    assert run("reembed", "hashing-32") == 0
    assert "5 versions embedded" in capsys.readouterr().out
    assert run("search", "dog", "--mode", "dense", "--k", "1") == 0
    assert capsys.readouterr().out == "e2 Ann: a dog\n"
    assert run("verify") == 0


# Where output goes


PROGRAM = [sys.executable, "-c", "import sys; from memory_r1.cli import main; sys.exit(main())", "bank"]


def test_work_goes_on_when_nobody_reads_the_progress(bank: Path, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "export", "out.jsonl"], cwd=folder, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 0
    assert len((folder / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_said_and_the_work_is_done(bank: Path, folder: Path) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "delete", "e2"], cwd=folder, env=buffered, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"memory-r1: done, but what it prints cannot be written")
    assert live(bank) == ["likes green tea"]


def test_a_name_that_the_terminal_cannot_show_is_no_reason_to_fail(bank: Path, folder: Path) -> None:
    run("add", "Zo\u00eb likes \U0001f375")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*PROGRAM, "list"], cwd=folder, env=environment, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0
    assert "Zo\u00eb likes \U0001f375" in done.stdout.decode("utf-8")


# mem0


def test_owners_who_would_share_a_scope_are_refused(
    capsys: Capture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = [Mem0Owner(user_id="agent_id=bot"), Mem0Owner(agent_id="bot")]
    store = Mem0Store(tuple(Mem0Entry(str(owner), owner, "a fact") for owner in owners))
    monkeypatch.setattr("memory_r1.bank.mem0.read_mem0", lambda *arguments, **named: store)
    (folder / "qdrant").mkdir()
    assert "two owners are called 'agent_id=bot'" in refused(capsys, "import", "qdrant")
    assert not (folder / "memory.db").exists()


def test_each_owner_of_a_mem0_store_gets_a_scope(
    capsys: Capture, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = date(2999, 1, 1)
    store = Mem0Store(
        tuple(Mem0Entry(name, Mem0Owner(name), f"{name} likes tea", expires_on=ends) for name in ("ann", "bob"))
    )
    monkeypatch.setattr("memory_r1.bank.mem0.read_mem0", lambda *arguments, **named: store)
    (folder / "qdrant").mkdir()
    assert "--owner" in refused(capsys, "import", "qdrant", "--scope", "mine")
    assert run("import", "qdrant", "--embedder", "hashing-16") == 0
    captured = capsys.readouterr()
    assert captured.out == "ann: 0 turns, 1 operations\nbob: 0 turns, 1 operations\n"
    assert "kept for good: 2 memories" in captured.err
    assert run("import", "qdrant", "--owner", "bob", "--scope", "mine") == 0
    assert [live(folder / "memory.db", scope) for scope in ("ann", "bob", "mine")] == [
        ["ann likes tea"], ["bob likes tea"], ["bob likes tea"],
    ]  # fmt: skip
