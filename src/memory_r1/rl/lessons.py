"""Lessons of the memory manager: a dialogue with gold operations, replayed over a bank, turn by turn.

What is shown depends on what the bank holds, so the bank is kept as the gold operations would have it. Left out: the
outcome of a decision, which is what episodes are for (manager_episodes.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memory_r1.bank import Bank, Embedder, Entry, Operation, OperationKind
from memory_r1.dialogue import Dialogue, GoldOperation
from memory_r1.memory.extract import Extractor, Fact
from memory_r1.memory.manage import AddOnlyManager, Decision, manager_prompt, manager_reply, related_entries
from memory_r1.rl.types import Demonstration


@dataclass(frozen=True)
class Lessons:
    """Demonstrations in the order of the dialogue.

    found   gold UPDATEs and DELETEs whose entry was among the related ones
    missed  those whose entry was not shown, so that the reply adds the text instead, or leaves the entry alone
    """

    demonstrations: tuple[Demonstration, ...]
    found: int = 0
    missed: int = 0


@dataclass(frozen=True)
class GoldManager:
    """Decides what a dialogue's gold operations say; adds the facts of a turn that has none written down."""

    operations: Mapping[str, tuple[GoldOperation, ...]]
    name: str = "gold"
    turns_at_once: int = 1

    @classmethod
    def of(cls, dialogue: Dialogue) -> GoldManager | None:
        """The manager that knows this dialogue; None where no turn has gold operations."""
        known = {turn.id: turn.operations for turn in dialogue.turns if turn.operations is not None}
        return cls(known) if known else None

    def knows(self, facts: Sequence[Fact]) -> bool:
        """Whether the facts are one turn's only one, about which there are gold operations."""
        return len(facts) == 1 and facts[0].turn_ids in {(turn_id,) for turn_id in self.operations}

    def decide(self, facts: Sequence[Fact], bank: Bank) -> Decision:
        """The gold operations on the entries of their texts; one whose entry is gone adds its text, or is a NOOP."""
        if not self.knows(facts):
            return AddOnlyManager().decide(facts, bank)
        fact, entries = facts[0], {entry.text: entry for entry in bank.entries()}
        gold = self.operations[fact.turn_ids[0]]
        operations = tuple(_operation(one, fact, entries.get(one.old or "")) for one in gold)
        return Decision(operations or (Operation.noop(turn_ids=fact.turn_ids),))


def lessons(dialogue: Dialogue, extractor: Extractor, *, k: int = 5, embedder: Embedder | None = None) -> Lessons:
    """One demonstration for each turn with gold operations that the extractor makes one fact of.

    Args:
        k: related entries shown for each fact.

    Raises:
        PolicyError: the extractor's or the embedder's model failed.
    """
    manager = GoldManager.of(dialogue)
    if manager is None:
        return Lessons(())
    bank = Bank.open(":memory:", scope=dialogue.id, embedder=embedder)
    shown, found, changes = [], 0, 0
    for turn in dialogue.turns:
        facts = extractor.extract([turn])
        decision = manager.decide(facts, bank)
        if manager.knows(facts):
            related = related_entries(bank, facts, k)
            reply = manager_reply(_items(decision.operations, related))
            shown.append(Demonstration(f"{dialogue.id}/{turn.id}", manager_prompt(facts, related), reply))
            targets = {operation.entry_id for operation in decision.operations} - {None}
            changes += len(targets)
            found += len(targets.intersection(entry.id for entry in related))
        bank.apply(decision.operations, decided_by=manager.name)
    return Lessons(tuple(shown), found, changes - found)


def _operation(gold: GoldOperation, fact: Fact, entry: Entry | None) -> Operation:
    if gold.text is None:
        return Operation.delete(entry.id, turn_ids=fact.turn_ids) if entry else Operation.noop(turn_ids=fact.turn_ids)
    if entry is None:
        return Operation.add(gold.text, speaker=fact.speaker, said_at=fact.said_at, turn_ids=fact.turn_ids)
    return Operation.update(entry.id, gold.text, said_at=fact.said_at, turn_ids=fact.turn_ids)


def _items(
    operations: Iterable[Operation], related: Sequence[Entry]
) -> list[tuple[int, OperationKind, int | None, str | None]]:
    """The operations as a reply about fact 1 that sees only the related entries."""
    numbers = {entry.id: number for number, entry in enumerate(related)}
    items: list[tuple[int, OperationKind, int | None, str | None]] = []
    for operation in operations:
        number = numbers.get(operation.entry_id or "")
        blind = operation.entry_id is not None and number is None
        kind = operation.kind if not blind else OperationKind.ADD if operation.text else OperationKind.NOOP
        items.append((1, kind, number, operation.text))
    return items
