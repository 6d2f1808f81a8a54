"""Many threads and many processes on one bank file, as normal use: nothing lost, nothing twice, nothing half seen."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from bank_model import Call, Model, check, step
from clerk import clerks_memory
from memory_r1.bank import Bank, HashingEmbedder, Operation, OperationKind, StoredTurn
from memory_r1.bank.log import Log
from memory_r1.dialogue import Dialogue, Session, Turn
from memory_r1.errors import ConflictError, OperationError
from nursery import PROCESSES, start

EMBEDDER = HashingEmbedder(8)
PATIENCE_S = 60.0


def open_bank(path: Path, clock: Callable[[], datetime] | None = None) -> Bank:
    return Bank.open(path, embedder=EMBEDDER, clock=clock)


def barrier(parties: int) -> Barrier:
    return PROCESSES.Barrier(parties, timeout=PATIENCE_S)


# Adding


def add(say: Connection, path: Path, name: str, number: int) -> None:
    with open_bank(path) as bank:
        ids = [bank.apply([Operation.add(f"{name} says {n}")])[0].entry for n in range(number)]
        say.send([entry.id for entry in ids if entry])


def test_eight_processes_adding_200_entries_each_to_one_new_file_lose_nothing(tmp_path: Path) -> None:
    children = [start(add, tmp_path / "bank", name, 200) for name in "abcdefgh"]
    ids = [entry_id for child in children for entry_id in child.result()]
    with open_bank(tmp_path / "bank") as bank:
        assert sorted(e.text for e in bank.entries()) == sorted(f"{a} says {n}" for a in "abcdefgh" for n in range(200))
        assert sorted(e.id for e in bank.entries()) == sorted(ids)
        assert len(set(ids)) == 1600
        assert bank.verify() == []


@pytest.mark.parametrize("share", ["one bank", "a bank each"])
def test_eight_threads_adding_the_same_two_facts_leave_two_entries(tmp_path: Path, share: str) -> None:
    facts = ("Ann has a dog", "Ann likes tea")

    def remember(bank: Bank) -> list[OperationKind]:
        gate.wait()
        return [bank.apply([Operation.add(fact, speaker="Ann")])[0].kind for fact in facts]

    gate = barrier(8)
    with ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        banks = [stack.enter_context(open_bank(tmp_path / "bank")) for _ in range(1 if share == "one bank" else 8)]
        kinds = Counter(kind for kinds in pool.map(remember, islice(cycle(banks), 8)) for kind in kinds)
        assert kinds == {OperationKind.ADD: 2, OperationKind.NOOP: 14}
        assert sorted(entry.text for entry in banks[0].entries()) == sorted(facts)
        assert banks[0].verify() == []


def add_until_killed(say: Connection, path: Path, name: str, most: int) -> None:
    with open_bank(path) as bank:
        for n in range(most):
            bank.apply([Operation.add(f"{name} says {n}, part {part}") for part in range(3)])
            say.send(n)


def test_writers_go_on_when_another_one_is_killed(tmp_path: Path) -> None:
    rng = random.Random(0)
    for attempt in range(8):
        path = tmp_path / f"bank{attempt}"
        children = {name: start(add_until_killed, path, name, 25) for name in "abcd"}
        victim = children.pop("a")
        victim.hear()
        time.sleep(rng.random() * 0.004)  # the moment is to be random, so no event can be waited for
        acknowledged = [0, *victim.kill()]
        assert [child.result() for child in children.values()] == [24, 24, 24]
        with open_bank(path) as bank:
            parts = Counter(entry.text.split(", ")[0] for entry in bank.entries())
            assert set(parts.values()) == {3}
            assert sum(name.startswith("a ") for name in parts) in (len(acknowledged), len(acknowledged) + 1)
            assert sum(not name.startswith("a ") for name in parts) == 75
            assert bank.verify() == []


# Updating one entry: 8 processes of 5 threads, of which some share a bank


def update_in_threads(say: Connection, path: Path, name: str, gate: Barrier, how: str) -> None:
    with open_bank(path) as shared, open_bank(path) as own, ThreadPoolExecutor(5) as pool:
        banks = [shared, shared, shared, shared, own]
        attempts = [pool.submit(update_once, bank, f"{name}{n}", gate, how) for n, bank in enumerate(banks)]
        say.send([text for attempt in attempts for text in attempt.result()])


def update_once(bank: Bank, text: str, gate: Barrier, how: str) -> list[str]:
    """Update entry e1 on the version read before the gate opens or after it; gives the text if that was not refused."""
    version = bank.get("e1").version
    gate.wait()
    if how == "reading late":
        version = bank.get("e1").version
    while True:
        try:
            bank.apply([Operation.update("e1", text, version=version)])
        except ConflictError:
            if how != "trying again":
                return []
            version = bank.get("e1").version
        else:
            return [text]


@pytest.mark.parametrize("how", ["reading early", "reading late", "trying again"])
def test_each_of_40_concurrent_updates_is_in_the_history_or_a_conflict(tmp_path: Path, how: str) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("first")])
        gate = barrier(40)
        children = [start(update_in_threads, tmp_path / "bank", name, gate, how) for name in "abcdefgh"]
        done = [text for child in children for text in child.result()]
        history = bank.history("e1")
        assert sorted(entry.text for entry in history) == sorted([*done, "first"])
        assert [entry.version for entry in history] == list(range(1, len(done) + 2))
        assert len(done) == {"reading early": 1, "reading late": len(done), "trying again": 40}[how]
        assert len(done) >= 1
        assert bank.verify() == []


def undo_once(say: Connection, path: Path, gate: Barrier) -> None:
    with open_bank(path) as bank:
        gate.wait()
        say.send([one.entry.id for one in bank.undo() if one.entry])


def test_eight_processes_that_each_undo_the_last_batch_undo_eight_different_ones(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank:
        for number in range(9):
            bank.apply([Operation.add(f"fact {number}")])
        gate = barrier(8)
        children = [start(undo_once, tmp_path / "bank", gate) for _ in range(8)]
        assert sorted(child.result()[0] for child in children) == [f"e{number}" for number in range(2, 10)]
        assert [entry.id for entry in bank.entries()] == ["e1"]
        bank.undo()
        with pytest.raises(OperationError, match="nothing to undo"):
            bank.undo()
        assert bank.verify() == []


# Remembering: read, decide, write


def remember_counts(say: Connection, path: Path, name: str, turns: int, gate: Barrier) -> None:
    said = tuple(Turn(f"{name}{n}", "Ann", "count") for n in range(turns))
    with open_bank(path) as bank:
        gate.wait()
        report = clerks_memory(bank, turns_at_once=1).remember(Dialogue(name, (Session("s", None, said),)))
        say.send(report.turns)


def test_four_processes_that_count_turns_in_one_entry_count_each_turn_once(tmp_path: Path) -> None:
    with open_bank(tmp_path / "bank") as bank:
        bank.apply([Operation.add("count: 0")])
        gate = barrier(4)
        children = [start(remember_counts, tmp_path / "bank", name, 25, gate) for name in "abcd"]
        settled = sum(child.result() for child in children)
        assert bank.entries()[0].text == f"count: {settled}"
        assert len(bank.pending_turns()) == 100 - settled  # given up on, reported, and not lost
        clerks_memory(bank, turns_at_once=1).take_up_pending()
        assert bank.entries()[0].text == "count: 100"
        assert sorted(bank.entries()[0].turn_ids) == sorted(f"{name}{n}" for name in "abcd" for n in range(25))
        assert bank.verify() == []


# Reading while another writes


def write_batches(say: Connection, path: Path, batches: int) -> None:
    with open_bank(path) as bank:
        for number in range(1, batches + 1):
            parts = [Operation.add(f"part {part} of {number}") for part in range(3)]
            marker = Operation.update("e1", f"batches: {number}", version=number)
            bank.apply([*parts, marker, Operation.delete(f"e{5 * number - 3}")], done=[f"t{number}"])


def read_batches(say: Connection, path: Path, batches: int) -> None:
    """Look at the bank until it has all batches; say how many different states were seen, each of whole batches."""
    seen = set()
    with open_bank(path) as bank:
        say.send("ready")
        while batches not in seen:
            seen.add(batches_of(bank, batches))
    say.send(len(seen))


def batches_of(bank: Bank, batches: int) -> int:
    """How many batches the bank has; every way to look at it must see whole ones."""
    assert len(bank.search("part", k=10_000, mode="bm25")) % 2 == 0
    assert len(bank.search("part", k=10_000)) % 2 == 1
    stats, fork = bank.stats(), bank.fork()
    assert stats.live == 1 + 2 * (batches - stats.pending_turns)
    texts = [entry.text for entry in fork.entries()]
    number = int(texts[0].removeprefix("batches: "))
    assert len(texts) == 1 + 2 * number
    assert len(fork.pending_turns()) == batches - number
    assert len(bank.entries()) >= len(texts)
    return number


def test_a_reader_sees_whole_batches_only_while_another_process_writes(tmp_path: Path) -> None:
    batches = 150
    with open_bank(tmp_path / "bank") as bank:
        bank.add_turns([StoredTurn(f"t{number}", "Ann", "hello") for number in range(1, batches + 1)])
        bank.apply([Operation.add("batches: 0")])
    readers = [start(read_batches, tmp_path / "bank", batches) for _ in range(2)]
    assert [reader.hear() for reader in readers] == ["ready", "ready"]
    start(write_batches, tmp_path / "bank", batches).result()
    assert min(reader.result() for reader in readers) >= 2


# Clocks


NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


def erratic(seed: int) -> Iterator[datetime]:
    """A clock that jumps by years, backwards as often as forwards."""
    rng = random.Random(seed)
    while True:
        yield NOW + timedelta(days=rng.randrange(-4000, 4000), microseconds=rng.randrange(10))


def write_by_erratic_clock(say: Connection, path: Path, seed: int) -> None:
    clock = erratic(seed)
    with open_bank(path, lambda: next(clock)) as bank:
        for number in range(20):
            added = bank.apply([Operation.add(f"{seed} says {number}"), Operation.noop()])[0].entry
            if added and number % 3 == 1:
                bank.apply([Operation.update(added.id, f"{seed} says {number} again")])
            if added and number % 3 == 2:
                bank.apply([Operation.delete(added.id)])


def test_the_log_never_goes_back_in_time_whatever_the_clocks_of_its_writers_say(tmp_path: Path) -> None:
    for child in [start(write_by_erratic_clock, tmp_path / "bank", seed) for seed in range(4)]:
        child.result()
    with open_bank(tmp_path / "bank") as bank:
        check_times(bank)
        bank.apply([Operation.add("by this machine's clock, years before the log's last line")])
        check_times(bank)
        assert bank.verify() == []


def check_times(bank: Bank) -> None:
    """Times ascend from batch to batch, and `as_of` any of them gives what the log says up to there."""
    lines, log = bank.operations(), Log(source=lambda after: ())
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        log.append(line)
        if following is not None and following.batch == line.batch:
            assert following.at == line.at
            continue
        assert following is None or following.at > line.at
        assert {(e.id, e.version) for e in bank.as_of(line.at)} == {(e.id, e.version) for e in log.live_entries()}
    assert bank.as_of(lines[0].at - timedelta(microseconds=1)) == []
    assert bank.as_of(lines[-1].at + timedelta(days=9999)) == bank.entries()


def test_a_clock_that_jumps_in_one_process_is_not_seen_in_the_log(tmp_path: Path) -> None:
    clock, model = erratic(0), Model()
    with open_bank(tmp_path / "bank", lambda: next(clock)) as bank:
        for number in range(30):
            turn = StoredTurn(f"t{number}", "Ann", "hello")
            model = step(bank, model, Call("add_turns", {"turns": [turn]}))
            operations = [Operation.add(f"fact {number}"), Operation.add(f"other {number}")]
            model = step(bank, model, Call("apply", {"operations": operations, "done": [turn.id]}))
            back = Call("undo", {"operation": None}) if number % 3 else Call("restore", {"entry_id": "e1"})
            model = step(bank, model, back)
        check(bank, model)
        check_times(bank)
