"""The bank: what an agent remembers of one scope, and the only writer of it.

Left out: deciding what to remember (the memory manager's work) and meaning beyond the text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from memory_r1.bank.branch import BranchStore
from memory_r1.bank.check import (
    check_embedder,
    check_operation,
    check_text,
    check_turn,
    claim_embedder,
    id_of,
)
from memory_r1.bank.column import Floats
from memory_r1.bank.embed import Embedder, usual_embedder
from memory_r1.bank.follow import Follower
from memory_r1.bank.log import Log
from memory_r1.bank.operation import (
    Applied,
    BankStats,
    Entry,
    LoggedOperation,
    Operation,
    OperationKind,
    StoredTurn,
)
from memory_r1.bank.plan import check_read, plan
from memory_r1.bank.recent import RecentVectors
from memory_r1.bank.search import Hit, Searcher, SearchMode, searchable
from memory_r1.bank.store import FileStore
from memory_r1.bank.undo import Restored, plan_restore, plan_undo
from memory_r1.bank.verify import verify
from memory_r1.errors import BankError, InputError, UnknownEntryError

_TEXTUAL = (OperationKind.ADD, OperationKind.UPDATE)


class Bank:
    """Entries, their history and the turns they were learnt from, in one scope of one SQLite file.

    A scope is a hard wall: another scope's entries and turns are not seen here. Many threads may share one Bank, and
    many Banks, in this process or others, may share one file; every call first catches up with what others wrote.
    A bank belongs to the process that opened it: open it again after os.fork.
    """

    def __init__(
        self,
        follower: Follower,
        scope: str,
        vectors: RecentVectors,
        searcher: Searcher,
        clock: Callable[[], datetime],
    ) -> None:
        """Use `Bank.open` or `fork`."""
        self.scope = scope
        self.embedder = vectors.embedder
        self._follower = follower
        self._store = follower.store
        self._lock = follower.lock
        self._searcher = searcher
        self._clock = clock
        self._vectors = vectors

    @classmethod
    def open(
        cls,
        path: str | Path,
        scope: str = "default",
        embedder: Embedder | None = None,
        *,
        clock: Callable[[], datetime] | None = None,
        approximate: bool = False,
    ) -> Bank:
        """Open a bank file, created where there is none; ":memory:" gives one that lives as long as the object.

        Args:
            embedder: None is the one that made the file's vectors, in a new file the embedded all-MiniLM-L6-v2;
                loaded when first needed: by an ADD, an UPDATE, or a dense or hybrid search.
            clock: tells the time, with a zone; for tests and for replaying the past.
            approximate: let dense and hybrid search of 200,000 entries and more look at signs first, which makes it
                about three times as fast and misses one of the best 100 now and then (docs/bank.md).

        Raises:
            BankFileError: not a bank, of a newer schema, or not readable and writable.
            InputError: the path or the scope is empty, or the scope not valid Unicode.
        """
        if not str(path) or "\0" in str(path):
            raise InputError(f"the bank's path is {str(path)!r}, expected the name of a file")
        store = FileStore(str(path), scope)
        embedder, clock = embedder or usual_embedder(store.embedder()), clock or _utc_now
        return cls(Follower.of_file(store), scope, RecentVectors(embedder), Searcher(approximate), clock)

    def fork(self) -> Bank:
        """A branch in memory: it starts from what this bank says now, and neither sees what the other writes later.

        Costs what is changed in it, not what is stored: entries and vectors are shared. It reads vectors and turns
        that were not needed before from this bank's file, so keep this bank open while the fork is in use.
        """
        return Bank(self._follower.branch(), self.scope, self._vectors, self._searcher, self._clock)

    def close(self) -> None:
        """Release the file; safe to repeat."""
        with self._lock:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing

    def apply(
        self,
        operations: Iterable[Operation],
        *,
        decided_by: str = "person",
        done: Iterable[str] = (),
        read: Iterable[Entry] = (),
    ) -> list[Applied]:
        """Do a batch in one transaction: the operations, their log lines and vectors, and the turns they settle.

        When this returns, everything is on disk; when it raises, nothing is. plan.py has the rules of each operation.

        Args:
            operations: in order; each may change entries that were live before the batch.
            decided_by: the policy with its version, or the person who decided.
            done: ids of pending turns that this batch settles; it may be empty of operations.
            read: entries that the decision was made on. With them even a NOOP ("the bank says so already") is
                refused when what it rests on has changed.

        Raises:
            ConflictError: decided on a version that is no longer live, or a turn was done before.
            UnknownEntryError: an UPDATE or DELETE of an id that is not live in this scope.
            OperationError: an operation without the text or id it needs, or that cannot be stored.
            InputError: decided_by or a turn id is empty or not valid Unicode.
            BankError: the file's vectors were made by another embedder, or a turn in `done` is not stored.
            BankFileError: the file cannot be written.
            PolicyError: the embedder's model could not be loaded or reached.
        """
        operations, done = list(operations), list(dict.fromkeys(done))
        check_text("decided_by", decided_by)
        for turn_id in done:
            check_text("a turn id in done", turn_id)
        for operation in operations:
            check_operation(operation)
        vectors = self._embed(operations)  # before the transaction: nobody waits for a model
        with self._follower.writing() as log:
            check_read(log, read)
            stamp = self._stamp(decided_by)
            planned = plan(log, operations, stamp)
            self._store.finish_turns(done, stamp.at)
            if vectors:
                claim_embedder(self._store, id_of(self.embedder))
            self._store.append([line for line, _ in planned], _by_line(planned, vectors))
        return [applied for _, applied in planned]

    def restore(self, entry_id: str, version: int | None = None, *, decided_by: str = "person") -> Applied:
        """Make an old version of an entry the live one again, as a new version; a deleted entry becomes live again.

        Args:
            version: None is the version before the live one, or the last one of a deleted entry.

        Raises:
            UnknownEntryError: the scope never had this entry, or it has no such version.
            ConflictError: another live entry says the same by now.
            BankFileError: the file cannot be written.
        """
        check_text("decided_by", decided_by)
        with self._follower.writing() as log:
            restored = plan_restore(log, entry_id, version, self._stamp(decided_by))
            self._append_restored(log, [restored])
        return restored.applied

    def undo(self, operation: int | None = None, *, decided_by: str = "person") -> list[Applied]:
        """Take one batch back, all of it, by new versions; nothing is lost, and an undo can itself be undone.

        The turns that the batch settled stay settled.

        Args:
            operation: the number of any of the batch's log lines; None is the last batch that changed something and
                is neither an undo nor undone: called again, it goes further back.

        Raises:
            OperationError: there is nothing to undo, or no such operation, or it changed nothing.
            ConflictError: it is undone already, or what it changed was changed since.
            BankFileError: the file cannot be written.
        """
        check_text("decided_by", decided_by)
        with self._follower.writing() as log:
            restored = plan_undo(log, operation, self._stamp(decided_by))
            self._append_restored(log, restored)
        return [one.applied for one in restored]

    def add_turns(self, turns: Iterable[StoredTurn]) -> list[StoredTurn]:
        """Store turns as pending, in one transaction; gives those that are new. An equal turn is stored once.

        Raises:
            BankError: a known id comes with another content; nothing is stored.
            InputError: an id, speaker or text is empty or not valid Unicode.
        """
        turns = list(turns)
        for turn in turns:
            check_turn(turn)
        with self._lock, self._store.transaction():
            return self._store.add_turns(turns)

    # Reading

    def get(self, entry_id: str) -> Entry:
        """The live version of an entry; raises UnknownEntryError, for a deleted one too."""
        with self._follower.reading() as log:
            entry = log.live(entry_id)
        if entry is None:
            raise UnknownEntryError(
                f"{entry_id!r} is not live in scope {self.scope!r}, expected an id that entries() lists"
            )
        return entry

    def entries(self) -> list[Entry]:
        """Every live entry, in the order they were added; an UPDATE keeps its place."""
        with self._follower.reading() as log:
            return log.live_entries()

    def speakers(self) -> list[str]:
        """Whose entries are live, in order of their first live entry; entries that name nobody count for nobody."""
        return list(dict.fromkeys(entry.speaker for entry in self.entries() if entry.speaker))

    def history(self, entry_id: str) -> list[Entry]:
        """Every version of an entry, oldest first, deleted or not; raises UnknownEntryError."""
        with self._follower.reading() as log:
            versions = log.versions(entry_id)
        if not versions:
            raise self._never_was(entry_id)
        return versions

    def operations(self) -> list[LoggedOperation]:
        """The scope's operations log, oldest first."""
        with self._follower.reading() as log:
            return log.lines()

    def as_of(self, time: datetime) -> list[Entry]:
        """What the bank believed at this time, UTC where it names no zone; the order is that of `entries`."""
        try:
            moment = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        except OverflowError as error:
            raise InputError(f"the time is {time.isoformat()}, expected one that UTC has too") from error
        with self._follower.reading() as log:
            return log.live_at(moment)

    def turn(self, turn_id: str) -> StoredTurn:
        """A stored turn, pending or done; raises BankError."""
        with self._lock:
            turn = self._store.turn(turn_id)
        if turn is None:
            raise BankError(f"turn {turn_id!r} is not stored in scope {self.scope!r}, expected the id of a stored turn")
        return turn

    def source_turns(self, entry: Entry) -> list[StoredTurn]:
        """The stored turns an entry was learnt from; ids that a person gave without storing a turn are left out."""
        with self._lock:
            found = [self._store.turn(turn_id) for turn_id in entry.turn_ids]
        return [turn for turn in found if turn is not None]

    def pending_turns(self) -> list[StoredTurn]:
        """The turns whose operations are not applied yet, in the order they were stored."""
        with self._lock:
            return self._store.pending_turns()

    def scopes(self) -> list[str]:
        """Every scope of the file that holds anything, by name."""
        with self._lock:
            return self._store.scopes()

    def stats(self) -> BankStats:
        """How much the scope holds."""
        with self._follower.reading() as log:
            kinds = Counter(line.kind for line in log.outline())
            return BankStats(
                live=int(log.live_rows().sum()),
                versions=log.stop,
                operations={kind: kinds[kind] for kind in OperationKind},
                turns=self._store.turn_count(),
                pending_turns=len(self._store.pending_turns()),
                bytes=self._store.bytes(),
            )

    def verify(self) -> list[str]:
        """Every broken invariant of the whole file, all scopes, named; empty where all is well. See verify.py.

        Raises:
            BankError: this is a fork, which has no file. BankFileError: SQLite cannot read the file.
        """
        with self._lock:
            return verify(self._own_file())

    # The whole file

    def delete_scope(self) -> bool:
        """Forget the scope: entries, history, turns and vectors, overwritten in the file. There is no undo.

        Numbers that it used are not given out again. Other banks open on the scope find it empty.

        Returns:
            False when somebody was reading the file all the while, such as an export: what was deleted stays in the
            file, where no bank shows it, until the next write or vacuum after that.

        Raises:
            BankError: this is a fork. BankFileError: the file cannot be written.
        """
        with self._lock:
            return self._own_file().delete_scope(self._now(None))

    def vacuum(self) -> tuple[int, int]:
        """Give the room of what was replaced or deleted back to the disk; needs as much free as the file takes.

        Returns:
            The size of the file before and after, in bytes.

        Raises:
            BankError: this is a fork. BankFileError: another process is writing, or the disk is full.
        """
        with self._lock:
            return self._own_file().vacuum()

    def _own_file(self) -> FileStore:
        if isinstance(self._store, BranchStore):
            raise BankError("this bank is a fork and has no file of its own: call it on the bank that was forked")
        return self._store

    # Searching

    def search(self, text: str, k: int = 10, speaker: str | None = None, mode: str = "hybrid") -> list[Entry]:
        """The k live entries that fit the text best, best first; see `ranked_each`."""
        return self.search_each([text], k, speaker, mode)[0]

    def search_each(
        self, texts: Sequence[str], k: int = 10, speaker: str | None = None, mode: str = "hybrid"
    ) -> list[list[Entry]]:
        """What `search` finds for each text; embedding them in one batch is faster than one by one."""
        return [[hit.entry for hit in hits] for hits in self.ranked_each(texts, k, speaker, mode)]

    def ranked(self, text: str, k: int = 10, speaker: str | None = None, mode: str = "hybrid") -> list[Hit]:
        """What `search` finds, with scores; see `ranked_each`."""
        return self.ranked_each([text], k, speaker, mode)[0]

    def ranked_each(
        self, texts: Sequence[str], k: int = 10, speaker: str | None = None, mode: str = "hybrid"
    ) -> list[list[Hit]]:
        """For each text the k live entries that fit it best, with their scores, best first; equal scores: older first.

        Args:
            texts: questions, facts or words.
            k: how many at most; bm25 gives fewer where fewer share a word with the text.
            speaker: only this speaker's entries, as if the bank held no others.
            mode: "hybrid" (both of the others, and what neighbours and speakers tell: fusion.py), "dense" or "bm25".

        Raises:
            InputError: k below 1, an unknown mode, or a text that is empty or not valid Unicode.
            BankError: dense or hybrid, and the file's vectors were made by another embedder.
            PolicyError: the embedder's model could not be loaded or reached.
        """
        for text in texts:
            check_text("the text to search for", text)
        if k < 1:
            raise InputError(f"k is {k}, expected at least 1")
        wanted = _search_mode(mode)
        with self._follower.reading() as log:
            maker, anything = self._store.embedder(), log.live_rows(speaker).any()
        if not texts or not anything:
            return [[] for _ in texts]
        queries: Sequence[Floats | None] = [None] * len(texts)
        if wanted is not SearchMode.BM25:  # outside the lock: nobody waits for a model
            check_embedder(maker, id_of(self.embedder))
            queries = list(self._vectors.of(texts))
        with self._follower.reading() as log:
            if wanted is not SearchMode.BM25:
                check_embedder(self._store.embedder(), id_of(self.embedder))
            return [
                self._searcher.ranked(log, text, query, k, speaker, wanted)
                for text, query in zip(texts, queries, strict=True)
            ]

    # Within

    def _stamp(self, decided_by: str) -> LoggedOperation:
        """The first line of a new batch, as far as all of its lines share it; only inside a transaction."""
        seq, last = self._store.head()
        return LoggedOperation(seq + 1, OperationKind.NOOP, self._now(last), decided_by, batch=seq + 1)

    def _append_restored(self, log: Log, restored: Sequence[Restored]) -> None:
        """Write what brings old versions back, with the vectors they had; only inside a transaction."""
        vectors = {one.line.seq: log.vector(one.source) for one in restored if one.source}
        self._store.append([one.line for one in restored], vectors)

    def _now(self, last: datetime | None) -> datetime:
        """A time after the last line's, even if the clock went backwards."""
        now = self._clock().astimezone(UTC)
        return now if last is None else max(now, last + timedelta(microseconds=1))

    def _embed(self, operations: Sequence[Operation]) -> dict[int, Floats]:
        """The vectors of the texts that a batch brings, by the place of their operation."""
        places = [place for place, operation in enumerate(operations) if operation.kind in _TEXTUAL]
        if not places:
            return {}
        with self._follower.reading() as log:
            maker = self._store.embedder()
            texts = [self._searchable(log, operations[place]) for place in places]
        check_embedder(maker, id_of(self.embedder))
        return dict(zip(places, self._vectors.of(texts), strict=True))

    def _searchable(self, log: Log, operation: Operation) -> str:
        assert operation.text is not None
        if operation.entry_id is None:
            return searchable(operation.text, operation.speaker)
        last = log.last_version(operation.entry_id)
        if last is None:
            raise self._never_was(operation.entry_id)
        return searchable(operation.text, last.speaker)

    def _never_was(self, entry_id: str) -> UnknownEntryError:
        return UnknownEntryError(
            f"{entry_id!r} was never in scope {self.scope!r}, expected an id that operations() lists"
        )


def _by_line(planned: Sequence[tuple[LoggedOperation, Applied]], vectors: dict[int, Floats]) -> dict[int, Floats]:
    """The vectors of the versions a batch opens, by line number."""
    return {line.seq: vectors[place] for place, (line, _) in enumerate(planned) if line.kind in _TEXTUAL}


def _search_mode(mode: str) -> SearchMode:
    try:
        return SearchMode(mode)
    except ValueError as error:
        raise InputError(f"search mode is {mode!r}, expected one of: {', '.join(SearchMode)}") from error


def _utc_now() -> datetime:
    return datetime.now(UTC)
