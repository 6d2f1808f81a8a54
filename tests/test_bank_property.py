"""Random batches on a bank and on a model of it that fits on a page: both must say the same, on disk and in forks."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_r1.bank import Bank, HashingEmbedder, Operation, OperationKind
from memory_r1.bank.log import Log
from memory_r1.errors import ConflictError, UnknownEntryError

TEXTS = st.sampled_from(["tea", "coffee", "a dog", "a cat", "Lisbon"])
SPEAKERS = st.sampled_from(["Ann", "", None]).map(lambda speaker: speaker or None)
NUMBERS = st.integers(0, 12)
VERSIONS = st.sampled_from([None, None, 1, 2])
OPERATIONS = st.one_of(
    st.builds(lambda text, speaker: Operation.add(text, speaker=speaker), TEXTS, SPEAKERS),
    st.builds(lambda n, text, version: Operation.update(f"e{n}", text, version=version), NUMBERS, TEXTS, VERSIONS),
    st.builds(lambda n, version: Operation.delete(f"e{n}", version=version), NUMBERS, VERSIONS),
    st.just(Operation.noop()),
)
BATCHES = st.lists(st.lists(OPERATIONS, max_size=4), max_size=12)


@dataclass
class Model:
    """The rules of plan.py over plain lists: entry id -> its versions as (speaker, text), and which ids are live."""

    versions: dict[str, list[tuple[str | None, str]]] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    seq: int = 0

    def says(self, what: tuple[str | None, str]) -> str | None:
        return next((key for key in self.live if self.versions[key][-1] == what), None)

    def refuses(self, operation: Operation, known: set[str]) -> type[Exception] | None:
        """Ids not known before the batch are refused before anything is planned."""
        key, version = operation.entry_id, operation.version
        if key is None:
            return None
        if key not in known:
            return UnknownEntryError
        if key not in self.live:
            return ConflictError if version else UnknownEntryError
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


def step(bank: Bank, model: Model, batch: list[Operation]) -> Model:
    """Apply one batch to both; the model that results. A refused batch must leave both as they were."""
    tried, known, before = model.copy(), set(model.versions), bank.operations()
    early = next((o for o in batch if o.kind is OperationKind.UPDATE and o.entry_id not in known), None)
    refusal: type[Exception] | None = UnknownEntryError if early else None
    for operation in [] if early else batch:
        refusal = tried.refuses(operation, set(tried.versions))
        if refusal:
            break
        tried.do(operation)
    try:
        bank.apply(batch)
    except (ConflictError, UnknownEntryError) as error:
        assert type(error) is refusal
        assert bank.operations() == before
        return model
    assert refusal is None
    return tried


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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=BATCHES, forks=BATCHES)
def test_a_bank_its_file_and_its_forks_do_what_the_model_does(
    batches: list[list[Operation]], forks: list[list[Operation]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank"
        with Bank.open(path, embedder=HashingEmbedder(8)) as bank:
            model = Model()
            for batch in batches[:6]:
                model = step(bank, model, batch)
            check(bank, model)
            fork, in_fork = bank.fork(), model.copy()
            for batch in batches[6:]:
                model = step(bank, model, batch)
            for batch in forks[:6]:
                in_fork = step(fork, in_fork, batch)
            grandchild, in_grandchild = fork.fork(), in_fork.copy()
            for batch in forks[6:]:
                in_grandchild = step(grandchild, in_grandchild, batch)
            check(bank, model)
            check(fork, in_fork)
            check(grandchild, in_grandchild)
        with Bank.open(path, embedder=HashingEmbedder(8)) as reopened:
            check(reopened, model)
