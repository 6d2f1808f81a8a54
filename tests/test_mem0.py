"""What is read from a mem0 store, and what is told of it as a log."""

from __future__ import annotations

import base64
import os
import pickle
import random
import sqlite3
import sys
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.bank.log import Log
from memory_r1.bank.mem0 import Mem0Change, Mem0Entry, Mem0Owner, Mem0Store, logged_operations, read_mem0
from memory_r1.bank.operation import Entry, LoggedOperation, OperationKind
from memory_r1.bank.replay import Replay
from memory_r1.errors import InputError

ADD, UPDATE, DELETE, NOOP = OperationKind
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = datetime(2026, 7, 1, tzinfo=UTC)
ANN = Mem0Owner("ann")
HISTORY_COLUMNS = "id, memory_id, old_memory, new_memory, event, created_at, updated_at, is_deleted, actor_id, role"

# Both files of a store that mem0ai 2.2.1 wrote with qdrant-client 1.20 (VACUUMed into pages of 512 bytes): Ann said
# "I love tea", then coffee; an LLM extracted Tom the cat; Bob's Rome was deleted; his Oslo became Bergen.
REAL_POINTS = (
    "eNrtVt1u40QUttP0b6ECAaUUbqwVEl0WV/Z4/NcLumkbRekm7rbNtiQSssbjce2sE2cdu7TVgqi0CJAssRLmGbjilpfgJXgCxCXaK8ZxQ8OGLe2K"
    "SlzskSbHMz7zzTnzfTPO7nbNiwjnBGEHRZzEFBiWZe5wHMMws7RNMedWoK040meZf7dZZhmzc+wfTIF9xLCP2F+Yl/aX1dmphcVF9rMIWT7pBV43"
    "6ue/hfWdcqlR5hqltVqZy8e4Jc/mGuVPGty9nWq9tNPk7pabH+UvubXa1tqt24WphdVFlvG6NjnqP/QpryaKo2DQN3MUU8z9BF1+JsthjrYJ5ieG"
    "/ZFtUff/tq9uTk2ezn/78UFpd+9uaWjr9c1KXdjacN2thu3WGgcndVCNjMqe3/QE2OrcP6ZjR61OVWy23Y5xsuPXe9vxl8UfjEIOm3AP7RB1IxP7"
    "HulGy24U9ZY7gU38/plLk1fuZfu2G4UxjtLv01un6efpUjJjmraHI9Mc9AqenSbvY6hp2cl5vFakyX79xXiyZbm1sdep71eFWmPTb3WakbFxcGKs"
    "C3Id7Pi1RvPYaBvtemX7uL5PnyjY5GNjgoJ98/YY2Mb2UZNWZrT9Nq1SMNoHFGzzgbGbVb4t1/ZbD+qNJjQq96Vmu3TSbA0qfzo8u8UbGf/sTYb9"
    "mfWpe2ljVi2ezrP/heKmnoN0RTlQBov/jPQCWpi4jhMARcuSFR3zGlQ0HgJb5jXH1nnHFhUNEtUSJJQmU4cER0FI5yVM+mm6VFn9PU+mckfNH0g/"
    "me6hYz9A9gB9Ou6T0MyWmEDdbpoUbRRRoIVSt/tBn8P0++VlzvcJvSmDTpq8FpGjyPRJh37bvBNiXxRbdFHfTROOWJagEKIAKOhIVoFuWyqAjo01"
    "pOmKQte7gUOCImKbKKLxQAAKL4o8EBqiuCLAFVFZVgVNEYXbgrAiCDQ+7tlXiZ9DURR6VpxNiQKaWVZ2GsfJG6bZO7YpTR42aWEhortuJAsjo45H"
    "fLtv9klGyHfpkjvtzrpzT5K3RmJ6oXdI08nmxtZyts/5nfAbex1aQLotO6IFeUAch4eaBHldsgmvAEXCgg1EjOULtfDhJbUQBj4Z7lUygzK4/HVp"
    "RCpzVc4PDgmHA8ch5Jx0rNtAh7IKMZQV0YEqUHQJQ0RUAWCE4GVIV1QgieIVSJckDYBh/LhUn8n1GvlHuop4TZIsHhJi0bNKAK+JjiVbmqNCAkb5"
    "WRojSDgjKClaHSCnLpO8uttDYZ/s5XOG8nAnB7zRfyMeJn0KcpdFFBj58aBXWf01B0IvVOib7vwFZcZ/F0+xEwR0h4uO16UiGJGSFVjPSulMOa9T"
    "NjzKhtfl1kh4QLrn4pEtRVMVUcK67EAsydgSCIESAZauiroDLnVjKCpVwxXEowF6wz5fPOPpxrG7YLjvDEXx3hP33Yz/PwHkx+uD"
)
REAL_HISTORY = (
    "eNrtV91uG0UUnrHz0yTKVRVFURRpKy6Sqp2yMzt/mwgJtzEoooYSbEQvkDUzO1uMbG/JuoVeBhXxCCDxCEi8B08A1zwEQuKGM46tGimOnV5FbY7W"
    "3hnvmdHn881+55zPPn3YGfgoL056ZhAlqIIwRu9HEUJoDT6r6JVV4bMwMcdotq2hew4vhlFlOF9G13alLHBTwX+H4Sr+92xwbW+BrQTmb1RXhy/l"
    "Xwj/gX/DP+AvMcdrMH2DbK/awjpROnWpIzmjGeGpVsSqOCMJc9yzLJM8FwvBUSYuT412xMTMEW6tITZJDJFxquI4cT6VohIchXfMCZ4SqZOUcJlQ"
    "ktrcECGM4l6yVPJscbfaWhHUcyZSQRTjnHBHJbFMMcKFTqynnkntwoaM5yZ2npHc2pxwasEvFpzEwmaxyB3zVi4FR2oEt4rlxFEO20ifEq0BsfI8"
    "sUrEiZJ6eejINBPaJkRKBzsmkpGUS4iBSGPhJVdOmaDpKPqqUw6KkxfR3mo0xTrZxKRZ/6IZPTo+atSOH0cf1R/fnbqs53uwb/tsdVg23bXoZu0z"
    "95muff/tvK7+ue8PJnFPd3Un3gx81jbB/7DWrDePGvXp7s+eZpdx75TtzHc9rIDJ0cfN+of14+nexgEfo7DNgH1SdP3/mDnX8/a0t2M9JHL8E4Lr"
    "2q6OPcHLrXc2dlGDgvxYClLlQSwIz5OEGJuBLLBcKRAGL0zyrPThsLxn+v0wbLyIHJzKThk1ix6LmSSUEhY3Kd2P+T6V91QSCyXuxPF+HK8O+f8T"
    "wXVtb5CF1DPP2VnH/0BRfxfhX/Dv6C7++qI9vz+oLm/u7OCXRwNju77ny9I88eX4vvjguA46GDVr9x/Wo/GvFyeV+VNJCft1in67dMVTP48mzlD7"
    "oj8IqWFGpjE9P3/aGGeB8xX43YWlzQc7GHX6mf+u/KYLbVfbPBsUw3l7HK42HY+WXq7h5c3tbfxjbxjuUZIe3SqTwQ6NGaksbda2p20/WtWmo0HI"
    "+zfG+l9F2wh/jn6F26SdrlfXWi10cLMRXOepJqBqsUJCmaW51ISzTBCdZynJMyo198rGian1+7vlWKCc6XYhI4JO1Q4Pz5WqWEsan0nV6V4l4Ll9"
    "s9G4gTbmqdRcSrOcG08kU1CkaasBD4cC0CtPoYLTsaVHUbfz3EedfnRc9PwUGDKlWo8Uc9bzIMGnuzhAvRWg3tyYpwQ0aSZyajlhPofw6oSTNMkC"
    "cvijccaocwKgFgB14M00mIollF4Ac+J57SxZrA9b858R/gC+rpCd3lmECN5GW43GCtqYp9q+PNmH9Yf1Zv11+IYym1M2wbdaALS3dreGfM/TbVyO"
    "79HIFXnufetREJrX4V8liWbsHP6h/muhq1QBnh4sB/rJ1vBdn6flcVxrkypDNCQ9IN1boB/aKU1zK6zO4ZywV/R/UnaLV7P7/uSJ70+Pq5IKAndB"
    "XEEaZTpxHPaWJpRqns7u8uinCeYsqBPPA9T/AKrDf9I="
)


def minute(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


# A store in mem0's format, written without mem0


class Named:
    """Lets pickle write objects of a class by the name of one that is not installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "qdrant_client.http.models.models.PointStruct"):
        module_name, class_name = name.rsplit(".", 1)
        parts = module_name.split(".")
        for stop in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:stop]), ModuleType(".".join(parts[:stop])))
        self.made = type(class_name, (), {"__module__": module_name})
        setattr(sys.modules[module_name], class_name, self.made)

    def point(self, key: object, payload: object) -> bytes:
        """A pickle as pydantic's models make it."""
        point = self.made()
        fields = {"id": key, "vector": {"": [1.0, 0.0]}, "payload": payload}
        point.__dict__.update(
            __dict__=fields, __pydantic_extra__=None, __pydantic_fields_set__=set(fields), __pydantic_private__=None
        )
        return pickle.dumps(point, protocol=4)


@dataclass
class Store:
    """Writes the two files; `folder` is what mem0 calls the path of its vector store."""

    folder: Path
    named: Named

    @property
    def points(self) -> Path:
        return self.folder / "collection" / "mem0" / "storage.sqlite"

    @property
    def history(self) -> Path:
        return self.folder.parent / "history.db"

    def put(self, *payloads: Mapping[str, Any]) -> None:
        """Write the live points, `id` taken out of each payload."""
        self.put_raw(*(self.named.point(p["id"], {k: v for k, v in p.items() if k != "id"}) for p in payloads))

    def put_raw(self, *blobs: object) -> None:
        self.points.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.points)) as file, file:
            file.execute("CREATE TABLE points (id TEXT PRIMARY KEY, point BLOB)")
            file.executemany("INSERT INTO points VALUES (?, ?)", [(str(i), blob) for i, blob in enumerate(blobs)])

    def log(self, *rows: Sequence[object], columns: str = HISTORY_COLUMNS) -> None:
        """Write history rows, without their own id, which is made up; what a row is too short for is NULL."""
        width = len(columns.split(","))
        filled = [(f"row{i}", *row, *[None] * (width - 1 - len(row))) for i, row in enumerate(rows)]
        with closing(sqlite3.connect(self.history)) as file, file:
            file.execute(f"CREATE TABLE history ({columns})")
            file.executemany(f"INSERT INTO history VALUES ({','.join('?' * width)})", filled)

    def read(self) -> Mem0Store:
        return read_mem0(self.folder, self.history if self.history.exists() else None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(tmp_path / "qdrant", Named(monkeypatch))


@pytest.fixture
def real(tmp_path: Path) -> tuple[Path, Path]:
    """The folder and the history of the store that mem0 wrote."""
    folder, history = tmp_path / "qdrant", tmp_path / "history.db"
    (folder / "collection" / "mem0").mkdir(parents=True)
    (folder / "collection" / "mem0" / "storage.sqlite").write_bytes(zlib.decompress(base64.b64decode(REAL_POINTS)))
    history.write_bytes(zlib.decompress(base64.b64decode(REAL_HISTORY)))
    return folder, history


def replayed(lines: Iterable[LoggedOperation]) -> Log:
    """The log of a bank that has these lines, each checked against the rules."""
    replay, log = Replay(), Log(source=lambda after: ())
    for number, line in enumerate(lines, start=1):
        assert replay.take(line) is None
        assert (line.seq, line.decided_by) == (number, "mem0")
        if line.kind is NOOP:
            assert line.text is not None
            same = log.live_with(line.speaker, line.text)
            assert same is not None
            assert same.id == line.entry_id
        log.append(line)
    batches = {line.batch: line.at for line in log.lines()}
    assert list(batches.values()) == sorted(set(batches.values()))
    return log


def texts(entries: Iterable[Entry]) -> list[str]:
    return [entry.text for entry in entries]


def told(*entries: Mem0Entry, now: datetime = NOW) -> Log:
    return replayed(logged_operations(entries, now))


def entry(text: str | None, *changes: Mem0Change, key: str = "m1", **known: Any) -> Mem0Entry:
    return Mem0Entry(key, ANN, text, **{"created_at": minute(0), "updated_at": minute(9), **known}, changes=changes)


def added(text: str, at: int = 0) -> Mem0Change:
    return Mem0Change("ADD", None, text, minute(at))


def updated(old: str | None, new: str, at: int) -> Mem0Change:
    return Mem0Change("UPDATE", old, new, minute(at))


def deleted(old: str, at: int) -> Mem0Change:
    return Mem0Change("DELETE", old, None, minute(at))


# Reading


def test_a_store_that_mem0_wrote_is_read_with_owners_speakers_and_history(real: tuple[Path, Path]) -> None:
    store = read_mem0(*real)
    owners = {str(owner): [(e.text, e.speaker) for e in entries] for owner, entries in store.owners.items()}
    assert owners == {
        "user_id=ann": [("Ann's cat is called Tom", "user"), ("I love coffee", "Ann")],
        "user_id=bob": [("I live in Bergen", "user")],
    }
    coffee = store.owners[ANN][1]
    assert [(c.event, c.old, c.new) for c in coffee.changes] == [
        ("ADD", None, "I love tea"),
        ("UPDATE", "I love tea", "I love coffee"),
    ]
    assert (coffee.created_at, coffee.updated_at) == (coffee.changes[0].at, coffee.changes[1].at)
    assert [c.old for gone in store.gone for c in gone.changes] == [None, "I live in Rome"]
    assert store.textless == 0


def test_a_store_that_mem0_wrote_becomes_a_log_with_closed_versions(real: tuple[Path, Path]) -> None:
    store = read_mem0(*real)
    log = replayed(logged_operations([*store.entries, *store.gone], NOW + timedelta(days=999)))
    assert texts(log.live_entries()) == ["I love coffee", "Ann's cat is called Tom", "I live in Bergen"]
    assert [texts(log.versions(f"e{n}")) for n in (1, 2)] == [["I love tea", "I love coffee"], ["I live in Rome"]]
    assert log.versions("e2")[0].valid_to == store.gone[0].changes[1].at


def test_reading_changes_no_file(real: tuple[Path, Path]) -> None:
    files = [path for path in real[0].parent.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    read_mem0(*real)
    assert [path for path in real[0].parent.rglob("*") if path.is_file()] == files
    assert [path.read_bytes() for path in files] == before


def test_entries_are_kept_apart_by_user_agent_and_run(store: Store) -> None:
    store.put(
        {"id": "1", "data": "tea", "user_id": "ann"},
        {"id": "2", "data": "coffee", "user_id": "ann", "run_id": "r1"},
        {"id": "3", "data": "cocoa", "agent_id": "bot"},
        {"id": "4", "data": "water", "user_id": 7},
    )
    owners = store.read().owners
    assert [str(owner) for owner in owners] == ["agent_id=bot", "user_id=7", "user_id=ann", "user_id=ann&run_id=r1"]
    assert [e.text for e in owners[ANN]] == ["tea"]


def test_the_speaker_is_the_actor_else_the_role_else_whom_it_is_attributed_to(store: Store) -> None:
    store.put(
        {"id": "1", "data": "a", "actor_id": "Ann", "role": "user", "attributed_to": "assistant"},
        {"id": "2", "data": "b", "role": "user", "attributed_to": "assistant"},
        {"id": "3", "data": "c", "attributed_to": "assistant"},
        {"id": "4", "data": "d", "actor_id": " "},
    )
    assert [e.speaker for e in store.read().entries] == ["Ann", "user", "assistant", None]


def test_of_two_copies_of_a_point_the_one_written_last_counts(store: Store) -> None:
    store.put({"id": "1", "data": "old"}, {"id": "2", "data": "other"}, {"id": "1", "data": "new"})
    assert [(e.id, e.text) for e in store.read().entries] == [("2", "other"), ("1", "new")]


def test_what_only_the_history_knows_has_no_owner(store: Store) -> None:
    store.put({"id": "1", "data": "tea", "user_id": "ann"})
    store.log(["2", None, "Bob is ill", "ADD", "2026-01-01T12:00:00+00:00"], ["2", "Bob is ill", None, "DELETE"])
    (gone,) = store.read().gone
    assert (gone.owner, gone.text, gone.created_at) == (Mem0Owner(), None, NOON)


def test_texts_that_are_empty_or_not_text_are_counted_and_never_live(store: Store) -> None:
    texts_ = ["", "  ", None, 7, ["tea"], "\ud800", "tea"]
    store.put(*({"id": str(i), "data": text, "user_id": "ann"} for i, text in enumerate(texts_)), {"id": "x"})
    store.log(["0", None, "was tea once", "ADD", "2026-01-01T12:00:00+00:00"])
    read = store.read()
    log = told(*read.entries)
    assert (len(read.entries), read.textless) == (8, 7)
    assert texts(log.live_entries()) == ["tea"]
    assert texts(log.versions("e1")) == ["was tea once"]


def test_a_history_of_an_old_mem0_is_read_without_the_columns_it_lacks(store: Store) -> None:
    store.put({"id": "1", "data": "tea"})
    columns = "id, memory_id, old_memory, new_memory, new_value, event, created_at, updated_at, is_deleted"
    store.log(
        ["1", None, "milk", "x", "ADD", "2026-01-01T12:00:00+00:00"],
        ["1", "milk", "tea", "x", "UPDATE", "2026-01-01T12:00:00+00:00", "2026-01-01T04:03:00-08:00"],
        columns=columns,
    )
    (only,) = store.read().entries
    assert only.changes == (
        Mem0Change("ADD", None, "milk", NOON, NOON),
        Mem0Change("UPDATE", "milk", "tea", minute(3), NOON),
    )


def test_a_time_without_a_zone_is_utc_wherever_the_reader_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    store.put(
        {"id": "1", "data": "tea", "created_at": "2026-01-01T12:00:00", "updated_at": "2026-01-01T21:03:00+09:00"}
    )
    (only,) = store.read().entries
    monkeypatch.undo()
    time.tzset()
    assert (only.created_at, only.updated_at) == (minute(0), minute(3))


@pytest.mark.parametrize("when", ["yesterday", 1_700_000_000, None, "0001-01-01T00:00:00+14:00"])
def test_a_time_that_is_none_is_unknown_and_stops_nothing(store: Store, when: object) -> None:
    store.put({"id": "1", "data": "tea", "created_at": when, "updated_at": when, "expiration_date": "soon"})
    (only,) = store.read().entries
    assert (only.created_at, only.updated_at, only.expires_on) == (None, None, None)
    assert told(only).lines()[0].at == NOW


def test_a_collection_is_found_beside_its_entities_and_by_name(store: Store) -> None:
    store.put({"id": "1", "data": "tea"})
    for name in ("mem0_entities", "other"):
        (store.folder / "collection" / name).mkdir()
        (store.folder / "collection" / name / "storage.sqlite").write_bytes(b"")
    with pytest.raises(InputError, match="several collections, expected the name of one of: mem0, mem0_entities, oth"):
        store.read()
    with pytest.raises(InputError, match="no collection 'nope'"):
        read_mem0(store.folder, collection="nope")
    assert len(read_mem0(store.folder, collection="mem0").entries) == 1
    (store.folder / "collection" / "other" / "storage.sqlite").unlink()
    assert len(store.read().entries) == 1


# Refusing


class Calls:
    """What a hostile pickle is made of: unpickled, it would call a function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("hidden", "named"),
    [
        (lambda path: Calls(os.system, f"touch {path}"), "posix.system"),
        (lambda path: Calls(eval, f"open({str(path)!r}, 'w')"), "builtins.eval"),
        (lambda path: Calls(os.mkdir, str(path)), "posix.mkdir"),
        (lambda path: random.Random(1), "random.Random"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused_by_name_and_not_run(
    store: Store, tmp_path: Path, hidden: Any, named: str
) -> None:
    store.put({"id": "1", "data": "tea", "metadata": hidden(tmp_path / "made")})
    with pytest.raises(
        InputError, match=rf"point 1 cannot be read .* it names '{named}', which no point of mem0 holds"
    ):
        store.read()
    assert not (tmp_path / "made").exists()


def test_dates_in_metadata_are_read_past(store: Store) -> None:
    store.put({"id": "1", "data": "tea", "when": NOON, "for": timedelta(1), "on": NOON.date()})
    assert [e.text for e in store.read().entries] == ["tea"]


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", "EOFError"),
        (b"\x80\x04N", "EOFError|truncated"),
        (b"not a pickle", "UnpicklingError"),
        (b"\x80\x04P0\n.", "UnpicklingError"),  # a persistent id
        (b"\x80\x04K", "."),
        (pickle.dumps({"id": "1"}), "is not a pickled Qdrant point"),
        (pickle.dumps(None), "is not a pickled Qdrant point"),
        ("text", "is str, expected a pickle"),
        (None, "is NoneType, expected a pickle"),
    ],
)
def test_what_is_not_a_pickled_point_is_refused_with_its_place(store: Store, blob: object, reason: str) -> None:
    store.put_raw(store.named.point("0", {"data": "tea"}), blob)
    with pytest.raises(InputError, match=rf"storage.sqlite: point 2 .*({reason})") as caught:
        store.read()
    assert "\n" not in str(caught.value)


def test_a_point_cut_short_anywhere_is_refused(store: Store) -> None:
    whole = store.named.point("0", {"data": "tea", "user_id": "ann"})
    refused = 0
    for stop in range(len(whole)):
        store.points.unlink(missing_ok=True)
        store.put_raw(whole[:stop])
        with pytest.raises(InputError):
            store.read()
        refused += 1
    assert refused == len(whole)


def test_a_point_without_fields_is_refused(store: Store) -> None:
    store.put_raw(pickle.dumps(store.named.made()))
    with pytest.raises(InputError, match="point 1 is not a pickled Qdrant point"):
        store.read()


def test_a_point_whose_fields_are_of_other_types_is_refused(store: Store) -> None:
    for key, payload in ((None, {}), ([], {}), ("1", ["data"]), ("1", "data"), ("1", {"user_id": ["ann"]})):
        store.points.unlink(missing_ok=True)
        store.put_raw(store.named.point(key, payload))
        with pytest.raises(InputError, match=r"not a pickled Qdrant point|has a payload of|has a user_id of type list"):
            store.read()


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(InputError, match=r"holds no collection/<name>/storage.sqlite, expected the folder of mem0"):
            read_mem0(folder)


def test_files_that_are_damaged_or_foreign_are_refused(real: tuple[Path, Path], tmp_path: Path) -> None:
    folder, history = real
    points = folder / "collection" / "mem0" / "storage.sqlite"
    whole = points.read_bytes()
    for bytes_, reason in ((whole[:700], "malformed"), (b"x" * 999, "not a database"), (b"", "no such table: points")):
        points.write_bytes(bytes_)
        with pytest.raises(
            InputError, match=rf"storage.sqlite: cannot be read as a file of mem0, SQLite says: .*{reason}"
        ):
            read_mem0(folder, history)
    points.write_bytes(whole)
    with pytest.raises(InputError, match=r"nothing.db: there is no such file"):
        read_mem0(folder, tmp_path / "nothing.db")
    with pytest.raises(InputError, match="there is no such file"):
        read_mem0(folder, tmp_path)
    with pytest.raises(InputError, match=r"has no history table with created_at, .*, expected mem0's history.db"):
        read_mem0(folder, points)


def test_a_store_whose_last_write_was_cut_off_says_how_to_mend_it(store: Store) -> None:
    store.put(*({"id": str(i), "data": "tea" * 300} for i in range(50)))
    with closing(sqlite3.connect(store.points, isolation_level=None)) as file:
        file.execute("PRAGMA cache_size = 1")
        file.execute("BEGIN")
        file.execute("UPDATE points SET point = zeroblob(900)")
        cut_off = {path.name: path.read_bytes() for path in store.points.parent.iterdir()}
        file.execute("ROLLBACK")
    for name, content in cut_off.items():
        (store.points.parent / name).write_bytes(content)
    with pytest.raises(
        InputError, match="a write was cut off and is not rolled back yet: open the store with mem0 once"
    ):
        store.read()


# As a log


def test_superseded_texts_become_closed_versions_and_a_deleted_entry_a_closed_one() -> None:
    gone = Mem0Entry("m2", Mem0Owner(), None, changes=(added("has a dog", 1), deleted("has a dog", 4)))
    log = told(entry("coffee", added("tea"), updated("tea", "milk", 2), updated("milk", "coffee", 3)), gone)
    assert [(v.text, v.valid_from, v.valid_to) for v in log.versions("e1")] == [
        ("tea", minute(0), minute(2)),
        ("milk", minute(2), minute(3)),
        ("coffee", minute(3), None),
    ]
    assert [(v.text, v.valid_from, v.valid_to) for v in log.versions("e2")] == [("has a dog", minute(1), minute(4))]
    assert texts(log.live_entries()) == ["coffee"]


def test_without_a_history_the_live_text_is_known_from_its_last_change_on() -> None:
    (line,) = told(entry("tea")).lines()
    assert (line.kind, line.text, line.at) == (ADD, "tea", minute(9))


def test_where_history_and_store_disagree_the_store_is_right_about_what_is_live() -> None:
    lost_update = told(entry("coffee", added("tea")))
    assert [(v.text, v.valid_from) for v in lost_update.versions("e1")] == [("tea", minute(0)), ("coffee", minute(9))]
    lost_delete = told(Mem0Entry("m1", ANN, None, changes=(added("tea"),)))
    assert texts(lost_delete.versions("e1")) == ["tea"]
    assert lost_delete.live_entries() == []
    came_back = told(entry("tea", added("tea"), deleted("tea", 3)))
    assert [line.kind for line in came_back.lines()] == [ADD, DELETE, ADD]
    assert texts(came_back.live_entries()) == ["tea"]


def test_a_text_whose_row_is_lost_but_a_later_row_names_is_a_version() -> None:
    log = told(entry("cocoa", added("tea"), updated("coffee", "cocoa", 5)))
    assert texts(log.versions("e1")) == ["tea", "coffee", "cocoa"]
    no_add = told(entry("cocoa", updated("coffee", "cocoa", 5)))
    assert [(v.text, v.valid_from) for v in no_add.versions("e1")] == [("coffee", minute(0)), ("cocoa", minute(5))]


def test_a_change_of_metadata_alone_leaves_no_version() -> None:
    assert len(told(entry("tea", added("tea"), updated("tea", "tea", 5))).lines()) == 1


def test_an_equal_live_text_becomes_a_noop_and_lives_on_when_its_twin_leaves() -> None:
    first = entry("coffee", added("tea"), updated("tea", "coffee", 5), speaker="Ann")
    twin = entry("tea", added("tea", 1), key="m2", updated_at=minute(1), speaker="Ann")
    log = told(first, twin)
    assert [(line.kind, line.entry_id, line.text) for line in log.lines()] == [
        (ADD, "e1", "tea"),
        (NOOP, "e1", "tea"),
        (UPDATE, "e1", "coffee"),
        (ADD, "e4", "tea"),
    ]
    assert log.lines()[3].batch == log.lines()[2].batch
    assert texts(log.live_entries()) == ["coffee", "tea"]


def test_equal_texts_of_two_speakers_are_two_entries() -> None:
    log = told(entry("tea", speaker="Ann"), entry("tea", key="m2", speaker="Bob"), entry("tea", key="m3"))
    assert [line.kind for line in log.lines()] == [ADD, ADD, ADD]


def test_an_update_to_what_another_entry_says_closes_the_entry_which_keeps_its_id() -> None:
    first = entry("tea", added("tea"), updated_at=minute(0))
    second = entry(
        "milk",
        added("coffee", 1),
        updated("coffee", "tea", 2),
        updated("tea", "milk", 3),
        key="m2",
        updated_at=minute(3),
    )
    log = told(first, second)
    assert [(line.kind, line.entry_id, line.version) for line in log.lines()] == [
        (ADD, "e1", 1),
        (ADD, "e2", 1),
        (DELETE, "e2", 1),
        (ADD, "e2", 2),
    ]


def test_equal_and_backward_times_come_one_microsecond_apart() -> None:
    backwards = entry("coffee", added("tea", 5), updated("tea", "coffee", 2), updated_at=minute(1))
    log = told(entry("milk", key="m0", updated_at=minute(5)), backwards)
    assert [line.at - minute(5) for line in log.lines()] == [timedelta(microseconds=n) for n in range(3)]


def test_unknown_times_are_those_of_the_change_before() -> None:
    unknown = replace(deleted("tea", 0), at=None)
    log = told(Mem0Entry("m1", ANN, None, changes=(added("tea", 3), unknown)))
    assert [line.at for line in log.lines()] == [minute(3), minute(3) + timedelta(microseconds=1)]


def test_times_to_come_count_as_now() -> None:
    log = told(entry("tea", created_at=NOW + timedelta(days=9), updated_at=datetime.max.replace(tzinfo=UTC)))
    assert log.lines()[0].at == NOW


def test_what_expired_before_now_is_closed_at_the_end_of_its_day() -> None:
    mortal = entry("on holiday", expires_on=NOON.date())
    assert texts(told(mortal, now=minute(30)).live_entries()) == ["on holiday"]
    log = told(mortal)
    assert [v.valid_to for v in log.versions("e1")] == [datetime(2026, 1, 2, tzinfo=UTC)]
    assert log.live_entries() == []


# Random lives against a model of mem0


@dataclass
class Mem0:
    """mem0 in a few lines: live texts by number, and a history that may lose the row of any change."""

    live: dict[int, str] = field(default_factory=dict)
    rows: list[list[Mem0Change]] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    seen: list[set[str]] = field(default_factory=list)

    def do(self, number: int, text: str | None, lost: bool) -> None:
        """Delete, update or add (a number never used); numbers that are deleted do nothing."""
        at, key = len(self.seen), min(number, len(self.rows))
        if key == len(self.rows):
            self.rows.append([])
            self.written.append(at)
            self.live[key] = text or "tea"
            row = added(self.live[key], at)
        elif key not in self.live:
            return
        elif text is None:
            row = deleted(self.live.pop(key), at)
        else:
            row = updated(self.live[key], text, at)
            self.live[key] = text
        self.written[key] = at
        if not lost:
            self.rows[key].append(row)
        self.seen.append(set(self.live.values()))

    def entries(self) -> list[Mem0Entry]:
        return [
            entry(self.live.get(key), *rows, key=str(key), created_at=None, updated_at=minute(self.written[key]))
            for key, rows in enumerate(self.rows)
        ]


DOINGS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["tea", "milk", "cocoa", None]), st.booleans()))


@given(DOINGS)
def test_what_is_live_in_the_end_is_what_mem0_says_whatever_rows_it_lost(doings: Sequence[Any]) -> None:
    mem0 = Mem0()
    for doing in doings:
        mem0.do(*doing)
    assert set(texts(told(*mem0.entries()).live_entries())) == set(mem0.live.values())


@given(DOINGS)
def test_with_a_whole_history_the_log_says_at_every_moment_what_mem0_said(doings: Sequence[Any]) -> None:
    mem0 = Mem0()
    for number, text, _ in doings:
        mem0.do(number, text, lost=False)
    log = told(*mem0.entries())
    for at, seen in enumerate(mem0.seen):
        assert set(texts(log.live_at(minute(at) + timedelta(seconds=1)))) == seen
