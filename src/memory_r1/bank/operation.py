"""The nouns of the bank: what it holds, what may be done to it, and what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from memory_r1.errors import OperationError


class OperationKind(StrEnum):
    """The memory manager's four operations (Memory-R1, section 3)."""

    ADD = "ADD"
    UPDATE = "UPDATE"
    DELETE = "DELETE"
    NOOP = "NOOP"


@dataclass(frozen=True)
class Entry:
    """One version of one remembered thing.

    id           stable over updates, unique in the bank file ("e17")
    text         what is remembered
    version      1 for the ADD, plus one for every UPDATE
    speaker      whose fact it is, or None
    said_at      when it was said: the wall clock of the session, without a zone
    valid_from   when the bank began to believe this version, UTC
    valid_to     when the bank ceased to, UTC; None while the version is live
    turn_ids     the turns it was learnt from
    decided_by   the policy, with its version, or the person who decided it
    """

    id: str
    text: str
    version: int = 1
    speaker: str | None = None
    said_at: datetime | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    turn_ids: tuple[str, ...] = ()
    decided_by: str = "person"


@dataclass(frozen=True)
class StoredTurn:
    """A turn as the bank keeps it: `id` is unique in the scope, `at` is the session's wall clock, zone-free."""

    id: str
    speaker: str
    text: str
    at: datetime | None = None
    dialogue_id: str | None = None


@dataclass(frozen=True)
class Operation:
    """One decision about the bank; made by `add`, `update`, `delete` or `noop`.

    `version` of an UPDATE or DELETE is the entry version the decision was made on; the bank refuses the operation as
    a conflict when another version is live. None means "whatever is live", for people at the command line.
    """

    kind: OperationKind
    text: str | None = None
    entry_id: str | None = None
    speaker: str | None = None
    said_at: datetime | None = None
    turn_ids: tuple[str, ...] = ()
    version: int | None = None

    @classmethod
    def add(
        cls,
        text: str,
        *,
        speaker: str | None = None,
        said_at: datetime | None = None,
        turn_ids: Sequence[str] = (),
    ) -> Operation:
        """Remember a new text. An equal live text of the same speaker makes this a NOOP when applied."""
        return cls(OperationKind.ADD, text=storable(text), speaker=speaker, said_at=said_at, turn_ids=tuple(turn_ids))

    @classmethod
    def update(
        cls,
        entry_id: str,
        text: str,
        *,
        said_at: datetime | None = None,
        turn_ids: Sequence[str] = (),
        version: int | None = None,
    ) -> Operation:
        """Replace an entry's text: same id and speaker, a new version; its turn ids are joined to the old ones."""
        return cls(
            OperationKind.UPDATE,
            text=storable(text),
            entry_id=entry_id,
            said_at=said_at,
            turn_ids=tuple(turn_ids),
            version=version,
        )

    @classmethod
    def delete(cls, entry_id: str, *, turn_ids: Sequence[str] = (), version: int | None = None) -> Operation:
        """Stop believing an entry; its versions stay in the history."""
        return cls(OperationKind.DELETE, entry_id=entry_id, turn_ids=tuple(turn_ids), version=version)

    @classmethod
    def noop(cls, *, turn_ids: Sequence[str] = ()) -> Operation:
        """Decide that nothing is to be done; logged, so that it can be told from a failure."""
        return cls(OperationKind.NOOP, turn_ids=tuple(turn_ids))


@dataclass(frozen=True)
class LoggedOperation:
    """One line of the operations log: what was done, complete enough to rebuild the entries from the log alone.

    seq          its number, ascending and unique in the bank file
    kind         what was really done; an ADD that changed nothing is logged as NOOP, and one of a known id restores
                 that deleted entry
    at           when the bank did it, UTC; never earlier than the line before
    decided_by   the policy, with its version, or the person who decided it
    entry_id     the entry opened, replaced or closed; of a NOOP, the entry that made it one, if any
    version      the entry version that resulted (ADD, UPDATE) or was closed (DELETE)
    text, speaker, said_at   of the version that resulted; of a NOOP, what was asked for
    turn_ids     ADD, UPDATE: all the turns the entry was learnt from; else those of the operation
    batch        the number of the first line of its batch: what was applied together
    undoes       the batch that this line undoes, if it is part of an undo
    """

    seq: int
    kind: OperationKind
    at: datetime
    decided_by: str
    entry_id: str | None = None
    version: int | None = None
    text: str | None = None
    speaker: str | None = None
    said_at: datetime | None = None
    turn_ids: tuple[str, ...] = ()
    batch: int = 0
    undoes: int | None = None

    def entry(self, valid_to: datetime | None = None) -> Entry:
        """The entry version that this ADD or UPDATE opened."""
        assert self.entry_id is not None
        assert self.version is not None
        assert self.text is not None
        return Entry(
            id=self.entry_id,
            text=self.text,
            version=self.version,
            speaker=self.speaker,
            said_at=self.said_at,
            valid_from=self.at,
            valid_to=valid_to,
            turn_ids=self.turn_ids,
            decided_by=self.decided_by,
        )


@dataclass(frozen=True)
class Applied:
    """What became of one operation.

    kind    what really happened: differs from `operation.kind` where the bank already said the same
    entry   the version that resulted (ADD, UPDATE), was closed (DELETE) or made it a NOOP; None for a plain NOOP
    seq     its number in the operations log
    """

    operation: Operation
    kind: OperationKind
    entry: Entry | None
    seq: int


@dataclass(frozen=True)
class BankStats:
    """Counts of one scope; `bytes` is the size of the whole file, 0 for a bank that lives in memory."""

    live: int
    versions: int
    operations: Mapping[OperationKind, int]
    turns: int
    pending_turns: int
    bytes: int


def storable(text: str) -> str:
    """The text itself; raises OperationError if it is empty or not valid Unicode."""
    if not text.strip():
        raise OperationError(
            f"an operation has the text {text!r}, expected one that is not empty: leave it out or fill it"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise OperationError(
            f"an operation's text has a lone surrogate at character {error.start}, expected valid Unicode: decode it"
        ) from error
    return text


def iso(moment: datetime) -> str:
    """A UTC time as the bank writes it: always of one length, so that texts sort as times do."""
    return moment.isoformat(timespec="microseconds")
