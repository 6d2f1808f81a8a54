"""memory-r1 remember: take a file of dialogues into a bank."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from memory_r1.cli.flags import BankFlags, ModelFlags
from memory_r1.cli.show import print_json, progress
from memory_r1.errors import InputError

if TYPE_CHECKING:
    from memory_r1.bank import Bank
    from memory_r1.memory import Memory, RememberReport
    from memory_r1.policy import Policy


@dataclass(frozen=True)
class Remember:
    """Remember the dialogues of a JSONL file.

    Turns remembered before are not taken twice; turns left pending by a failure are taken up again.

    Example: memory-r1 remember dialogues.jsonl --bank memory.db --scope alice
    """

    file: Annotated[Path, tyro.conf.Positional]
    """JSONL of turns, see docs/own-data.md"""
    where: Annotated[BankFlags, tyro.conf.arg(name="")] = field(default_factory=BankFlags)
    model: Annotated[ModelFlags, tyro.conf.arg(name="")] = field(default_factory=ModelFlags)
    dialogue: str | None = None
    """only the dialogue of this id"""
    manager: Literal["add-only", "llm"] = "add-only"
    """add-only adds every fact; llm asks the model to ADD, UPDATE, DELETE or leave it (needs a capable model)"""
    extract: Literal["turns", "llm"] = "turns"
    """turns: each turn is a fact; llm: the model writes the facts (needs a capable model)"""
    json: bool = False
    """print the report as JSON"""

    def run(self) -> int:
        """0 when every turn was settled, 1 when some failed and stay pending."""
        from memory_r1.dialogue import load_dialogues

        if self.model != ModelFlags() and "llm" not in (self.manager, self.extract):
            raise InputError("a model is named, but neither --manager llm nor --extract llm asks it anything")
        file = load_dialogues(self.file)
        dialogues = file.dialogues if self.dialogue is None else (file.dialogue(self.dialogue),)
        managing, extracting = self._policies()  # refused before a bank is made
        with self.where.open() as bank:
            memory = self._memory(bank, managing, extracting)
            memory.store(dialogues)
            with progress("remembering") as step:
                report = memory.take_up_pending(step)
        self._print(report)
        return 1 if report.failures else 0

    def _policies(self) -> tuple[Policy | None, Policy | None]:
        """The memory manager's and the extractor's, which is not trained: one where the manager has no adapter."""
        managing = self.model.policy("manager") if self.manager == "llm" else None
        if self.extract != "llm":
            return managing, None
        shared = managing is not None and self.model.adapter_of("manager") is None
        return managing, managing if shared else replace(self.model, adapter=None).policy()

    def _memory(self, bank: Bank, managing: Policy | None, extracting: Policy | None) -> Memory:
        from memory_r1.memory import LLMExtractor, Memory
        from memory_r1.memory.card import manager_of

        return Memory(
            bank,
            manager=manager_of(managing) if managing else None,
            extractor=LLMExtractor(extracting) if extracting else None,
        )

    def _print(self, report: RememberReport) -> None:
        if self.json:
            failures = [{"turns": failure.turn_ids, "reason": failure.reason} for failure in report.failures]
            print_json({**report.counts(), "failures": failures})
            return
        print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts().items()))
        for failure in report.failures:
            print(f"still pending: {', '.join(failure.turn_ids)}: {failure.reason}")
