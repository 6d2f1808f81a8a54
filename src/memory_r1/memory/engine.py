"""Memory: the two agents around one bank. `remember` a dialogue, `ask` a question.

A turn is stored before any model sees it and is done in the transaction that applies its operations, so that a crash
loses nothing: the turns still pending are taken up by the next `remember`. Left out: how agents decide (manage.py,
answer.py) and how the bank stores (bank/).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby

from memory_r1.bank import Applied, Bank, OperationKind, StoredTurn
from memory_r1.dialogue import Dialogue, Turn
from memory_r1.errors import (
    ConflictError,
    InputError,
    OperationError,
    PromptError,
    ReplyError,
    UnknownEntryError,
)
from memory_r1.memory.answer import Answer, AnswerAgent, AnswerSettings, Query
from memory_r1.memory.card import default_settings
from memory_r1.memory.extract import Extractor, TurnExtractor
from memory_r1.memory.manage import AddOnlyManager, MemoryManager
from memory_r1.policy.base import Policy

Progress = Callable[[int, int], None]  # (turns settled, turns in all)

_ATTEMPTS = 5  # decisions on one batch before a bank that keeps changing is given up on


@dataclass(frozen=True)
class Failure:
    """Turns that could not be remembered, and why; they stay pending and are taken up by the next `remember`."""

    turn_ids: tuple[str, ...]
    reason: str


@dataclass
class RememberReport:
    """What became of some turns: three outcomes, never mixed.

    operations  applied ADD, UPDATE and DELETE
    noops       facts the bank already knew or that need nothing
    failures    turns that are still pending
    turns       turns settled
    """

    operations: list[Applied] = field(default_factory=list)
    noops: list[Applied] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    turns: int = 0

    def counts(self) -> dict[str, int]:
        """How many of each operation, NOOPs and failed turns included."""
        kinds = Counter(applied.kind for applied in [*self.operations, *self.noops])
        failed = sum(len(failure.turn_ids) for failure in self.failures)
        return {**{kind.value: kinds[kind] for kind in OperationKind}, "failed_turns": failed, "turns": self.turns}


class Memory:
    """A bank with its agents.

    Args:
        bank: where entries live.
        policy: the language model of the answer agent; not needed to remember with the default manager.
        manager: decides what facts do to the bank; adds them all by default.
        extractor: makes facts of turns; each turn is a fact by default.
        settings: of retrieval and answering; by default what the policy's adapter was trained with, what the embedded
            model can read, else the paper's (30 entries of each speaker).
    """

    def __init__(
        self,
        bank: Bank,
        policy: Policy | None = None,
        *,
        manager: MemoryManager | None = None,
        extractor: Extractor | None = None,
        settings: AnswerSettings | None = None,
    ) -> None:
        self.bank = bank
        self.manager: MemoryManager = manager or AddOnlyManager()
        self.extractor: Extractor = extractor or TurnExtractor()
        self._answerer = AnswerAgent(policy, settings or default_settings(policy)) if policy else None

    def remember(self, dialogue: Dialogue, progress: Progress | None = None) -> RememberReport:
        """Take in a dialogue; turns remembered before are not taken twice, pending ones are taken up again.

        Raises:
            BankError: the bank refused the turns; nothing was stored.
            PolicyError: the model is down; what was settled stays, the other turns stay pending.
        """
        self.store([dialogue])
        return self.take_up_pending(progress)

    def store(self, dialogues: Iterable[Dialogue]) -> None:
        """Keep the turns of dialogues as pending, in one transaction, without settling them; raises BankError."""
        self.bank.add_turns(
            StoredTurn(turn.id, turn.speaker, turn.text, turn.at, dialogue.id)
            for dialogue in dialogues
            for turn in dialogue.turns
        )

    def take_up_pending(self, progress: Progress | None = None) -> RememberReport:
        """Settle every pending turn of the scope; raises as `remember` does."""
        report = RememberReport()
        pending = self.bank.pending_turns()
        for turns in chunks(pending, min(self.extractor.turns_at_once, self.manager.turns_at_once)):
            self._settle(turns, report)
            if progress:
                progress(report.turns + sum(len(f.turn_ids) for f in report.failures), len(pending))
        return report

    def ask(self, question: str, *, asked_at: datetime | None = None) -> Answer:
        """Answer from the bank; an empty bank gives an empty answer.

        Args:
            asked_at: the time from which the question's "last week" counts, if that matters.

        Raises:
            InputError: the question is empty, or this memory was made without a policy.
            PolicyError: the model failed.
        """
        if not question.strip():
            raise InputError("the question is empty, expected some text")
        return self.ask_all([Query(question, asked_at)])[0]

    def ask_all(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer several questions, in one batch where the policy can; raises as `ask` does."""
        if self._answerer is None:
            raise InputError("this memory has no policy to answer with: make it with Memory(bank, policy=...)")
        return self._answerer.answer([(self.bank, query) for query in queries])

    def _settle(self, turns: Sequence[Turn], report: RememberReport) -> None:
        """Read, decide, write; when another writer was faster, look again at what is left to decide."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                decision = self.manager.decide(self.extractor.extract(turns), self.bank)
                done = [turn.id for turn in turns]
                applied = self.bank.apply(
                    decision.operations, decided_by=self.manager.name, done=done, read=decision.read
                )
            except ConflictError as error:
                turns = self._still_pending(turns)
                if not turns:
                    return  # the other writer settled them all
                if attempt == _ATTEMPTS:
                    report.failures.append(Failure(tuple(turn.id for turn in turns), str(error)))
            except (ReplyError, PromptError, OperationError, UnknownEntryError) as error:
                report.failures.append(Failure(tuple(turn.id for turn in turns), str(error)))
                return
            else:
                report.turns += len(turns)
                for one in applied:
                    (report.noops if one.kind is OperationKind.NOOP else report.operations).append(one)
                return

    def _still_pending(self, turns: Sequence[Turn]) -> list[Turn]:
        pending = {turn.id for turn in self.bank.pending_turns()}
        return [turn for turn in turns if turn.id in pending]


def chunks(turns: Sequence[StoredTurn], size: int) -> Iterator[list[Turn]]:
    """Stored turns, at most `size` at a time, never across a session's end."""
    for _, session in groupby(turns, key=lambda turn: (turn.dialogue_id, turn.at)):
        members = [Turn(turn.id, turn.speaker, turn.text, turn.at) for turn in session]
        for start in range(0, len(members), size):
            yield members[start : start + size]
