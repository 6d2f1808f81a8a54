"""Lessons of the memory manager: a dialogue with gold operations, replayed over a bank, turn by turn.

What is shown depends on what the bank holds, so the bank is kept as the gold operations would have it. Left out: the
outcome of a decision, which is what episodes are for (manager_episodes.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from memory_r1.bank import Bank, Embedder, Entry, Operation, OperationKind
from memory_r1.dialogue import Dialogue, GoldOperation
from memory_r1.errors import InputError
from memory_r1.memory.extract import Extractor, Fact
from memory_r1.memory.manage import (
    AddOnlyManager,
    Decision,
    joined,
    manager_prompt,
    manager_reply,
    related_entries,
)
from memory_r1.rl.types import Demonstration


@dataclass(frozen=True)
class LessonSettings:
    """What a manager's warm start makes of gold operations.

    own_words  where there is one operation about a turn, it keeps the turn's words in place of the gold text: a small
               model need not write, and cannot make things up
    noops      at most so many lessons that change nothing for each that does: dialogues are mostly small talk, and a
               policy that imitates that share learns to forget; 0 leaves them all out
    """

    own_words: bool = True
    noops: float = 0.5

    def __post_init__(self) -> None:
        if self.noops < 0:
            raise InputError(f"lessons.noops is {self.noops}, expected 0 or more")


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
    """Decides what a dialogue's gold operations say; adds the facts of a turn that has none written down.

    own_words  an ADD or UPDATE that is alone about a turn keeps the fact's words
    """

    operations: Mapping[str, tuple[GoldOperation, ...]]
    own_words: bool = False
    name: str = "gold"
    turns_at_once: int = 1

    @classmethod
    def of(cls, dialogue: Dialogue, *, own_words: bool = False) -> GoldManager | None:
        """The manager that knows this dialogue; None where no turn has gold operations."""
        known = {turn.id: turn.operations for turn in dialogue.turns if turn.operations is not None}
        return cls(known, own_words) if known else None

    def knows(self, facts: Sequence[Fact]) -> bool:
        """Whether the facts are one turn's only one, about which there are gold operations."""
        return len(facts) == 1 and facts[0].turn_ids in {(turn_id,) for turn_id in self.operations}

    def decide(self, facts: Sequence[Fact], bank: Bank) -> Decision:
        """The gold operations on the entries of their texts; one whose entry is gone adds its text, or is a NOOP."""
        if not self.knows(facts):
            return AddOnlyManager().decide(facts, bank)
        fact, entries = facts[0], self._by_gold_text(bank)
        turn_id = fact.turn_ids[0]
        kept = self._keeps_words(turn_id)
        gold = self.operations[turn_id]
        operations = tuple(_operation(one, fact, entries.get(one.old or ""), kept) for one in gold)
        return Decision(operations or (Operation.noop(turn_ids=fact.turn_ids),))

    def _keeps_words(self, turn_id: str) -> bool:
        """Whether the operation about a turn keeps its words; of several none could be told from the others by them."""
        return self.own_words and len(self.operations[turn_id]) == 1

    def _by_gold_text(self, bank: Bank) -> dict[str, Entry]:
        """The entries by the gold texts they stand for: their own, or that of the last turn whose words they keep."""
        entries = bank.entries()
        kept = {turn_id: gold[0].text for turn_id, gold in self.operations.items() if self._keeps_words(turn_id)}
        spoken = {kept.get(entry.turn_ids[-1]): entry for entry in entries if entry.turn_ids}
        return {**{text: entry for text, entry in spoken.items() if text}, **{entry.text: entry for entry in entries}}


def lessons(
    dialogue: Dialogue,
    extractor: Extractor,
    *,
    k: int = 5,
    own_words: bool = False,
    embedder: Embedder | None = None,
) -> Lessons:
    """One demonstration for each turn with gold operations that the extractor makes one fact of.

    Args:
        k: related entries shown for each fact.
        own_words: see LessonSettings.

    Raises:
        PolicyError: the extractor's or the embedder's model failed.
    """
    manager = GoldManager.of(dialogue, own_words=own_words)
    if manager is None:
        return Lessons(())
    bank = Bank.open(":memory:", scope=dialogue.id, embedder=embedder)
    shown, found, changes = [], 0, 0
    for turn in dialogue.turns:
        facts = extractor.extract([turn])
        decision = manager.decide(facts, bank)
        if manager.knows(facts):
            related = related_entries(bank, facts, k)
            reply = manager_reply(_items(decision.operations, facts[0], related, bank))
            shown.append(Demonstration(f"{dialogue.id}/{turn.id}", manager_prompt(facts, related), reply))
            targets = {operation.entry_id for operation in decision.operations} - {None}
            changes += len(targets)
            found += len(targets.intersection(entry.id for entry in related))
        bank.apply(decision.operations, decided_by=manager.name)
    return Lessons(tuple(shown), found, changes - found)


def fewer_noops(shown: Sequence[Demonstration], noops: float, seed: int) -> list[Demonstration]:
    """The demonstrations in their order, of those that change nothing at most `noops` times as many as of others."""
    idle = [place for place, one in enumerate(shown) if one.reply == _NOOP]
    most = round(noops * (len(shown) - len(idle)))
    left_out = set(random.Random(seed).sample(idle, max(0, len(idle) - most)))
    return [one for place, one in enumerate(shown) if place not in left_out]


_NOOP = manager_reply([(1, OperationKind.NOOP, None, None)])


def _operation(gold: GoldOperation, fact: Fact, entry: Entry | None, own_words: bool) -> Operation:
    if gold.text is None:
        return Operation.delete(entry.id, turn_ids=fact.turn_ids) if entry else Operation.noop(turn_ids=fact.turn_ids)
    if entry is None:
        text = fact.text if own_words else gold.text
        return Operation.add(text, speaker=fact.speaker, said_at=fact.said_at, turn_ids=fact.turn_ids)
    if own_words:
        return joined(entry, fact)
    return Operation.update(entry.id, gold.text, said_at=fact.said_at, turn_ids=fact.turn_ids)


def _items(
    operations: Iterable[Operation], fact: Fact, related: Sequence[Entry], bank: Bank
) -> list[tuple[int, OperationKind, int | None, str | None]]:
    """The operations as a reply about fact 1 that sees only the related entries; own words are a null text."""
    numbers = {entry.id: number for number, entry in enumerate(related)}
    items: list[tuple[int, OperationKind, int | None, str | None]] = []
    for operation in operations:
        number = numbers.get(operation.entry_id or "")
        blind = operation.entry_id is not None and number is None
        kind = operation.kind if not blind else OperationKind.ADD if operation.text else OperationKind.NOOP
        own = joined(bank.get(operation.entry_id), fact).text if operation.entry_id else fact.text
        items.append((1, kind, number, None if operation.text == own else operation.text))
    return items
