"""Random batches on a bank and on a model of it that fits on a page: both must say the same, on disk and in forks."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.bank import Bank, HashingEmbedder, Operation, OperationKind
from memory_r1.bank.log import Log
from memory_r1.errors import ConflictError, MemoryR1Error, UnknownEntryError

TEXTS = st.sampled_from(["tea", "coffee", "a dog", "a cat", "Lisbon"])
SPEAKERS = st.sampled_from(["Ann", "", None]).map(lambda speaker: speaker or None)
NUMBERS = st.integers(0, 7).map(str)
VERSIONS = st.sampled_from([None, None, 1, 2])
# A drawn operation names its entry by a number, which `aimed` turns into an id that the bank has, mostly.
OPERATIONS = st.one_of(
    st.builds(lambda text, speaker: Operation.add(text, speaker=speaker), TEXTS, SPEAKERS),
    st.builds(lambda number, text, version: Operation.update(number, text, version=version), NUMBERS, TEXTS, VERSIONS),
    st.builds(lambda number, version: Operation.delete(number, version=version), NUMBERS, VERSIONS),
    st.just(Operation.noop()),
)
BATCHES = st.lists(st.lists(OPERATIONS, min_size=1, max_size=3), max_size=6)


@dataclass
class Model:
    """The rules of plan.py over plain lists: entry id -> its versions as (speaker, text), and which ids are live."""

    versions: dict[str, list[tuple[str | None, str]]] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    seq: int = 0

    def says(self, what: tuple[str | None, str]) -> str | None:
        return next((key for key in self.live if self.versions[key][-1] == what), None)

    def after(self, batch: list[Operation]) -> tuple[Model, type[MemoryR1Error] | None]:
        """The model after a batch, and the error that refuses the batch, if any."""
        model = self.copy()
        for operation in batch:
            refusal = UnknownEntryError if self.never_was(batch) else model.refuses(operation)
            if refusal:
                return self, refusal
            model.do(operation)
        return model, None

    def never_was(self, batch: list[Operation]) -> bool:
        """An UPDATE of an id that never was is refused before the rest is looked at."""
        return any(o.kind is OperationKind.UPDATE and o.entry_id not in self.versions for o in batch)

    def refuses(self, operation: Operation) -> type[MemoryR1Error] | None:
        key, version = operation.entry_id, operation.version
        if key is None:
            return None
        if key not in self.live:
            return ConflictError if version and key in self.versions else UnknownEntryError
        return ConflictError if version not in (None, len(self.versions[key])) else None

    def do(self, operation: Operation) -> None:
        self.seq += 1
        if operation.kind is OperationKind.ADD:
            what = (operation.speaker, operation.text or "")
            if self.says(what) is None:
                self.versions[f"e{self.seq}"] = [what]
                self.live.add(f"e{self.seq}")
        elif operation.kind is OperationKind.DELETE:
            self.live.remove(operation.entry_id or "")
        elif operation.kind is OperationKind.UPDATE:
            self.update(operation.entry_id or "", operation.text or "")

    def update(self, key: str, text: str) -> None:
        what = (self.versions[key][-1][0], text)
        same = self.says(what)
        if same is None:
            self.versions[key].append(what)
        elif same != key:
            self.live.remove(key)

    def copy(self) -> Model:
        return Model({key: list(versions) for key, versions in self.versions.items()}, set(self.live), self.seq)


def aimed(operation: Operation, model: Model) -> Operation:
    """Name an entry by its number among those that ever were; one number too many is an id that never was."""
    if operation.entry_id is None:
        return operation
    ids = [*model.versions, "e999"]
    return replace(operation, entry_id=ids[int(operation.entry_id) % len(ids)])


def step(bank: Bank, model: Model, drawn: list[Operation]) -> Model:
    """Apply one batch to both; the model that results. A refused batch must leave both as they were."""
    batch = [aimed(operation, model) for operation in drawn]
    tried, refusal = model.after(batch)
    before = bank.operations()
    if refusal is None:
        bank.apply(batch)
        return tried
    with pytest.raises(refusal):
        bank.apply(batch)
    assert bank.operations() == before
    return model


def check(bank: Bank, model: Model) -> None:
    """Entries, history, the log's own account and search all agree with the model."""
    live = {entry.id: (entry.speaker, entry.text) for entry in bank.entries()}
    assert live == {key: model.versions[key][-1] for key in model.live}
    assert len(set(live.values())) == len(live)
    for key, versions in model.versions.items():
        history = bank.history(key)
        assert [(version.speaker, version.text) for version in history] == versions
        assert [version.version for version in history] == list(range(1, len(versions) + 1))
        assert [version.valid_to for version in history[:-1]] == [version.valid_from for version in history[1:]]
        assert (history[-1].valid_to is None) == (key in model.live)
    rebuilt = Log(source=lambda after: ())
    for line in bank.operations():
        rebuilt.append(line)
    assert rebuilt.live_entries() == bank.entries()
    assert {entry.id for entry in bank.search("tea", k=100)} == model.live


def steps(bank: Bank, model: Model, batches: list[list[Operation]]) -> Model:
    for batch in batches:
        model = step(bank, model, batch)
    return model


@settings(max_examples=100, deadline=None)
@given(before=BATCHES, after=BATCHES, in_fork=BATCHES, in_child=BATCHES)
def test_a_bank_its_file_and_its_forks_do_what_the_model_does(
    before: list[list[Operation]],
    after: list[list[Operation]],
    in_fork: list[list[Operation]],
    in_child: list[list[Operation]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank"
        with Bank.open(path, embedder=HashingEmbedder(8)) as bank:
            at_fork = steps(bank, Model(), before)
            check(bank, at_fork)
            fork = bank.fork()
            model = steps(bank, at_fork, after)
            fork_model = steps(fork, at_fork, in_fork)
            child = fork.fork()
            child_model = steps(child, fork_model, in_child)
            fork_model = steps(fork, fork_model, after)
            check(bank, model)
            check(fork, fork_model)
            check(child, child_model)
        with Bank.open(path, embedder=HashingEmbedder(8)) as reopened:
            check(reopened, model)
