"""Banks that a memory manager makes of whole dialogues: all dialogues abreast, a batch of decisions per round.

The manager sees of each dialogue what it would see alone: the bank as its turns so far have left it. A decision that
does not parse, or that the bank refuses, leaves its turns pending, which is how they are counted. Left out: the
ADD-only manager, which asks nobody (run.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from memory_r1.bank import Bank, Embedder, OperationKind, StoredTurn
from memory_r1.bench.run import Progress
from memory_r1.dialogue import Dialogue, Turn
from memory_r1.errors import BankError, InputError, ReplyError
from memory_r1.memory import Extractor, Fact
from memory_r1.memory.engine import chunks
from memory_r1.memory.manage import Decision, LLMManager


def manage_all(
    dialogues: Sequence[Dialogue],
    extractor: Callable[[Dialogue], Extractor],
    embedder: Embedder | None = None,
    progress: Progress | None = None,
    *,
    manager: LLMManager,
    file: Path | None = None,
) -> dict[str, Bank]:
    """The bank of each dialogue as the manager makes it, by dialogue id. Progress in turns.

    Cost: one completion per turn; a batch holds one turn of each dialogue that is not over.

    Args:
        file: keep the banks there, a scope each; what such a file holds already is not made again.

    Raises:
        InputError: the file was made by another manager.
        PolicyError: a model failed; with `file`, the next call goes on from there.
    """
    banks = {dialogue.id: Bank.open(file or ":memory:", scope=dialogue.id, embedder=embedder) for dialogue in dialogues}
    ahead = {}
    for dialogue in dialogues:
        bank = banks[dialogue.id]
        _refuse_others(bank, manager.name)
        bank.add_turns(StoredTurn(turn.id, turn.speaker, turn.text, turn.at, dialogue.id) for turn in dialogue.turns)
        ahead[dialogue.id] = _heard(bank, extractor(dialogue), manager.turns_at_once)
    total, done = sum(bank.stats().pending_turns for bank in banks.values()), 0
    while abreast := {name: said for name, saids in ahead.items() if (said := next(saids, None))}:
        decided = manager.decide_each([(facts, banks[name]) for name, (_, facts) in abreast.items()])
        for (name, (turns, _)), decision in zip(abreast.items(), decided, strict=True):
            _apply(decision, banks[name], manager.name, turns)
            done += len(turns)
        if progress:
            progress(done, total)
    return banks


def bank_counts(banks: Iterable[Bank]) -> Mapping[str, int]:
    """Over all banks: how many of each operation, live entries and their words, turns that are not remembered."""
    counts: Counter[str] = Counter({kind.value: 0 for kind in OperationKind})
    for bank in banks:
        stats = bank.stats()
        counts.update({kind.value: count for kind, count in stats.operations.items()})
        counts.update(entries=stats.live, words=sum(len(entry.text.split()) for entry in bank.entries()))
        counts.update(failed_turns=stats.pending_turns)
    return counts


def _heard(bank: Bank, extractor: Extractor, turns_at_once: int) -> Iterator[tuple[Sequence[Turn], Sequence[Fact]]]:
    """The pending turns, as many at a time as both agents take, with their facts."""
    for turns in chunks(bank.pending_turns(), min(extractor.turns_at_once, turns_at_once)):
        yield turns, extractor.extract(turns)


def _apply(decision: Decision | ReplyError, bank: Bank, decided_by: str, turns: Sequence[Turn]) -> None:
    if isinstance(decision, ReplyError):
        return
    try:
        bank.apply(decision.operations, decided_by=decided_by, read=decision.read, done=[turn.id for turn in turns])
    except BankError:
        return  # what it decided cannot be done: the turns stay pending, and are counted so


def _refuse_others(bank: Bank, manager: str) -> None:
    others = {entry.decided_by for entry in bank.entries()} - {manager}
    if others:
        raise InputError(f"the bank of {bank.scope!r} was made by {min(others)}, got {manager}: name another file")
