"""memory-r1 ask: answer a question from a bank."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from memory_r1.cli.flags import AnswerFlags, BankFlags, ModelFlags, wall_clock
from memory_r1.cli.show import print_json
from memory_r1.errors import InputError


@dataclass(frozen=True)
class Ask:
    """Answer a question from what was remembered.

    Example: memory-r1 ask "Where does Ines live now?" --bank memory.db --adapter runs/demo/adapter
    """

    question: Annotated[str, tyro.conf.Positional]
    where: Annotated[BankFlags, tyro.conf.arg(name="")] = field(default_factory=BankFlags)
    model: Annotated[ModelFlags, tyro.conf.arg(name="")] = field(default_factory=ModelFlags)
    answer: Annotated[AnswerFlags, tyro.conf.arg(name="")] = field(default_factory=AnswerFlags)
    at: str | None = None
    """when it is asked, as ISO, where that matters: "last week" counts from it"""
    json: bool = False
    """print answer, distilled and retrieved entries as JSON"""

    def run(self) -> int:
        """0; raises InputError on a bank without entries."""
        from memory_r1.memory import Memory
        from memory_r1.memory.dates import day

        asked_at = wall_clock(self.at) if self.at else None
        with self.where.open(existing=True) as bank:
            if not bank.stats().live:
                raise InputError(f"{self.where.bank}: scope {self.where.scope!r} has no entries: remember a file first")
            policy = self.model.policy("answer")
            memory = Memory(bank, policy, settings=self.answer.settings(policy))
            answer = memory.ask(self.question, asked_at=asked_at)
        if self.json:
            ids = {"distilled": [e.id for e in answer.distilled], "retrieved": [e.id for e in answer.retrieved]}
            print_json({"answer": answer.text, "well_formed": answer.well_formed, **ids})
            return 0
        print(answer.text)
        for entry in answer.distilled:
            said = f", {day(entry.said_at)}" if entry.said_at else ""
            print(f"  from {entry.id} ({entry.speaker or 'nobody named'}{said}): {entry.text}")
        return 0
