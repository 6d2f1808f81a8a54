"""memory-r1 bank: the verbs with which a person edits a bank: add, update, delete, and going back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from memory_r1.cli.flags import ScopeVerb, wall_clock
from memory_r1.errors import InputError

if TYPE_CHECKING:
    from memory_r1.bank import Applied, Operation


@dataclass(frozen=True)
class _Edit(ScopeVerb):
    by: str = "person"
    """who decides it, for the log"""

    def _apply(self, operation: Operation, existing: bool = True) -> int:
        with self.where.open(existing=existing) as bank:
            _print_applied(bank.apply([operation], decided_by=self.by))
        return 0


@dataclass(frozen=True)
class Add(_Edit):
    """Add an entry by hand.

    Example: memory-r1 bank add "Mara has a dog, Buddy." --speaker Mara --said-at 2025-03-01
    """

    text: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    speaker: str | None = None
    """whose fact it is"""
    said_at: str | None = None
    """when it was said, ISO without a zone"""

    def run(self) -> int:
        """Add it and print what that did; a text the speaker's entries say already is a NOOP."""
        from memory_r1.bank import Operation

        said_at = wall_clock(self.said_at) if self.said_at else None
        if said_at is not None and said_at.tzinfo is not None:
            raise InputError(f"--said-at is {self.said_at!r}, expected a wall clock without a zone")
        return self._apply(Operation.add(self.text, speaker=self.speaker, said_at=said_at), existing=False)


@dataclass(frozen=True)
class Update(_Edit):
    """Correct an entry by hand; the version it replaces stays in its history.

    Example: memory-r1 bank update e17 "Mara has two dogs, Buddy and Scout."
    """

    id: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    text: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    version: int | None = None
    """refuse unless this version is live"""

    def run(self) -> int:
        """Update it and print what that did."""
        from memory_r1.bank import Operation

        return self._apply(Operation.update(self.id, self.text, version=self.version))


@dataclass(frozen=True)
class Delete(_Edit):
    """Stop believing an entry; its versions stay in the history, and bank restore brings it back.

    Example: memory-r1 bank delete e17
    """

    id: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    version: int | None = None
    """refuse unless this version is live"""

    def run(self) -> int:
        """Delete it and print what that did."""
        from memory_r1.bank import Operation

        return self._apply(Operation.delete(self.id, version=self.version))


@dataclass(frozen=True)
class Undo(_Edit):
    """Take the last batch back, or the one that holds an operation; nothing is lost, an undo can be undone.

    Example: memory-r1 bank undo
    Example: memory-r1 bank undo 17 --bank memory.db --scope alice
    """

    operation: Annotated[int | None, tyro.conf.Positional] = None
    """number of any operation of the batch, see bank log; default: the last batch not undone yet"""

    def run(self) -> int:
        """Undo and print what that did."""
        with self.where.open(existing=True) as bank:
            _print_applied(bank.undo(self.operation, decided_by=self.by))
        return 0


@dataclass(frozen=True)
class Restore(_Edit):
    """Make an older version of an entry the live one again; a deleted entry becomes live again.

    Example: memory-r1 bank restore e17
    Example: memory-r1 bank restore e17 --version 2
    """

    id: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    version: int | None = None
    """see bank history; default: the version before the live one, or the last one of a deleted entry"""

    def run(self) -> int:
        """Restore and print what that did."""
        with self.where.open(existing=True) as bank:
            _print_applied([bank.restore(self.id, self.version, decided_by=self.by)])
        return 0


def _print_applied(applied: list[Applied]) -> None:
    for one in applied:
        entry = f" {one.entry.id} version {one.entry.version}: {one.entry.text}" if one.entry else ""
        print(f"{one.seq} {one.kind}{entry}")
