"""Re-embedding gives the bank that the new embedder would have made, whoever dies or writes meanwhile."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from memory_r1.bank import Bank, HashingEmbedder, Operation
from memory_r1.bank.column import Floats
from memory_r1.bank.reembed import ROUNDS, Reembedded, reembed
from memory_r1.errors import BankError, BankFileError, EndpointError, InputError
from nursery import start

OLD, NEW, THIRD = HashingEmbedder(16), HashingEmbedder(32), HashingEmbedder(24)
SCOPES = ("alice", "bob")


class Observed(HashingEmbedder):
    """The new embedder; it tells what it is given before it works."""

    def __init__(self, observe: Callable[[list[str]], None], dimension: int = NEW.dimension) -> None:
        super().__init__(dimension)
        self._observe = observe

    def embed(self, texts: Sequence[str]) -> Floats:
        if list(texts) != ["trial"]:
            self._observe(list(texts))
        return super().embed(texts)


def fill(path: Path, embedder: HashingEmbedder, facts: int = 3) -> None:
    """Two scopes with superseded and deleted versions: `facts` + 1 versions in each."""
    for scope in SCOPES:
        with Bank.open(path, scope, embedder) as bank:
            bank.apply([Operation.add(f"{scope} likes tea {n}", speaker="Ann") for n in range(facts)])
            first, second = bank.entries()[:2]
            bank.apply([Operation.update(first.id, f"{scope} likes green tea"), Operation.delete(second.id)])


@pytest.fixture
def bank_file(tmp_path: Path) -> Path:
    """Eight versions, made by the old embedder."""
    fill(tmp_path / "bank", OLD)
    return tmp_path / "bank"


def vectors(path: Path, table: str = "vectors") -> dict[int, bytes]:
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute(f"SELECT seq, vector FROM {table}").fetchall())


def texts_done(path: Path) -> set[str]:
    """The texts that have a next vector."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT speaker, text FROM next_vectors JOIN operations USING (seq)").fetchall()
    return {f"{speaker}: {text}" for speaker, text in rows}


def ranked(path: Path, embedder: HashingEmbedder) -> list[list[tuple[str, float]]]:
    """What every scope finds, with scores."""
    found = []
    for scope in SCOPES:
        with Bank.open(path, scope, embedder) as bank:
            found += [
                [(hit.entry.id, hit.score) for hit in bank.ranked("green tea", mode=mode)]
                for mode in ("dense", "hybrid")
            ]
    return found


def check_new(path: Path) -> None:
    """Nothing is broken, and every vector is the new embedder's, bit by bit."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT seq, speaker, text FROM operations WHERE text IS NOT NULL").fetchall()
    texts = [f"{speaker}: {text}" if speaker else text for _, speaker, text in rows]
    expected = {row[0]: vector.tobytes() for row, vector in zip(rows, NEW.embed(texts), strict=True)}
    assert vectors(path) == expected
    assert vectors(path, "next_vectors") == {}
    with Bank.open(path, embedder=NEW) as bank:
        assert bank.verify() == []


def finish(path: Path) -> None:
    reembed(path, NEW)


# What it does


def test_the_bank_is_the_one_that_the_new_embedder_would_have_made(bank_file: Path, tmp_path: Path) -> None:
    fill(tmp_path / "from the start", NEW)
    assert reembed(bank_file, NEW) == Reembedded("hashing-16", "hashing-32", embedded=8)
    check_new(bank_file)
    assert vectors(bank_file) == vectors(tmp_path / "from the start")
    assert ranked(bank_file, NEW) == ranked(tmp_path / "from the start", NEW)


def test_the_history_stays_and_the_log_goes_on(bank_file: Path) -> None:
    with Bank.open(bank_file, "alice", OLD) as bank:
        before = bank.operations()
    reembed(bank_file, NEW)
    with Bank.open(bank_file, "alice", NEW) as bank:
        assert bank.operations() == before
        bank.restore("e1")
        [added] = bank.apply([Operation.add("alice likes cake")])
        assert bank.search("cake", mode="dense")[0] == added.entry
        numbers = [line.seq for line in bank.operations()]
    assert len(set(numbers)) == len(numbers)
    check_new(bank_file)


def test_the_embedder_of_the_bank_has_nothing_to_do(bank_file: Path) -> None:
    before = vectors(bank_file)
    done = reembed(bank_file, Observed(lambda texts: pytest.fail(f"embedded {texts}"), OLD.dimension))
    assert done == Reembedded("hashing-16", "hashing-16", was_due=False)
    assert vectors(bank_file) == before
    with Bank.open(bank_file, embedder=OLD) as bank:
        assert bank.verify() == []


@pytest.mark.parametrize("turns_only", [True, False])
def test_a_bank_without_entries_belongs_to_the_new_embedder(tmp_path: Path, turns_only: bool) -> None:
    with Bank.open(tmp_path / "bank", embedder=OLD) as bank:
        if turns_only:
            bank.apply([Operation.noop()])
    assert reembed(tmp_path / "bank", NEW) == Reembedded(None, "hashing-32")
    with Bank.open(tmp_path / "bank", embedder=OLD) as bank, pytest.raises(BankError, match="hashing-32"):
        bank.apply([Operation.add("likes tea")])
    with Bank.open(tmp_path / "bank", embedder=NEW) as bank:
        bank.apply([Operation.add("likes tea")])
    check_new(tmp_path / "bank")


def test_progress_counts_versions_and_ends_whole(bank_file: Path) -> None:
    steps: list[tuple[int, int]] = []
    reembed(bank_file, NEW, lambda done, total: steps.append((done, total)), chunk=3)
    assert steps == [(3, 8), (6, 8), (8, 8)]


def test_no_byte_of_an_old_vector_stays_in_the_file(bank_file: Path) -> None:
    old = vectors(bank_file)
    reembed(bank_file, NEW)
    content = bank_file.read_bytes()
    assert not Path(f"{bank_file}-wal").exists()
    assert not any(vector in content for vector in old.values())
    assert all(content.count(vector) == 1 for vector in vectors(bank_file).values())


def test_bad_arguments_are_refused_and_nothing_is_made(bank_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such bank"):
        reembed(tmp_path / "absent", NEW)
    with pytest.raises(InputError, match="no such bank"):
        reembed(tmp_path, NEW)
    with pytest.raises(InputError, match="chunk is 0"):
        reembed(bank_file, NEW, chunk=0)
    (tmp_path / "text").write_text("not a bank, but long enough to look like a file with content" * 20)
    with pytest.raises(BankFileError, match="cannot be used as a bank"):
        reembed(tmp_path / "text", NEW)
    assert not (tmp_path / "absent").exists()


def test_vectors_of_a_wrong_shape_are_refused(bank_file: Path) -> None:
    class Short(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            return super().embed(texts)[:, :-1]

    before = vectors(bank_file)
    with pytest.raises(BankError, match="mend the embedder"):
        reembed(bank_file, Short(32))
    assert vectors(bank_file) == before


# Stopped and called again


@pytest.mark.parametrize("error", [EndpointError("down"), KeyboardInterrupt()])
def test_what_was_committed_is_not_done_again(bank_file: Path, error: BaseException) -> None:
    seen: list[list[str]] = []

    def fail_at_third(texts: list[str]) -> None:
        if len(seen) == 2:
            raise error
        seen.append(texts)

    with pytest.raises(type(error)):
        reembed(bank_file, Observed(fail_at_third), chunk=3)
    ranked(bank_file, OLD)  # the old embedder is in force
    assert reembed(bank_file, Observed(seen.append), chunk=3) == Reembedded("hashing-16", "hashing-32", 2, 6)
    assert [len(texts) for texts in seen] == [3, 3, 2]
    assert len({text for texts in seen for text in texts}) == 8
    check_new(bank_file)


def leave_half_done(path: Path, dimension: int) -> None:
    """Stop after the first chunk of three."""

    def fail_at_second(texts: list[str]) -> None:
        if texts_done(path):
            raise EndpointError("down")

    with pytest.raises(EndpointError):
        reembed(path, Observed(fail_at_second, dimension), chunk=3)
    assert len(texts_done(path)) == 3


def test_what_was_half_done_for_another_embedder_is_thrown_away(bank_file: Path) -> None:
    leave_half_done(bank_file, THIRD.dimension)
    assert reembed(bank_file, NEW) == Reembedded("hashing-16", "hashing-32", embedded=8)
    check_new(bank_file)


def test_the_embedder_of_the_bank_ends_a_half_done_work(bank_file: Path) -> None:
    before = vectors(bank_file)
    leave_half_done(bank_file, THIRD.dimension)
    assert reembed(bank_file, OLD).was_due is False
    assert vectors(bank_file) == before
    assert texts_done(bank_file) == set()
    assert reembed(bank_file, THIRD).resumed == 0


def test_an_embedder_that_does_not_work_costs_nobody_what_was_half_done(bank_file: Path) -> None:
    class Down(HashingEmbedder):
        def embed(self, texts: Sequence[str]) -> Floats:
            raise EndpointError("down")

    leave_half_done(bank_file, NEW.dimension)
    with pytest.raises(EndpointError):
        reembed(bank_file, Down(24))
    assert reembed(bank_file, NEW).resumed == 3


def test_a_call_that_another_embedder_takes_over_ends_and_says_so(bank_file: Path) -> None:
    with pytest.raises(BankError, match="somebody began to re-embed it with another embedder"):
        reembed(bank_file, Observed(lambda texts: leave_half_done(bank_file, THIRD.dimension)), chunk=3)
    assert reembed(bank_file, THIRD).resumed == 3


def test_a_call_that_another_one_finishes_is_done(bank_file: Path) -> None:
    done = reembed(bank_file, Observed(lambda texts: finish(bank_file)), chunk=3)
    assert done == Reembedded("hashing-16", "hashing-32", embedded=0)
    check_new(bank_file)


# Killed


def reembed_and_die(say: Connection, path: Path, fatal: int) -> None:
    """Re-embed; every SQL statement, embedding and report of progress is a point, the fatal one of which kills."""
    left, connect = fatal, sqlite3.connect

    def point(name: str) -> None:
        nonlocal left
        left -= 1
        say.send(name)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)
        connection.set_trace_callback(point)  # before each statement
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", watched)
        reembed(path, Observed(lambda texts: point("embed")), lambda done, total: point("progress"), chunk=3)
        point("return")


def test_a_kill_at_any_point_leaves_the_old_bank_or_the_new_one_and_redoes_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "beginning", OLD)
    resumed_at, content = set(), (tmp_path / "beginning").read_bytes()
    for fatal in count(1):
        path = tmp_path / f"bank{fatal}"
        path.write_bytes(content)
        child = start(reembed_and_die, path, fatal)
        names = child.rest()
        swapped = bool(vectors(path)) and len(vectors(path)[1]) == 4 * NEW.dimension
        done = texts_done(path)
        if not swapped:
            with Bank.open(path, "alice", OLD) as bank:
                assert bank.verify() == []
                assert len(bank.search("green tea", mode="dense")) == 2
        seen: list[str] = []
        result = reembed(path, Observed(seen.extend), chunk=3)
        check_new(path)
        assert result == Reembedded("hashing-32", "hashing-32", was_due=False) if swapped else result.was_due
        assert (result.embedded, result.resumed) == ((0, 0) if swapped else (8 - len(done), len(done)))
        assert done.isdisjoint(seen)
        resumed_at.add(len(done))
        if child.end() == 0:
            break
        assert child.end() == -signal.SIGKILL
    assert {"embed", "progress", "BEGIN IMMEDIATE", "COMMIT", "return"} <= set(names)
    assert resumed_at == {0, 3, 6, 8}


def reembed_aloud(say: Connection, path: Path) -> None:
    reembed(path, Observed(say.send), lambda done, total: say.send(done), chunk=5)


def test_kills_at_random_moments_lose_nothing_and_redo_nothing(tmp_path: Path) -> None:
    rng, kills, path = random.Random(0), 0, tmp_path / "bank"
    fill(path, OLD, facts=1000)
    done: set[str] = set()
    code = -1
    while code != 0:
        child = start(reembed_aloud, path)
        heard = [child.hear() for _ in range(rng.randrange(2, 12))] + child.kill() if kills < 25 else child.rest()
        code = child.end()
        kills += code != 0
        assert done.isdisjoint(text for said in heard if isinstance(said, list) for text in said)
        before, done = done, texts_done(path)
        assert before <= done or code == 0
        assert len(done) >= max((said for said in heard if isinstance(said, int)), default=0) or code == 0
    assert kills == 25
    check_new(path)


# While the bank is in use


def test_a_bank_open_with_the_old_embedder_is_refused_from_the_swap_on(bank_file: Path) -> None:
    with Bank.open(bank_file, "alice", OLD) as old, Bank.open(bank_file, "alice", NEW) as new:
        answers = old.ranked("green tea")

        def look_meanwhile(texts: list[str]) -> None:
            assert old.ranked("green tea") == answers
            with pytest.raises(BankError, match="hashing-16"):
                new.search("green tea")

        reembed(bank_file, Observed(look_meanwhile), chunk=3)
        lines = old.operations()
        with pytest.raises(BankError, match=r"made by embedder .*hashing-32"):
            old.search("green tea")
        with pytest.raises(BankError, match=r"made by embedder .*hashing-32"):
            old.apply([Operation.add("refused")])
        assert [entry.id for entry in old.search("green", mode="bm25")] == ["e1"]
        assert new.operations() == old.operations() == lines
        assert new.search("green tea", mode="dense")[0].text == "alice likes green tea"
    check_new(bank_file)


def test_a_bank_open_with_the_old_embedder_still_goes_back_and_deletes(bank_file: Path) -> None:
    with Bank.open(bank_file, "alice", OLD) as old:
        old.search("tea")
        reembed(bank_file, NEW)
        old.restore("e1", version=1)
        old.restore("e2")
        old.undo()
        old.apply([Operation.delete("e3")])
    check_new(bank_file)


def test_an_apply_that_the_swap_overtakes_stores_nothing(bank_file: Path) -> None:
    overtaken = Observed(lambda texts: finish(bank_file), OLD.dimension)
    with Bank.open(bank_file, "alice", overtaken) as bank:
        lines = bank.operations()
        with pytest.raises(BankError, match=r"made by embedder .*hashing-32"):
            bank.apply([Operation.add("likes cake", speaker="Ann")])
        assert bank.operations() == lines
    check_new(bank_file)


def test_a_scope_deleted_meanwhile_is_gone(bank_file: Path) -> None:
    def delete(texts: list[str]) -> None:
        with Bank.open(bank_file, "bob", OLD) as bank:
            bank.delete_scope()

    bob = NEW.embed(["Ann: bob likes tea 0"])[0].tobytes()
    reembed(bank_file, Observed(delete), chunk=5)  # the first chunk holds texts of both scopes
    assert bob not in bank_file.read_bytes()
    check_new(bank_file)
    with Bank.open(bank_file, "bob", NEW) as bank:
        assert bank.scopes() == ["alice"]


def write_until_refused(say: Connection, path: Path, who: str) -> None:
    with Bank.open(path, who, OLD) as bank:
        for number in count():
            try:
                bank.apply([Operation.add(f"{who} says {number}")])
            except BankError as error:
                say.send(str(error))
                return
            say.send(number)


def test_writers_who_never_pause_lose_nothing(bank_file: Path) -> None:
    writers = {who: start(write_until_refused, bank_file, who) for who in ("carol", "dave", "erin")}
    for child in writers.values():
        assert child.hear() == 0
    done = reembed(bank_file, NEW, chunk=64)
    for who, child in writers.items():
        *numbers, refusal = child.rest()
        assert "hashing-32" in refusal
        with Bank.open(bank_file, who, NEW) as bank:
            assert [entry.text for entry in bank.entries()] == [f"{who} says {n}" for n in range(len(numbers) + 1)]
            assert bank.search(f"{who} says {len(numbers)}", k=1, mode="dense")[0].text == f"{who} says {len(numbers)}"
    assert done.embedded == len(vectors(bank_file)) > 11
    check_new(bank_file)


def test_who_writes_more_with_every_embedding_waits_for_the_last_one(bank_file: Path) -> None:
    calls: list[list[str]] = []

    def write(texts: list[str]) -> None:
        calls.append(texts)
        if len(calls) <= ROUNDS + 1:  # the next one comes while the writers wait
            with Bank.open(bank_file, "carol", OLD) as bank:
                bank.apply([Operation.add(f"carol says {len(calls)}")])

    assert reembed(bank_file, Observed(write)).embedded == 8 + ROUNDS + 1
    assert calls[1:] == [[f"carol says {n}"] for n in range(1, ROUNDS + 2)]
    check_new(bank_file)


def reembed_all(say: Connection, path: Path) -> None:
    say.send(reembed(path, NEW, chunk=3))


def test_calls_at_the_same_time_all_end_well(tmp_path: Path) -> None:
    fill(tmp_path / "bank", OLD, facts=100)
    results = [child.result() for child in [start(reembed_all, tmp_path / "bank") for _ in range(4)]]
    assert sum(result.embedded for result in results) == 202
    assert all(result.after == "hashing-32" for result in results)
    check_new(tmp_path / "bank")
