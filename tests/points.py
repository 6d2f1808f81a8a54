"""The points at which a call on a bank can be stopped, and the calls that write, to be stopped there."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from bank_model import Call
from memory_r1.bank import Bank, HashingEmbedder, Operation, StoredTurn
from memory_r1.bank.column import Floats

EMBEDDER = HashingEmbedder(8)


def open_bank(path: Path) -> Bank:
    return Bank.open(path, embedder=EMBEDDER)


class Points:
    """The points that a process passes; it says the name of each and kills itself at the fatal one."""

    def __init__(self, say: Connection, fatal: int) -> None:
        self._say, self._left = say, fatal
        self.armed = False

    def __call__(self, name: str) -> None:
        if not self.armed:
            return
        self._say.send(name)
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Watched(sqlite3.Connection):
    """A connection whose statements are points: every beginning, and the end of a COMMIT. After other statements
    nothing happens before the next one begins."""

    def __init__(self, point: Callable[[str], None], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._point = point

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._around(sql, lambda: super(Watched, self).execute(sql, *values))

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return self._around(sql, lambda: super(Watched, self).executemany(sql, *values))

    def _around(self, sql: str, run: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        name = " ".join(sql.split())[:40]
        self._point(f"before {name}")
        cursor = run()
        if name == "COMMIT":
            self._point("after COMMIT")
        return cursor


@contextmanager
def watched_sql(point: Callable[[str], None]) -> Iterator[None]:
    """Every connection made in the block is watched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=partial(Watched, point)))
        yield


class WatchedEmbedder(HashingEmbedder):
    """An embedder whose work is a point at either end."""

    def __init__(self, points: Points) -> None:
        super().__init__(EMBEDDER.dimension)
        self._points = points

    def embed(self, texts: Sequence[str]) -> Floats:
        self._points("before embedding")
        vectors = super().embed(texts)
        self._points("after embedding")
        return vectors


# A bank to begin with, and calls that write to it

BEGINNING = (
    Call("add_turns", {"turns": [StoredTurn(f"t{n}", "Ann", f"turn {n}") for n in range(4)]}),
    Call("apply", {"operations": [Operation.add(f"fact {n}", speaker="Ann") for n in range(6)], "done": ["t0"]}),
    Call("apply", {"operations": [Operation.update("e2", "x"), Operation.delete("e4"), Operation.noop()]}),
)  # fmt: skip
WRITES = {
    "apply": Call(
        "apply",
        {
            "operations": [
                Operation.add("new", turn_ids=["t1"]),
                Operation.add("fact 5", speaker="Ann"),
                Operation.update("e5", "newer", turn_ids=["t2"], version=1),
                Operation.update("e6", "fact 0", version=1),
                Operation.delete("e2"),
                Operation.noop(),
            ],
            "done": ["t1", "t2"],
        },
    ),
    "add_turns": Call("add_turns", {"turns": [StoredTurn(f"t{n}", "Bob", f"turn {n}") for n in range(4, 8)]}),
    "restore": Call("restore", {"entry_id": "e4", "version": None}),
    "undo": Call("undo", {"operation": None}),
}
