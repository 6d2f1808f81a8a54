"""Going back: an older version of an entry restored, a batch undone. Pure decisions, no writing, nothing taken away.

What is restored becomes a new version with the text, speaker, date and source turns of the old one; what was deleted
becomes live again under its old id (an ADD line of a known id). Both are refused as a conflict where somebody changed
the entry since, or another live entry says the same by now. The turns that a batch settled stay settled: asked again,
the same manager would decide the same again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from memory_r1.bank.lines import Outline
from memory_r1.bank.log import Log
from memory_r1.bank.operation import Applied, Entry, LoggedOperation, Operation, OperationKind
from memory_r1.errors import ConflictError, OperationError, UnknownEntryError


@dataclass(frozen=True)
class Restored:
    """A line to write, what became of it, and the version whose text, and so whose vector, it brings back."""

    line: LoggedOperation
    applied: Applied
    source: Entry | None = None


def plan_restore(log: Log, entry_id: str, version: int | None, stamp: LoggedOperation) -> Restored:
    """Make a version of an entry the live one again.

    Args:
        log: what the bank says now; stays as it is.
        version: None is the version before the live one, or the last one of a deleted entry.
        stamp: the line to write, as far as it is known: number, time, decider, batch.

    Raises:
        UnknownEntryError: no such entry or version. ConflictError: another live entry says the same.
    """
    versions = log.versions(entry_id)
    if not versions:
        raise UnknownEntryError(f"{entry_id!r} was never in this scope, expected an id that the operations log names")
    live = log.live(entry_id)
    wanted = version if version is not None else versions[-1].version - (1 if live else 0)
    source = next((entry for entry in versions if entry.version == wanted), None)
    if source is None:
        raise UnknownEntryError(f"{entry_id} has no version {wanted}, expected one of 1 to {versions[-1].version}")
    if live is not None and _same(live, source):
        operation = Operation.noop()
        line = replace(stamp, entry_id=entry_id)
        return Restored(line, Applied(operation, OperationKind.NOOP, live, line.seq))
    return _bring_back(log.branch(source=lambda after: ()), source, stamp)


def plan_undo(log: Log, operation: int | None, stamp: LoggedOperation) -> list[Restored]:
    """Take the changes of one batch back, all or none.

    Args:
        log: what the bank says now; stays as it is.
        operation: the number of any log line of the batch; None is the last batch that changed something and is
            neither an undo nor undone. The batch of an undo may be named: that does it again.
        stamp: the first line to write, as far as it is known: number, time, decider, batch.

    Raises:
        OperationError: there is nothing to undo, or the line is not there or changed nothing.
        ConflictError: the batch is undone already, or what it changed was changed since.
    """
    outline = log.outline()
    batch = _last_batch(outline) if operation is None else _batch_of(outline, operation)
    stamp = replace(stamp, undoes=batch)
    scratch = log.branch(source=lambda after: ())
    restored = []
    for one in _take_back(scratch, log.batch(batch), stamp):
        scratch.append(one.line)
        restored.append(one)
    return restored or [Restored(stamp, Applied(Operation.noop(), OperationKind.NOOP, None, stamp.seq))]


def _last_batch(lines: Sequence[Outline]) -> int:
    undone = _undone(lines)
    for line in reversed(lines):
        if line.kind is not OperationKind.NOOP and line.undoes is None and line.batch not in undone:
            return line.batch
    raise OperationError(
        "there is nothing to undo in this scope: no batch of its log changed anything and still stands"
    )


def _batch_of(lines: Sequence[Outline], operation: int) -> int:
    line = next((line for line in lines if line.seq == operation), None)
    if line is None:
        raise OperationError(f"operation {operation} is not in this scope's log, expected a number that the log lists")
    by = _undone(lines).get(line.batch)
    if by is not None:
        raise ConflictError(f"operation {operation} was undone by operation {by}: undo {by} to do it again")
    if all(other.kind is OperationKind.NOOP for other in lines if other.batch == line.batch):
        raise OperationError(f"operation {operation} changed nothing, expected one that did")
    return line.batch


def _undone(lines: Sequence[Outline]) -> dict[int, int]:
    """Every batch that is undone, and the batch that undid it: an undo that is itself undone does not count."""
    undone: dict[int, int] = {}
    for line in reversed(lines):
        if line.undoes is not None and line.batch not in undone:
            undone[line.undoes] = line.batch
    return undone


def _take_back(log: Log, lines: Sequence[LoggedOperation], stamp: LoggedOperation) -> Iterator[Restored]:
    """The lines that bring every entry of a batch back to what it was; `log` follows each before the next is made.

    First what came is closed, then what was changed is changed back, last what went comes back: so two entries that
    swapped their texts swap them again.
    """
    by_entry: dict[str | None, list[LoggedOperation]] = {}
    for line in reversed(lines):
        if line.kind is not OperationKind.NOOP:
            by_entry.setdefault(line.entry_id, []).append(line)
    changes = [_Change.of(log, first=group[-1], last=group[0]) for group in by_entry.values()]
    changes = [change for change in changes if not change.is_nothing]
    numbered = iter(range(stamp.seq, stamp.seq + 2 * len(changes)))
    closed = [change for change in changes if change.before is None]
    for change in closed:
        assert change.live is not None
        yield _close(log, change.live, replace(stamp, seq=next(numbered)))
    waiting = []
    for change in (change for change in changes if change.before is not None):
        assert change.before is not None
        if change.live is not None and log.live_with(change.before.speaker, change.before.text) is None:
            yield _bring_back(log, change.before, replace(stamp, seq=next(numbered)))
            continue
        if change.live is not None:
            yield _close(log, change.live, replace(stamp, seq=next(numbered)))
        waiting.append(change.before)
    for before in waiting:
        yield _bring_back(log, before, replace(stamp, seq=next(numbered)))


@dataclass(frozen=True)
class _Change:
    """What became of one entry: the version live before a batch and the one live now, None for none."""

    before: Entry | None
    live: Entry | None

    @classmethod
    def of(cls, log: Log, first: LoggedOperation, last: LoggedOperation) -> _Change:
        """Given the first and the last line of the batch about the entry; raises ConflictError if it changed since."""
        assert first.entry_id is not None
        versions = {entry.version: entry for entry in log.versions(first.entry_id)}
        live = log.live(first.entry_id)
        assert first.version is not None
        numbers = {OperationKind.ADD: 0, OperationKind.UPDATE: first.version - 1, OperationKind.DELETE: first.version}
        before = versions.get(numbers[first.kind])
        after = None if last.kind is OperationKind.DELETE else versions[last.version or 0]
        if not _same(live, after) and not _same(live, before):
            raise ConflictError(
                f"{first.entry_id} was changed after operation {last.seq}: undo the later change first, or restore "
                f"the version you want"
            )
        return cls(before, live)

    @property
    def is_nothing(self) -> bool:
        return _same(self.before, self.live)


def _same(one: Entry | None, other: Entry | None) -> bool:
    """Whether two versions of an entry say the same; None is no version."""
    if one is None or other is None:
        return one is other
    return (one.text, one.said_at, one.turn_ids) == (other.text, other.said_at, other.turn_ids)


def _close(log: Log, entry: Entry, stamp: LoggedOperation) -> Restored:
    line = replace(stamp, kind=OperationKind.DELETE, entry_id=entry.id, version=entry.version)
    operation = Operation.delete(entry.id, version=entry.version)
    return Restored(line, Applied(operation, line.kind, entry, line.seq))


def _bring_back(log: Log, source: Entry, stamp: LoggedOperation) -> Restored:
    """Write an old version once more; `log` is what the bank says at that moment."""
    same = log.live_with(source.speaker, source.text)
    if same is not None and same.id != source.id:
        raise ConflictError(f"{source.id} cannot say {source.text!r:.60} again: {same.id} says it now")
    live, last = log.live(source.id), log.last_version(source.id)
    assert last is not None
    line = replace(
        stamp,
        kind=OperationKind.UPDATE if live else OperationKind.ADD,
        entry_id=source.id,
        version=last.version + 1,
        text=source.text,
        speaker=source.speaker,
        said_at=source.said_at,
        turn_ids=source.turn_ids,
    )
    operation = Operation.update(source.id, source.text, said_at=source.said_at, version=live.version if live else None)
    return Restored(line, Applied(operation, line.kind, line.entry(), line.seq), source)
