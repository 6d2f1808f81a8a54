"""A store and the log that follows it in memory, for one thread at a time.

Whoever reads or writes does so inside `reading` or `writing`: alone among the threads, with the log caught up to what
others wrote, and with everything seen as of one moment. Left out: what is read and written (bank.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from memory_r1.bank.branch import BranchStore
from memory_r1.bank.log import Log
from memory_r1.bank.store import FileStore


class Follower:
    """Follows a file or a branch; a branch shares the lock of what it left, since they share rows."""

    def __init__(self, store: FileStore | BranchStore, log: Log, reset: int, lock: threading.RLock) -> None:
        """Use `of_file` or `branch`."""
        self.store = store
        self.lock = lock
        self._log = log
        self._reset = reset  # the file's event after which the log begins

    @classmethod
    def of_file(cls, store: FileStore) -> Follower:
        """Follow a file from its first line."""
        reset = store.last_reset()
        return cls(store, _new_log(store, reset), reset, threading.RLock())

    def branch(self) -> Follower:
        """Start from what is there now; neither sees what the other appends later."""
        with self.reading() as log:
            store = BranchStore.of(self.store)
            return Follower(store, log.branch(source=store.vectors), self._reset, self.lock)

    @contextmanager
    def reading(self) -> Iterator[Log]:
        """Every read of the block is from one moment."""
        with self.lock, self.store.snapshot():
            self._follow()
            yield self._log

    @contextmanager
    def writing(self) -> Iterator[Log]:
        """All that the block writes is there when it ends, or nothing of it; nobody else writes meanwhile."""
        with self.lock, self.store.transaction():
            self._follow()
            yield self._log

    def _follow(self) -> None:
        """Catch up with the store, whoever wrote there."""
        if not self.store.changed():
            return
        reset = self.store.last_reset()
        if reset != self._reset:
            self._start_anew(reset)
        try:
            for lines in self.store.lines(after=self._log.position):
                self._log.append(lines)
        except BaseException:  # above all Ctrl-C: a line may have been followed by half
            self._start_anew(reset)
            raise
        self.store.caught_up()

    def _start_anew(self, reset: int) -> None:
        """Forget what a file said; a branch, whose lines are in memory, cannot fail half-way for the file's sake."""
        if isinstance(self.store, FileStore):
            self._log, self._reset = _new_log(self.store, reset), reset


def _new_log(store: FileStore, reset: int) -> Log:
    """An empty log over a file after this reset; its vectors are those of the file until the next one."""
    return Log(source=partial(store.vectors_until, reset))
