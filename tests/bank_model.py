"""A bank in a page of dictionaries, random calls on a bank, and the check that a bank says what its model says.

The model is written from the docstrings of plan.py and undo.py, not from their code. A call is made on the model
first, which gives the model after it, or raises what the bank must raise. Left out: time, search order, other scopes
(whoever has several keeps `seq`, which all of a file share, up to date).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest

from memory_r1.bank import Bank, Entry, Operation, OperationKind, StoredTurn
from memory_r1.bank.log import Log
from memory_r1.bank.search import searchable
from memory_r1.errors import BankError, ConflictError, OperationError, UnknownEntryError


class Said(NamedTuple):
    """One version of an entry."""

    speaker: str | None
    text: str
    said_at: datetime | None = None
    turn_ids: tuple[str, ...] = ()

    @property
    def what(self) -> tuple[str | None, str]:
        """What no two live entries may have in common."""
        return self.speaker, self.text


@dataclass(frozen=True)
class Batch:
    """What the entries that a batch changed said before and after it, None for nothing; what was changed last first.

    `stop` is the number after its last line.
    """

    stop: int
    before: dict[str, Said | None]
    after: dict[str, Said | None]
    undoes: int | None = None


@dataclass
class Model:
    """One scope: entry id -> its versions, what is live -> the entry that says it, turn id -> pending, the batches."""

    said: dict[str, tuple[Said, ...]] = field(default_factory=dict)
    live: dict[tuple[str | None, str], str] = field(default_factory=dict)
    turns: dict[str, bool] = field(default_factory=dict)
    batches: dict[int, Batch] = field(default_factory=dict)
    seq: int = 0
    touched: list[str] = field(default_factory=list)  # the entries that the call under way changed, in order

    # What may be called on a bank and on its model; the model gives the model after it

    def apply(self, operations: Sequence[Operation], *, done: Sequence[str] = (), read: Sequence[Entry] = ()) -> Model:
        if any(o.kind is OperationKind.UPDATE and o.entry_id not in self.said for o in operations):
            raise UnknownEntryError("an UPDATE of an id that never was is refused before the rest is looked at")
        if any(self.now(entry.id) is None or len(self.said[entry.id]) != entry.version for entry in read):
            raise ConflictError("what was read has changed")
        after = self.copy()
        for operation in operations:
            after.seq += 1
            after._do(operation)
        for turn_id in done:
            after._finish(turn_id)
        return after._noted(self)

    def add_turns(self, turns: Sequence[StoredTurn]) -> Model:
        after = self.copy()
        for turn in turns:
            after.turns.setdefault(turn.id, True)
        return after

    def restore(self, entry_id: str, version: int | None = None) -> Model:
        after, versions, now = self.copy(), self.said.get(entry_id, ()), self.now(entry_id)
        wanted = version if version is not None else len(versions) - (1 if now else 0)
        if not 1 <= wanted <= len(versions):
            raise UnknownEntryError("no such entry or version")
        after.seq += 1
        if versions[wanted - 1] != now:
            after._say(entry_id, versions[wanted - 1])
        return after._noted(self)

    def undo(self, operation: int | None = None) -> Model:
        number = self._last_batch() if operation is None else self._batch_of(operation)
        before, after = self.batches[number].before, self.copy()
        if any(self.now(key) not in (was, self.batches[number].after[key]) for key, was in before.items()):
            raise ConflictError("what the batch changed was changed since")
        back = {key: was for key, was in before.items() if was != self.now(key)}
        for key in (key for key, was in back.items() if was is None):  # first what came is closed
            after._close(key, lines=1)
        waiting = []
        for key, was in ((key, was) for key, was in back.items() if was is not None):
            if self.now(key) is not None and was.what not in after.live:
                after._say(key, was, lines=1)
                continue
            if self.now(key) is not None:
                after._close(key, lines=1)
            waiting.append(key)  # last what went comes back
        for key in waiting:
            after._say(key, back[key], lines=1)
        after.seq = max(after.seq, self.seq + 1)
        return after._noted(self, undoes=number)

    # Within

    def copy(self) -> Model:
        return Model(dict(self.said), dict(self.live), dict(self.turns), dict(self.batches), self.seq)

    def now(self, entry_id: str) -> Said | None:
        """What an entry says now; None where it is deleted or never was."""
        versions = self.said.get(entry_id, ())
        return versions[-1] if versions and self.live.get(versions[-1].what) == entry_id else None

    def _do(self, operation: Operation) -> None:
        if operation.kind is OperationKind.ADD:
            said = Said(operation.speaker, operation.text or "", operation.said_at, operation.turn_ids)
            if said.what not in self.live:
                self._say(f"e{self.seq}", said)
        elif operation.entry_id is not None:
            self._change(operation.entry_id, operation)

    def _change(self, key: str, operation: Operation) -> None:
        now, version = self.now(key), len(self.said.get(key, ()))
        if now is None or operation.version not in (None, version):
            raise (ConflictError if operation.version and version else UnknownEntryError)(key)
        turn_ids = tuple(dict.fromkeys(now.turn_ids + operation.turn_ids))
        said = Said(now.speaker, operation.text or "", operation.said_at or now.said_at, turn_ids)
        same = self.live.get(said.what)
        if operation.kind is OperationKind.DELETE or same not in (None, key):
            self._close(key)
        elif same is None:
            self._say(key, said)

    def _say(self, key: str, said: Said | None, lines: int = 0) -> None:
        """Make this the newest version of an entry, and live; `lines` is how many lines of the log it takes."""
        assert said is not None
        if self.live.get(said.what, key) != key:
            raise ConflictError(f"{said.what} is said by another entry")
        now = self.now(key)
        if now is not None:
            del self.live[now.what]
        self.said[key] = (*self.said.get(key, ()), said)
        self.live[said.what] = key
        self.touched.append(key)
        self.seq += lines

    def _close(self, key: str, lines: int = 0) -> None:
        del self.live[self.said[key][-1].what]
        self.touched.append(key)
        self.seq += lines

    def _finish(self, turn_id: str) -> None:
        if not self.turns.get(turn_id):
            raise (ConflictError if turn_id in self.turns else BankError)(turn_id)
        self.turns[turn_id] = False

    def _noted(self, before: Model, undoes: int | None = None) -> Model:
        """Itself, with what was done since `before` noted as one batch."""
        if self.seq > before.seq:
            keys = dict.fromkeys(reversed(self.touched))
            was, now = {key: before.now(key) for key in keys}, {key: self.now(key) for key in keys}
            self.batches[before.seq + 1] = Batch(self.seq + 1, was, now, undoes)
        return self

    def _undone(self) -> set[int]:
        """The batches that are undone; an undo that is itself undone does not count."""
        undone: set[int] = set()
        for number, batch in reversed(self.batches.items()):
            if batch.undoes is not None and number not in undone:
                undone.add(batch.undoes)
        return undone

    def _last_batch(self) -> int:
        undone = self._undone()
        for number, batch in reversed(self.batches.items()):
            if batch.after and batch.undoes is None and number not in undone:
                return number
        raise OperationError("nothing to undo")

    def _batch_of(self, operation: int) -> int:
        number = next((n for n, batch in self.batches.items() if n <= operation < batch.stop), None)
        if number is None:
            raise OperationError("no such line")
        if number in self._undone():
            raise ConflictError("undone already")
        if not self.batches[number].after:
            raise OperationError("changed nothing")
        return number


@dataclass(frozen=True)
class Call:
    """A method of a bank, which its model has too, and the keyword arguments for it."""

    method: str
    arguments: Mapping[str, Any]

    @property
    def operations(self) -> int:
        """How many operations this comes to."""
        return len(self.arguments.get("operations", [self.method]))

    def on(self, bank: Bank | Model) -> Any:
        return getattr(bank, self.method)(**self.arguments)


def step(bank: Bank, model: Model, call: Call) -> Model:
    """Make one call on both, give the model after it. A refused call must leave the bank as it was."""
    try:
        after: Model = call.on(model)
    except BankError as refusal:
        before = (bank.operations(), bank.pending_turns())
        with pytest.raises(type(refusal)):
            call.on(bank)
        assert (bank.operations(), bank.pending_turns()) == before
        return model
    call.on(bank)
    return after


def settled(model: Model, call: Call) -> Model:
    """The model after a call, whether or not it is refused."""
    try:
        after: Model = call.on(model)
    except BankError:
        return model
    return after


# Random calls


@dataclass(frozen=True)
class Mix:
    """How often a random call is which, as relative weights; how many texts there are; operations a batch at most."""

    add: int = 4
    update: int = 4
    delete: int = 2
    noop: int = 1
    batches: int = 12
    turns: int = 2
    restores: int = 2
    undos: int = 2
    texts: int = 30
    longest: int = 6


def draw(rng: random.Random, model: Model, mix: Mix) -> Call:
    """A random call that fits the model, mostly; nothing else decides what it is."""
    maker = rng.choices((_batch, _turns, _restore, _undo), (mix.batches, mix.turns, mix.restores, mix.undos))[0]
    return maker(rng, model, mix)


def _batch(rng: random.Random, model: Model, mix: Mix) -> Call:
    careless = rng.random() < 0.1  # one refused operation refuses the batch: without care, long ones never pass
    operations: list[Operation] = []
    named: dict[str, OperationKind] = {}
    for _ in range(rng.randint(1, mix.longest)):
        operation = _operation(rng, model, mix, careless)
        key = operation.entry_id or ""
        if named.get(key) is OperationKind.DELETE and not careless:
            continue
        operations.append(replace(operation, version=None) if key in named and not careless else operation)
        if key:
            named[key] = operation.kind
    pending = [turn_id for turn_id, is_pending in model.turns.items() if is_pending]
    done = pending[: rng.randint(0, 2)]
    if careless:
        done = [rng.choice(["t-never-stored", *model.turns])]
    read = [_read(rng, model, careless)] if model.live and rng.random() < 0.2 else []
    return Call("apply", {"operations": operations, "done": done, "read": read})


def _operation(rng: random.Random, model: Model, mix: Mix, careless: bool) -> Operation:
    text, key = f"fact {rng.randrange(mix.texts)}", _key(rng, model, careless)
    turn_ids = [f"t{rng.randrange(9)}"] if rng.random() < 0.3 else []
    said_at = datetime(2024, 1, rng.randint(1, 28)) if rng.random() < 0.3 else None
    version = len(model.said[key]) if key in model.said and rng.random() < 0.5 else None
    if careless and rng.random() < 0.2:
        version = rng.randint(1, 3)
    match rng.choices(list(OperationKind), (mix.add, mix.update if key else 0, mix.delete if key else 0, mix.noop))[0]:
        case OperationKind.ADD:
            return Operation.add(text, speaker=rng.choice(["Ann", "Bob", None]), said_at=said_at, turn_ids=turn_ids)
        case OperationKind.UPDATE:
            return Operation.update(key, text, said_at=said_at, turn_ids=turn_ids, version=version)
        case OperationKind.DELETE:
            return Operation.delete(key, turn_ids=turn_ids, version=version)
        case _:
            return Operation.noop(turn_ids=turn_ids)


def _key(rng: random.Random, model: Model, careless: bool) -> str:
    """The id of a live entry; empty where there is none; of the careless, seldom one that is deleted or never was."""
    if careless and rng.random() < 0.2:
        return rng.choice(["never", *model.said])
    return rng.choice(list(model.live.values()) or [""])


def _read(rng: random.Random, model: Model, careless: bool) -> Entry:
    key = _key(rng, model, careless)
    return Entry(key, "as read", version=len(model.said.get(key, ())) or 1)


def _turns(rng: random.Random, model: Model, mix: Mix) -> Call:
    first = len(model.turns) - rng.randint(0, 1)  # now and then one that is stored already
    turns = [StoredTurn(f"t{n}", "Ann", f"turn {n}", dialogue_id="d") for n in range(max(0, first), first + 3)]
    return Call("add_turns", {"turns": turns})


def _restore(rng: random.Random, model: Model, mix: Mix) -> Call:
    key = rng.choice(["never", *model.said])
    version = rng.choice([None, rng.randint(1, len(model.said.get(key, ())) + 1)])
    return Call("restore", {"entry_id": key, "version": version})


def _undo(rng: random.Random, model: Model, mix: Mix) -> Call:
    recent = range(max(1, model.seq - 20), model.seq + 2)  # older ones are mostly changed since
    number = rng.choice([None, None, rng.choice(recent)])
    return Call("undo", {"operation": number})


# Agreement


def agrees(bank: Bank, model: Model) -> bool:
    """Whether the bank has come as far as the model: no call leaves both the log and the turns as they were."""
    last = max((line.seq for line in bank.operations()), default=0)
    pending = [turn_id for turn_id, is_pending in model.turns.items() if is_pending]
    stats = bank.stats()
    return (last, stats.turns, [turn.id for turn in bank.pending_turns()]) == (model.seq, len(model.turns), pending)


def check(bank: Bank, model: Model) -> None:
    """Entries, history, turns, the log's own account and search all agree with the model."""
    entries = {entry.id: entry for entry in bank.entries()}
    assert {key: said(entry) for key, entry in entries.items()} == {k: model.said[k][-1] for k in model.live.values()}
    for key, versions in model.said.items():
        history = bank.history(key)
        assert tuple(said(entry) for entry in history) == versions
        assert [entry.version for entry in history] == list(range(1, len(versions) + 1))
        if key in entries:
            assert history[-1] == entries[key]
        check_intervals(history, is_live=key in entries)
    assert [turn.id for turn in bank.pending_turns()] == [key for key, is_pending in model.turns.items() if is_pending]
    assert bank.stats().turns == len(model.turns)
    rebuilt = Log(source=lambda after: ())
    for line in bank.operations():
        rebuilt.append(line)
    assert rebuilt.live_entries() == list(entries.values())
    check_search(bank, entries)


def check_file(bank: Bank, model: Model) -> None:
    """The bank agrees with its model, and its file keeps every promise."""
    check(bank, model)
    assert bank.verify() == []


def said(entry: Entry) -> Said:
    return Said(entry.speaker, entry.text, entry.said_at, entry.turn_ids)


def check_intervals(history: Sequence[Entry], is_live: bool) -> None:
    """Versions follow one another: none begins before the last one ended, and only the newest may still be open."""
    for older, newer in pairwise(history):
        assert older.valid_from is not None
        assert older.valid_to is not None
        assert newer.valid_from is not None
        assert older.valid_from <= older.valid_to <= newer.valid_from  # a batch has one time, a deleted entry a gap
    assert (history[-1].valid_to is None) == is_live


def check_search(bank: Bank, entries: dict[str, Entry]) -> None:
    """Search sees the live entries and no others, each by the vector of its own text."""
    hits = bank.ranked("fact 1", k=len(entries) + 1, mode="dense")
    assert {hit.entry.id for hit in hits} == set(entries)
    if hits:
        vectors = bank.embedder.embed([searchable(hit.entry.text, hit.entry.speaker) for hit in hits])
        expected = vectors @ bank.embedder.embed(["fact 1"])[0]
        assert np.allclose([hit.score for hit in hits], expected, atol=1e-5)
