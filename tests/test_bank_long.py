"""What a bank goes through in a long life: 100,000 random operations beside a model of it, texts of a megabyte, a batch
of 10,000. Left out: small examples that say at a glance what is wrong (test_bank_property.py)."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bank_model import Mix, Model, check, draw, said, step
from memory_r1.bank import Bank, HashingEmbedder, Operation, StoredTurn
from memory_r1.bank.column import Floats
from memory_r1.errors import UnknownEntryError

OPERATIONS = 100_000
EXAMPLES = 80
MIXES = st.builds(
    Mix,
    add=st.integers(1, 6),
    update=st.integers(0, 6),
    delete=st.integers(0, 3),
    turns=st.integers(0, 3),
    restores=st.integers(0, 3),
    undos=st.integers(0, 3),
    texts=st.sampled_from([4, 30, 300]),
    longest=st.integers(8, 40),
)


class Hasty(sqlite3.Connection):
    """Does not wait for the disk after each batch: nobody cuts the power here."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute(sql.replace("synchronous = FULL", "synchronous = OFF"), *values)


@dataclass(eq=False)
class Branch:
    """A scope of the file behind its handles, or a fork; the handles are banks that must all say what the model says.

    `past` is what was live at some moments, to be asked for with `as_of`.
    """

    handles: list[Bank]
    model: Model = field(default_factory=Model)
    past: list[tuple[datetime, Model]] = field(default_factory=list)

    def check(self) -> None:
        for bank in self.handles:
            check(bank, self.model)
            for time, model in self.past:
                assert {e.id: said(e) for e in bank.as_of(time)} == {k: model.said[k][-1] for k in model.live.values()}
        if self.model.batches:
            self.past = [*self.past[-5:], (self.handles[0].operations()[-1].at, self.model)]


class World:
    """One bank file with two scopes, whoever has it open, and the forks."""

    def __init__(self, path: Path, seed: int, mix: Mix) -> None:
        self.path, self.rng, self.mix = path, random.Random(seed), mix
        self.scopes = {scope: Branch([]) for scope in ("home", "work")}
        self.forks: list[Branch] = []
        self.seq = 0  # the last number given out in the file
        self.reopen()

    def live(self, operations: int) -> int:
        """Do random things until this many operations were called for; gives how many they were."""
        calls, done = 0, 0
        while done < operations:
            calls += 1
            done += self.act()
            if calls % 30 == 0:
                self.rng.choice((self.reopen, self.fork))()
            if calls % 60 == 0:
                self.check()
        self.reopen()
        self.check()
        assert self.scopes["home"].handles[0].verify() == []
        return done

    def act(self) -> int:
        """Make one random call somewhere."""
        branch = self.rng.choice([*self.scopes.values(), *self.scopes.values(), *self.forks])
        if branch in self.forks:
            call = draw(self.rng, branch.model, self.mix)
            branch.model = step(branch.handles[0], branch.model, call)
            return call.operations
        model = replace(branch.model, seq=self.seq)
        call = draw(self.rng, model, self.mix)
        branch.model = step(self.rng.choice(branch.handles), model, call)
        self.seq = branch.model.seq
        return call.operations

    def fork(self) -> None:
        """Branch off any branch; the three youngest forks are kept."""
        parent = self.rng.choice([*self.scopes.values(), *self.forks])
        seq = parent.model.seq if parent in self.forks else self.seq
        bank = self.rng.choice(parent.handles).fork()
        self.forks = [*self.forks[-2:], Branch([bank], replace(parent.model, seq=seq), list(parent.past))]

    def reopen(self) -> None:
        """Close every bank and open it anew; a fork does not outlive the bank it was made from."""
        self.forks = []
        for scope, branch in self.scopes.items():
            for bank in branch.handles:
                bank.close()
            branch.handles = [Bank.open(self.path, scope, HashingEmbedder(8)) for _ in range(1 + (scope == "home"))]

    def check(self) -> None:
        for branch in (*self.scopes.values(), *self.forks):
            branch.check()

    def close(self) -> None:
        for branch in self.scopes.values():
            for bank in branch.handles:
                bank.close()


def test_a_hundred_thousand_random_operations_do_what_the_model_does(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Hasty))
    done = 0

    # no shrinking: it would take minutes and a thousand operations would still be hundreds
    @settings(max_examples=EXAMPLES, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
    @given(seed=st.integers(0, 2**32), mix=MIXES)
    def example(seed: int, mix: Mix) -> None:
        nonlocal done
        world = World(tmp_path_factory.mktemp("world") / "bank", seed, mix)
        done += world.live(OPERATIONS // EXAMPLES)
        world.close()

    example()
    assert done >= OPERATIONS


# Size


class Blind(HashingEmbedder):
    """Gives all texts one vector, at no cost."""

    def embed(self, texts: Sequence[str]) -> Floats:
        return np.full((len(texts), self.dimension), self.dimension**-0.5, dtype=np.float32)


def test_many_texts_of_a_megabyte_come_back_exactly(tmp_path: Path) -> None:
    texts = [f"number {number} \U0001f469\u200d\U0001f467 " + "many words " * 2**17 for number in range(12)]
    turns = [StoredTurn(f"t{number}", "Ann", text) for number, text in enumerate(texts)]
    with Bank.open(tmp_path / "bank", embedder=Blind(8)) as bank:
        bank.add_turns(turns)
        bank.apply([Operation.add(text) for text in texts[:6]], done=["t0"])
        for number, text in enumerate(texts[6:], start=1):
            bank.apply([Operation.update(f"e{number}", text)])
        bank.undo()
    with Bank.open(tmp_path / "bank", embedder=Blind(8)) as bank:
        assert [entry.text for entry in bank.entries()] == [*texts[6:-1], texts[5]]
        assert [entry.text for entry in bank.history("e6")] == [texts[5], texts[11], texts[5]]
        assert bank.pending_turns() == turns[1:]
        assert [hit.text for hit in bank.search("number 7", k=1, mode="bm25")] == [texts[7]]
        assert bank.verify() == []


def test_ten_thousand_operations_in_one_batch_are_all_done_or_all_refused(tmp_path: Path) -> None:
    adds = [Operation.add(f"fact {number}") for number in range(10_000)]
    with Bank.open(tmp_path / "bank", embedder=Blind(8)) as bank:
        with pytest.raises(UnknownEntryError):
            bank.apply([*adds, Operation.delete("never")])
        assert bank.operations() == []
        bank.apply(adds)
        odd = range(1, 10_001, 2)
        changes = [
            change for n in odd for change in (Operation.update(f"e{n}", f"new {n}"), Operation.delete(f"e{n + 1}"))
        ]
        bank.apply(changes)
    with Bank.open(tmp_path / "bank", embedder=Blind(8)) as bank:
        assert [entry.text for entry in bank.entries()] == [f"new {n}" for n in odd]
        bank.undo()
        assert [entry.text for entry in bank.entries()] == [operation.text for operation in adds]
        assert {len(bank.history(f"e{n}")) for n in odd} == {3}
        assert bank.verify() == []
