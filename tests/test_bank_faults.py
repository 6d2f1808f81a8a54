"""What a bank is after its process was killed: at random moments, and at every point of every call that writes.

Whatever was acknowledged is there, whole; what was not is there whole or not at all. Left out: many writers at once
(test_bank_crowd.py) and what a disk can do (test_bank_disk.py).
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from bank_model import Call, Mix, Model, agrees, check, check_file, draw, settled, step
from clerk import clerks_memory
from memory_r1.bank import Bank, Operation, OperationKind
from memory_r1.bank.schema import APPLICATION_ID, MIGRATIONS
from memory_r1.dialogue import Dialogue, Session, Turn
from nursery import start
from points import BEGINNING, EMBEDDER, WRITES, Points, WatchedEmbedder, open_bank, watched_sql

# Kills at random moments


def call_without_end(say: Connection, path: Path, seed: str, model: Model) -> None:
    """Make random calls, and say so after each."""
    rng = random.Random(seed)
    with open_bank(path) as bank:
        while True:
            model = step(bank, model, draw(rng, model, Mix()))
            say.send("done")


def replayed(seed: str, model: Model, calls: int) -> Iterator[Model]:
    """The model after that many calls of `call_without_end`, and after one more."""
    rng = random.Random(seed)
    for _ in range(calls):
        model = settled(model, draw(rng, model, Mix()))
    yield model
    yield settled(model, draw(rng, model, Mix()))


@pytest.mark.parametrize("seed", range(4))
def test_75_kills_at_random_moments_lose_nothing_acknowledged_and_leave_nothing_half_done(
    tmp_path: Path, seed: int
) -> None:
    rng, model = random.Random(seed), Model()
    with open_bank(tmp_path / "bank") as onlooker:
        for life in range(75):
            child = start(call_without_end, tmp_path / "bank", f"{seed}/{life}", model)
            heard = [child.hear() for _ in range(rng.choice((0, 1, rng.randrange(20))))]
            time.sleep(rng.random() * 0.004)  # the moment is to be random, so no event can be waited for
            heard += child.kill()
            with open_bank(tmp_path / "bank") as bank:
                possible = [after for after in replayed(f"{seed}/{life}", model, len(heard)) if agrees(bank, after)]
                assert possible, f"life {life}: neither what was acknowledged nor that and the call under way"
                model = possible[0]
                check_file(bank, model)
            check(onlooker, model)


# Kills at every point of a call


def call_watched(say: Connection, path: Path, call: Call, fatal: int) -> None:
    points = Points(say, fatal)
    with watched_sql(points):
        bank = Bank.open(path, embedder=WatchedEmbedder(points))
    points.armed = True
    call.on(bank)
    points("after the return")


def wrote(names: Sequence[str]) -> bool:
    """Whether the transaction that writes had ended."""
    return "before BEGIN IMMEDIATE" in names and "after COMMIT" in names[names.index("before BEGIN IMMEDIATE") :]


UPKEEP = {"delete_scope": Call("delete_scope", {}), "vacuum": Call("vacuum", {})}


@pytest.mark.parametrize("name", [*WRITES, *UPKEEP])
def test_a_kill_at_any_point_of_a_call_leaves_all_of_it_or_nothing(tmp_path: Path, name: str) -> None:
    before = Model()
    with open_bank(tmp_path / "beginning") as bank:
        for call in BEGINNING:
            before = step(bank, before, call)
    after = WRITES[name].on(before) if name in WRITES else {"delete_scope": Model(), "vacuum": before}[name]
    for fatal in count(1):
        path = Path(shutil.copy(tmp_path / "beginning", tmp_path / f"bank{fatal}"))
        child = start(call_watched, path, {**WRITES, **UPKEEP}[name], fatal)
        names = child.rest()
        with open_bank(path) as bank:
            check_file(bank, after if wrote(names) else before)
        if child.end() == 0:
            break
        assert child.end() == -signal.SIGKILL
    transaction = {"before BEGIN IMMEDIATE", "before COMMIT", "after COMMIT"}
    assert names[-1] == "after the return"
    assert set(names) >= (transaction if name != "vacuum" else {"before VACUUM"})
    assert ("before embedding" in names) == (name == "apply")


# Kills while a dialogue is remembered


def dialogue(turns: int) -> Dialogue:
    """Sessions of four turns, of which each two can be settled together: a count begun, then carried on; what was
    noted is forgotten again."""
    texts = ["count", "note thing {0}", "count", "forget thing {0}"]
    said = [Turn(f"t{n}", "Ann", texts[n % 4].format(n // 4)) for n in range(turns)]
    said[0] = Turn("t0", "Ann", "note count: 0")
    return Dialogue("d", tuple(Session(f"s{n}", None, tuple(said[n : n + 4])) for n in range(0, turns, 4)))


memory = partial(clerks_memory, turns_at_once=2)


Line = tuple[OperationKind, str | None, int | None, str | None, tuple[str, ...]]


def lines(bank: Bank) -> list[Line]:
    """The log without its times."""
    return [(line.kind, line.entry_id, line.version, line.text, line.turn_ids) for line in bank.operations()]


def remembered(turns: int) -> list[Line]:
    """The log of a bank that nobody killed."""
    with Bank.open(":memory:", embedder=EMBEDDER) as bank:
        memory(bank).remember(dialogue(turns))
        return lines(bank)


def settled_turns(log: Sequence[Line]) -> int:
    """How many turns the log settles: every turn has one line, which names it last."""
    return len({turn_ids[-1] for *_, turn_ids in log})


def check_half_way(bank: Bank, whole: Sequence[Line]) -> None:
    """The log is the beginning of an undisturbed one, cut between batches; the other turns, if stored, are pending."""
    log, turns = lines(bank), bank.stats().turns
    assert log == whole[: len(log)]
    assert len(log) % 2 == 0
    assert turns == (len(whole) if log else turns)
    assert [turn.id for turn in bank.pending_turns()] == [f"t{n}" for n in range(settled_turns(log), turns)]


def remember_watched(say: Connection, path: Path, turns: int, fatal: int) -> None:
    points = Points(say, fatal)
    with watched_sql(points):
        bank = Bank.open(path, embedder=WatchedEmbedder(points))
    points.armed = True
    memory(bank, point=points).remember(dialogue(turns))
    points("after the return")


def test_a_kill_at_any_point_of_remember_settles_every_turn_once(tmp_path: Path) -> None:
    turns = 6
    whole = remembered(turns)
    open_bank(tmp_path / "empty").close()
    for fatal in count(1):
        path = Path(shutil.copy(tmp_path / "empty", tmp_path / f"bank{fatal}"))
        child = start(remember_watched, path, turns, fatal)
        names = child.rest()
        with open_bank(path) as bank:
            check_half_way(bank, whole)
            assert len(lines(bank)) == 2 * max(0, commits_of_writes(names) - 1)  # the first one stores the turns
            if bank.stats().turns:
                memory(bank).take_up_pending()
            memory(bank).remember(dialogue(turns))
            assert lines(bank) == whole
            assert bank.pending_turns() == []
            assert bank.stats().turns == turns
        if child.end() == 0:
            break
        assert child.end() == -signal.SIGKILL
    assert names.index("after COMMIT") < names.index("before deciding") < names.index("after deciding")
    assert names.index("after deciding") < names.index("before embedding") < names.index("after the return")


def commits_of_writes(names: Sequence[str]) -> int:
    """How many transactions that write had ended."""
    ends = [name for name in names if name in ("before BEGIN IMMEDIATE", "before BEGIN", "after COMMIT")]
    return sum(pair == ("before BEGIN IMMEDIATE", "after COMMIT") for pair in pairwise(ends))


def remember_aloud(say: Connection, path: Path, turns: int) -> None:
    with open_bank(path) as bank:
        memory(bank).remember(dialogue(turns), progress=lambda done, total: say.send(total - done))


def test_kills_at_random_moments_of_remember_settle_every_turn_once(tmp_path: Path) -> None:
    turns, rng, path = 400, random.Random(0), tmp_path / "bank"
    whole, left = remembered(turns), turns
    for _ in range(60):
        child = start(remember_aloud, path, turns)
        heard = [child.hear() for _ in range(rng.randrange(4))]
        time.sleep(rng.random() * 0.004)  # the moment is to be random, so no event can be waited for
        heard += child.kill()
        assert child.end() == -signal.SIGKILL
        with open_bank(path) as bank:
            check_half_way(bank, whole)
            left = min([left, *heard])
            assert bank.stats().turns - settled_turns(lines(bank)) <= left
    with open_bank(path) as bank:
        memory(bank).remember(dialogue(turns))
        assert lines(bank) == whole
        assert bank.pending_turns() == []


# Kills while a file is made or brought up to date


def old_file(path: Path, schema: int) -> None:
    """A bank as an older version left it, with two entries where that version could hold any."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for number, migration in enumerate(MIGRATIONS[:schema], start=1):
            for statement in migration:
                connection.execute(statement)
            if number == 1:
                fill_first_schema(connection)
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.close()


def fill_first_schema(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO embedder (name, dimension) VALUES (?, ?)", (EMBEDDER.name, EMBEDDER.dimension))
    for seq in (1, 2):
        at, text = f"2024-01-0{seq}T00:00:00.000000+00:00", f"fact {seq}"
        connection.execute(
            "INSERT INTO operations (seq, scope, kind, entry_id, version, text, turn_ids, decided_by, at) "
            "VALUES (?, 'default', 'ADD', ?, 1, ?, '[]', 'person', ?)",
            (seq, f"e{seq}", text, at),
        )
        connection.execute(
            "INSERT INTO entries (id, version, scope, text, valid_from, opened) VALUES (?, 1, 'default', ?, ?, ?)",
            (f"e{seq}", text, at, seq),
        )
        vector = EMBEDDER.embed([text])[0].tobytes()
        connection.execute("INSERT INTO vectors (seq, vector) VALUES (?, ?)", (seq, vector))


def open_watched(say: Connection, path: Path, fatal: int) -> None:
    points = Points(say, fatal)
    points.armed = True
    with watched_sql(points):
        open_bank(path).close()


@pytest.mark.parametrize("schema", range(len(MIGRATIONS)))
def test_a_kill_at_any_point_of_opening_leaves_a_file_that_opens(tmp_path: Path, schema: int) -> None:
    if schema:
        old_file(tmp_path / "old", schema)
    model = Model()
    if schema:
        for number in (1, 2):
            model = Call("apply", {"operations": [Operation.add(f"fact {number}")]}).on(model)
    for fatal in count(1):
        path = tmp_path / f"bank{fatal}"
        if schema:
            shutil.copy(tmp_path / "old", path)
        child = start(open_watched, path, fatal)
        child.rest()
        with open_bank(path) as bank:
            check_file(bank, model)
            check_file(bank, step(bank, model, Call("apply", {"operations": [Operation.add("new")]})))
        if child.end() == 0:
            break
        assert child.end() == -signal.SIGKILL
    assert fatal > 20
