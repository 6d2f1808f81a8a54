"""Export and import: the round trip is identity, and what is no export leaves the bank as it was."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.bank import Bank, HashingEmbedder, Operation, StoredTurn
from memory_r1.bank.exchange import export_scope, import_scope, read_log
from memory_r1.errors import BankError, InputError, MemoryR1Error

EMBEDDER = HashingEmbedder(16)


def open_bank(path: Path, scope: str = "default") -> Bank:
    return Bank.open(path, scope, EMBEDDER)


def exported(path: Path, scope: str = "default", vectors: bool = True) -> str:
    out = io.StringIO()
    export_scope(path, scope, out, vectors=vectors)
    return out.getvalue()


def taken_in(text: str, path: Path, scope: str = "default") -> None:
    """Import a text into the bank at this path."""
    file = path.parent / "exported.jsonl"
    file.write_text(text, encoding="utf-8", newline="\n")
    import_scope(path, scope, read_log(file), EMBEDDER)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bank with every kind of line, settled and pending turns, and texts that JSON must not break."""
    with open_bank(tmp_path / "old") as bank:
        bank.add_turns(
            [StoredTurn("t1", "Ann", "line\u2028one\nline two"), StoredTurn("t2", "Bob", "pending \U0001f469")]
        )
        bank.apply([Operation.add('says "hi"', speaker="Ann", turn_ids=["t1"]), Operation.add("tea")], done=["t1"])
        bank.apply(
            [Operation.update("e1", "nul \x00 inside"), Operation.delete("e2"), Operation.add("nul \x00 inside")]
        )
        bank.apply([Operation.add("nul \x00 in", speaker="Ann")], decided_by="manager@7")
        bank.restore("e2")
        bank.undo(3)
    return tmp_path / "old"


def everything(path: Path, scope: str = "default") -> tuple[object, ...]:
    with open_bank(path, scope) as bank:
        stats = replace(bank.stats(), bytes=0)
        return bank.operations(), bank.entries(), bank.pending_turns(), bank.ranked("tea hi", k=9), stats


def test_export_and_import_is_identity(old: Path, tmp_path: Path) -> None:
    text = exported(old)
    taken_in(text, tmp_path / "new")
    assert exported(tmp_path / "new") == text
    assert everything(tmp_path / "new") == everything(old)
    with open_bank(tmp_path / "new") as bank:
        assert bank.verify() == []
        assert bank.turn("t1").text == "line\u2028one\nline two"


def test_an_import_without_vectors_embeds_the_texts_anew(old: Path, tmp_path: Path) -> None:
    text = exported(old, vectors=False)
    assert "vector" not in text
    taken_in(text, tmp_path / "new")
    assert everything(tmp_path / "new") == everything(old)


def test_vectors_of_another_embedder_are_made_anew(old: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(exported(old), encoding="utf-8", newline="\n")
    import_scope(tmp_path / "new", "default", read_log(tmp_path / "text"), HashingEmbedder(8))
    with Bank.open(tmp_path / "new", embedder=HashingEmbedder(8)) as bank:
        assert bank.verify() == []
        assert bank.search("tea", k=1, mode="dense")[0].text == "tea"


def test_an_import_beside_other_scopes_is_numbered_on_and_means_the_same(old: Path, tmp_path: Path) -> None:
    with open_bank(tmp_path / "new", "other") as other:
        other.apply([Operation.add(f"fact {number}") for number in range(5)])
    taken_in(exported(old), tmp_path / "new", "moved")
    with open_bank(tmp_path / "new", "moved") as moved, open_bank(old) as origin:
        assert [line.seq - 5 for line in moved.operations()] == [line.seq for line in origin.operations()]
        assert [(e.text, e.valid_from) for e in moved.entries()] == [(e.text, e.valid_from) for e in origin.entries()]
        assert [e.text for e in moved.history("e6")] == [e.text for e in origin.history("e1")]
        moved.undo()
        assert moved.verify() == []


def test_a_scope_that_is_not_empty_is_never_written_over(old: Path, tmp_path: Path) -> None:
    text, before = exported(old), everything(old)
    with pytest.raises(BankError, match="not empty"):
        taken_in(text, old)
    assert everything(old) == before


def test_time_goes_on_after_an_import(old: Path, tmp_path: Path) -> None:
    taken_in(exported(old), tmp_path / "new")
    with open_bank(tmp_path / "new") as bank:
        bank.apply([Operation.add("later")])
        assert bank.verify() == []
        assert bank.entries()[-1].id == f"e{bank.operations()[-1].seq}"


def test_a_scope_that_holds_nothing_is_no_backup(old: Path) -> None:
    with pytest.raises(InputError, match="'typo' holds nothing"):
        exported(old, "typo")


@pytest.mark.parametrize("scope", ["", " ", "\ud800"])
def test_a_scope_that_is_no_text_is_refused_and_no_file_is_made(old: Path, tmp_path: Path, scope: str) -> None:
    with pytest.raises(InputError, match="scope"):
        taken_in(exported(old), tmp_path / "new", scope)
    with pytest.raises(InputError, match="scope"):
        exported(old, scope)
    assert not (tmp_path / "new").exists()


def test_a_bank_that_is_not_there_is_not_made_by_exporting_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bank"):
        exported(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


Edit = Callable[[list[dict[str, Any]]], None]


def put(place: int, part: str, name: str, value: object) -> Edit:
    def edit(records: list[dict[str, Any]]) -> None:
        (records[place][part] if part else records[place])[name] = value

    return edit


# the lines of the export: 0 head, 1-2 turns, 3 ADD e1, 4 ADD e2, 5 UPDATE e1, 6 DELETE e2, 7 ADD e5, 8 ADD or NOOP...
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(0, "", "format", "other"), "first line does not say"),
        (put(0, "", "version", 2), "version 2, this memory-r1 reads up to 1"),
        (put(0, "", "operations", "many"), "how many turns and operations"),
        (put(0, "", "embedder", 7), "embedder is 7"),
        (put(0, "", "embedder", None), "line 4: has a vector, but the first line names no embedder"),
        (lambda records: records.pop(), "is it cut off"),
        (lambda records: records.pop(1), "is it cut off"),
        (put(1, "turn", "text", ""), "line 2: text is ''"),
        (put(1, "turn", "id", "t2"), "turn 't2' is there twice"),
        (put(1, "turn", "at", "2024-01-01T00:00:00+02:00"), "line 2: at is .* without a zone"),
        (put(1, "turn", "done_at", "soon"), "line 2: done_at is 'soon'"),
        (put(1, "turn", "extra", 1), r"line 2: got unknown fields \['extra'\]"),
        (put(1, "", "turn", None), "line 2: got the fields"),
        (put(3, "", "scope", "stolen"), "line 4: got the fields"),
        (put(3, "operation", "scope", "stolen"), r"line 4: got unknown fields \['scope'\]"),
        (put(3, "operation", "seq", "1; DROP TABLE turns"), "line 4: seq is"),
        (put(3, "operation", "seq", 2**53 + 1), "line 4: seq is"),
        (put(3, "operation", "seq", 0), "line 4: seq is 0"),
        (put(3, "operation", "at", "9999-12-31T23:59:59.999999+00:00"), "line 4: at is .* before 3000"),
        (put(8, "operation", "version", 10**30), "version is 1000"),
        (put(3, "operation", "kind", "FORGET"), "line 4: kind is 'FORGET'"),
        (put(3, "operation", "entry_id", "e2"), "operation 1: ADD of 'e2'"),
        (put(3, "operation", "turn_ids", "t1"), "line 4: turn_ids is 't1'"),
        (put(3, "operation", "text", None), "operation 1: ADD of e1 has no text"),
        (put(3, "operation", "text", "\ud800"), "line 4: text has a lone surrogate"),
        (put(3, "", "vector", "AAAA"), "line 4: vector"),
        (put(3, "", "vector", "!"), "line 4: vector cannot be read"),
        (put(5, "operation", "version", 9), "operation 3: UPDATE of e1 opens version 9"),
        (put(8, "operation", "entry_id", "elephant"), "operation 6: "),
    ],
)
def test_a_file_that_is_no_sound_export_is_refused_and_nothing_is_written(
    old: Path, tmp_path: Path, edit: Edit, message: str
) -> None:
    records = [json.loads(line) for line in exported(old).split("\n")[:-1]]
    edit(records)
    text = "".join(json.dumps(record) + "\n" for record in records)
    with pytest.raises(InputError, match=message):
        taken_in(text, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", ["", "\n", "null\n", "[]\n", "{}\n", "not json", "\x00", "[" * 200_000])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="exported"):
        taken_in(text, tmp_path / "new")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not lines of JSON"):
        read_log(tmp_path / "bytes")


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text(min_size=1).filter(lambda text: text.strip()), min_size=1, max_size=6, unique=True),
    turns=st.lists(st.text(min_size=1).filter(lambda text: text.strip()), max_size=4, unique=True),
)
def test_any_text_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], turns: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    with open_bank(folder / "old") as bank:
        try:
            bank.add_turns([StoredTurn(turn, turn, turn) for turn in turns])
            bank.apply([Operation.add(text, speaker=text) for text in texts], done=turns[:1])
        except MemoryR1Error:
            return  # not valid Unicode: never stored, so never exported
    taken_in(exported(folder / "old"), folder / "new")
    assert exported(folder / "new") == exported(folder / "old")
    assert everything(folder / "new") == everything(folder / "old")


def test_an_import_into_a_new_file_keeps_the_embedder_of_the_log(old: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(exported(old), encoding="utf-8", newline="\n")
    import_scope(tmp_path / "new", "default", read_log(tmp_path / "text"))
    with Bank.open(tmp_path / "new") as bank:
        assert bank.embedder.name == "hashing-16"
        assert bank.verify() == []


def test_an_import_that_the_files_embedder_forbids_is_refused_before_anything_is_embedded(
    old: Path, tmp_path: Path
) -> None:
    with Bank.open(tmp_path / "new", "other", HashingEmbedder(8)) as other:
        other.apply([Operation.add("a fact")])
    (tmp_path / "text").write_text(exported(old, vectors=False), encoding="utf-8", newline="\n")
    with pytest.raises(BankError, match="hashing-8"):
        import_scope(tmp_path / "new", "default", read_log(tmp_path / "text"), HashingEmbedder(32))
    with open_bank(tmp_path / "new") as bank:
        assert bank.operations() == []
