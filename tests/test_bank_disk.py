"""What a bank is after its disk did its worst: failed, lost power, was full or was read-only.

The error is one line that names the file; nothing is half written; when it is over, everything acknowledged is there
and the same bank goes on. Left out: killed processes (test_bank_faults.py).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from bank_model import Call, Mix, Model, check, check_file, draw, step
from memory_r1.bank import Bank, Operation
from memory_r1.errors import BankFileError
from nursery import start
from points import BEGINNING, WRITES, open_bank, watched_sql

NOBODY = 65534


def assert_one_line(error: BankFileError, path: Path) -> None:
    assert "\n" not in str(error)
    assert str(path) in str(error)
    assert str(error).count(":") >= 2  # which file, what SQLite says, what to do


# Errors at every statement


class Fuse:
    """Fails the statement at which it burns through, once, as SQLite fails on a bad sector."""

    left = 0  # statements until then, if positive

    def __call__(self, name: str) -> None:
        self.left -= name.startswith("before")  # what has happened can no longer fail
        if self.left == 0:
            raise sqlite3.OperationalError("disk I/O error")


READS = {
    "entries": Call("entries", {}),
    "operations": Call("operations", {}),
    "pending_turns": Call("pending_turns", {}),
    "search": Call("search", {"text": "fact"}),
    "fork": Call("fork", {}),
    "verify": Call("verify", {}),
}


@pytest.mark.parametrize("name", [*WRITES, *READS])
def test_an_error_at_any_statement_is_reported_and_forgotten_when_it_is_over(tmp_path: Path, name: str) -> None:
    before, call, fuse = Model(), {**WRITES, **READS}[name], Fuse()
    with open_bank(tmp_path / "beginning") as bank:
        for beginning in BEGINNING[:-1]:
            before = step(bank, before, beginning)
    before = BEGINNING[-1].on(before)
    after = call.on(before) if name in WRITES else before
    for burns in count(1):
        path = Path(shutil.copy(tmp_path / "beginning", tmp_path / f"bank{burns}"))
        with watched_sql(fuse), open_bank(path) as bank, open_bank(path) as other:
            assert bank.entries()
            BEGINNING[-1].on(other)  # so that the bank has something to catch up with
            fuse.left = burns
            try:
                call.on(bank)
            except BankFileError as error:
                assert_one_line(error, path)
                check_file(bank, before)
                call.on(bank)
            unburnt, fuse.left = fuse.left > 0, 0
            check_file(bank, after)
            check(other, after)
        if unburnt:
            break
    assert burns > 1


# Power cuts


@pytest.mark.parametrize("tail", ["cut off", "garbage"])
def test_a_write_ahead_log_that_lost_its_end_holds_the_whole_batches_before(tmp_path: Path, tail: str) -> None:
    rng, model, path = random.Random(tail), Model(), tmp_path / "bank"
    wal = Path(f"{path}-wal")
    bank = open_bank(path)
    history = [(wal.stat().st_size, model)]
    for _ in range(60):
        model = step(bank, model, draw(rng, model, Mix()))
        history.append((wal.stat().st_size, model))
    assert path.stat().st_size < wal.stat().st_size, "a checkpoint came between: the log does not hold everything"
    schema_ends = history[0][0]
    content, log = path.read_bytes(), wal.read_bytes()
    for cut in (rng.randint(schema_ends, len(log)) for _ in range(60)):
        (tmp_path / "torn").write_bytes(content)
        rest = b"" if tail == "cut off" else rng.randbytes(len(log) - cut)
        (tmp_path / "torn-wal").write_bytes(log[:cut] + rest)
        with open_bank(tmp_path / "torn") as torn:
            check_file(torn, [model for end, model in history if end <= cut][-1])
    bank.close()


# Disks that are full or read-only


def call_on_full_disk(bank: Bank, model: Model, rng: random.Random, path: Path) -> Model:
    """Make random calls until one does not fit; the model after those that did."""
    while True:
        call = draw(rng, model, Mix())
        try:
            model = step(bank, model, call)
        except BankFileError as error:
            assert_one_line(error, path)
            return model


def fill_disk(say: Connection, path: Path) -> None:
    """Run against a limit on the size of files again and again; says how often."""
    import resource

    rng, model = random.Random(0), Model()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    bank = open_bank(path)
    model = step(bank, model, Call("apply", {"operations": [Operation.add(f"fact {n}") for n in range(20)]}))
    for fault in range(30):
        largest = max(file.stat().st_size for file in path.parent.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + rng.randrange(20_000), most))
        model = call_on_full_disk(bank, model, rng, path)
        check_file(bank, model)
        with open_bank(path) as reader:
            check(reader, model)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        model = step(bank, model, Call("apply", {"operations": [Operation.add(f"after fault {fault}")]}))
        check_file(bank, model)
    say.send(fault + 1)


def test_a_full_disk_is_reported_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    assert start(fill_disk, tmp_path / "bank").result() == 30


FILL_TMPFS = """
import random, subprocess, sys
from pathlib import Path
from test_bank_disk import *
folder, model = Path(sys.argv[1]), Model()
bank = open_bank(folder / "bank")
for size in (600, 800, 1000):
    subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True)
    model = call_on_full_disk(bank, model, random.Random(size), folder / "bank")
    check_file(bank, model)
    with open_bank(folder / "bank") as reader:
        check(reader, model)
bank.close()
subprocess.run(["mount", "-o", "remount,size=10m", folder], check=True)
with open_bank(folder / "bank") as bank:
    check_file(bank, model)
    check_file(bank, step(bank, model, Call("apply", {"operations": [Operation.add("room again")]})))
"""


def test_a_full_file_system_is_reported_and_what_was_acknowledged_stays(tmp_path: Path) -> None:
    mounted = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=600k none "$0" && exec "$@"', str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode != 0:
        pytest.skip("a file system of a given size needs unshare and mount, which this machine does not allow")
    command = [*mounted, sys.executable, "-c", FILL_TMPFS, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent)
    assert run.returncode == 0, run.stderr


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that any user may enter; pytest's own folders are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def write_unprivileged(say: Connection, path: Path) -> None:
    """Try to write to a bank as a user who is not root, say the error."""
    if os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        with open_bank(path) as bank:
            bank.apply([Operation.add("forbidden")])
    except BankFileError as error:
        assert_one_line(error, path)
        say.send(str(error))


@pytest.mark.parametrize("what", ["file", "folder", "file and folder"])
def test_what_is_read_only_is_refused_and_left_as_it_is(public_folder: Path, what: str) -> None:
    path = public_folder / "bank"
    with open_bank(path) as bank:
        model = step(bank, Model(), Call("apply", {"operations": [Operation.add("fact 1")]}))
    path.chmod(0o444 if "file" in what else 0o666)
    public_folder.chmod(0o555 if "folder" in what else 0o777)
    before = path.read_bytes()
    assert "write" in start(write_unprivileged, path).result()
    assert path.read_bytes() == before
    public_folder.chmod(0o777)
    path.chmod(0o666)
    with open_bank(path) as bank:
        check_file(bank, model)
        check_file(bank, step(bank, model, Call("apply", {"operations": [Operation.add("allowed")]})))
