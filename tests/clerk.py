"""A memory manager without a model, whose decisions show in the end whether every turn was settled once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from memory_r1.bank import Bank, Operation
from memory_r1.memory import Decision, Fact, Memory, TurnExtractor


@dataclass(frozen=True)
class Clerk:
    """Does what the turns say: "note X", "forget X", or "count", which is decided on the count that it read."""

    point: Callable[[str], None] = lambda name: None
    name: str = "clerk@1"
    turns_at_once: int = 64

    def decide(self, facts: Sequence[Fact], bank: Bank) -> Decision:
        self.point("before deciding")
        entries = {entry.text.split(":")[0]: entry for entry in bank.entries()}
        operations = []
        for fact in facts:
            verb, _, what = fact.text.partition(" ")
            if verb == "note":
                operations.append(Operation.add(what, speaker=fact.speaker, turn_ids=fact.turn_ids))
                continue
            entry = entries["count" if verb == "count" else what]
            if verb == "forget":
                operations.append(Operation.delete(entry.id, turn_ids=fact.turn_ids, version=entry.version))
            else:
                text = f"count: {int(entry.text.removeprefix('count: ')) + 1}"
                operations.append(Operation.update(entry.id, text, turn_ids=fact.turn_ids, version=entry.version))
        self.point("after deciding")
        return Decision(tuple(operations))


def clerks_memory(bank: Bank, *, turns_at_once: int, point: Callable[[str], None] = lambda name: None) -> Memory:
    """A memory that a clerk manages; turns that are settled together must name different entries."""
    return Memory(bank, manager=Clerk(point), extractor=TurnExtractor(turns_at_once=turns_at_once))
