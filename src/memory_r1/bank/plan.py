"""What an operation comes to, given what the bank says: pure decisions, no writing.

The rules, in one place:
- ADD of a text that the same speaker's live entry already says: NOOP.
- UPDATE to the text the entry already has: NOOP. UPDATE to the text of another live entry of the speaker: the entry is
  closed (DELETE), since the other one already says what is believed now.
- UPDATE keeps id and speaker, joins the turn ids, and keeps said_at unless it brings its own.
- UPDATE or DELETE decided on a version that is no longer live: ConflictError. Of an id that was never in this scope,
  or of a deleted entry when no version was named: UnknownEntryError.
- Operations of one batch are taken in order, each on what those before it left.
- A decision made on entries that are no longer live in the version read: ConflictError, whatever it decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from memory_r1.bank.log import Log
from memory_r1.bank.operation import Applied, Entry, LoggedOperation, Operation, OperationKind
from memory_r1.errors import ConflictError, UnknownEntryError


def plan(log: Log, operations: Sequence[Operation], stamp: LoggedOperation) -> list[tuple[LoggedOperation, Applied]]:
    """Settle a batch on what the log says, which stays as it is.

    Args:
        log: what the bank says now.
        operations: checked ones, in order.
        stamp: the first line to write, as far as all lines share it: its number, time and decider.

    Raises:
        ConflictError, UnknownEntryError: see the head of this file; the batch is refused as a whole.
    """
    scratch = log.branch(source=lambda after: ())
    planned = []
    for number, operation in enumerate(operations, start=stamp.seq):
        line = _settle(scratch, operation, replace(stamp, seq=number, turn_ids=operation.turn_ids))
        scratch.append(line)
        planned.append((line, Applied(operation, line.kind, _affected(scratch, line), line.seq)))
    return planned


def check_read(log: Log, read: Iterable[Entry]) -> None:
    """Refuse a decision when an entry that it was made on has changed since; raises ConflictError."""
    for entry in read:
        live = log.live(entry.id)
        if live is None or live.version != entry.version:
            raise ConflictError(
                f"the decision was made on {entry.id} version {entry.version}, but {_now(live)}: "
                "read it again and decide again"
            )


def _settle(log: Log, operation: Operation, line: LoggedOperation) -> LoggedOperation:
    if operation.kind is OperationKind.ADD:
        return _settle_add(log, operation, line)
    if operation.kind is OperationKind.UPDATE:
        return _settle_update(log, operation, line)
    if operation.kind is OperationKind.DELETE:
        entry = _target(log, operation)
        return replace(line, kind=OperationKind.DELETE, entry_id=entry.id, version=entry.version)
    return line


def _settle_add(log: Log, operation: Operation, line: LoggedOperation) -> LoggedOperation:
    assert operation.text is not None
    asked = replace(line, text=operation.text, speaker=operation.speaker, said_at=operation.said_at)
    same = log.live_with(operation.speaker, operation.text)
    if same is not None:
        return replace(asked, entry_id=same.id)
    return replace(asked, kind=OperationKind.ADD, entry_id=f"e{line.seq}", version=1)


def _settle_update(log: Log, operation: Operation, line: LoggedOperation) -> LoggedOperation:
    assert operation.text is not None
    entry = _target(log, operation)
    same = log.live_with(entry.speaker, operation.text)
    if same is not None and same.id != entry.id:
        return replace(line, kind=OperationKind.DELETE, entry_id=entry.id, version=entry.version)
    said_at = operation.said_at or entry.said_at
    asked = replace(line, entry_id=entry.id, text=operation.text, speaker=entry.speaker, said_at=said_at)
    if same is not None:
        return asked
    turn_ids = tuple(dict.fromkeys(entry.turn_ids + operation.turn_ids))
    return replace(asked, kind=OperationKind.UPDATE, version=entry.version + 1, turn_ids=turn_ids)


def _target(log: Log, operation: Operation) -> Entry:
    """The live version an UPDATE or DELETE is about."""
    assert operation.entry_id is not None
    entry = log.live(operation.entry_id)
    if entry is not None and operation.version in (None, entry.version):
        return entry
    if operation.version is not None and log.versions(operation.entry_id):
        raise ConflictError(
            f"{operation.kind} of {operation.entry_id} was decided on version {operation.version}, "
            f"but {_now(entry)}: read it again and decide again"
        )
    raise UnknownEntryError(
        f"{operation.kind} names {operation.entry_id!r}, expected the id of a live entry of this scope: see entries()"
    )


def _now(live: Entry | None) -> str:
    return f"version {live.version} is live" if live else "it is deleted"


def _affected(log: Log, line: LoggedOperation) -> Entry | None:
    return log.last_version(line.entry_id) if line.entry_id else None
