"""A second, plain reading of one scope's log: every line is checked against the rules before it is followed.

Kept apart from log.py on purpose: what verifies shares nothing with what is verified. Used by verify and by imports.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from memory_r1.bank.operation import LoggedOperation, OperationKind


@dataclass(frozen=True)
class Version:
    """One version of an entry: the line that opened it and the line that closed it, None while it is live."""

    opened: LoggedOperation
    closed: LoggedOperation | None = None


@dataclass
class Replay:
    """What follows from the lines taken so far: every version, by entry id, oldest first."""

    versions: dict[str, list[Version]] = field(default_factory=dict)
    _live_texts: dict[tuple[str | None, str], str] = field(default_factory=dict)
    _last: LoggedOperation | None = None

    def take(self, line: LoggedOperation) -> str | None:
        """Follow one line; what is wrong with it, if anything, and then it is not followed."""
        wrong = self._out_of_order(line) or self._against_the_rules(line)
        if wrong is None:
            self._follow(line)
            self._last = line
        return wrong

    def live(self, entry_id: str | None) -> LoggedOperation | None:
        """The line that opened the live version of an entry."""
        versions = self.versions.get(entry_id or "")
        return versions[-1].opened if versions and versions[-1].closed is None else None

    def _out_of_order(self, line: LoggedOperation) -> str | None:
        last = self._last
        if last and line.seq <= last.seq:
            return f"its number does not follow that of operation {last.seq}"
        if last and line.at < last.at:
            return f"it is dated {line.at.isoformat()}, before operation {last.seq} of {last.at.isoformat()}"
        if line.batch != line.seq and (last is None or line.batch != last.batch or line.at != last.at):
            return f"it claims batch {line.batch}, which is neither its own nor that of the line before it"
        if line.undoes is not None and line.undoes >= line.batch:
            return f"it undoes batch {line.undoes}, which is not before it"
        return None

    def _against_the_rules(self, line: LoggedOperation) -> str | None:
        if line.kind is OperationKind.ADD:
            return self._wrong_add(line) or self._said_already(line)
        if line.kind is OperationKind.UPDATE:
            return self._wrong_update(line) or self._said_already(line)
        if line.kind is OperationKind.DELETE:
            return self._wrong_delete(line)
        if line.entry_id is not None and line.entry_id not in self.versions:
            return f"NOOP names {line.entry_id!r}, which never was"
        return None

    def _wrong_add(self, line: LoggedOperation) -> str | None:
        before = self.versions.get(line.entry_id or "")
        if not before:
            if line.entry_id == f"e{line.seq}" and line.version == 1:
                return None
            return f"ADD of {line.entry_id!r} version {line.version}, expected e{line.seq} version 1"
        if before[-1].closed is None:
            return f"ADD of {line.entry_id}, which is live"
        return self._not_the_next(line, before[-1].opened)

    def _wrong_update(self, line: LoggedOperation) -> str | None:
        live = self.live(line.entry_id)
        return f"UPDATE of {line.entry_id!r}, which is not live" if live is None else self._not_the_next(line, live)

    def _wrong_delete(self, line: LoggedOperation) -> str | None:
        live = self.live(line.entry_id)
        if live is None:
            return f"DELETE of {line.entry_id!r}, which is not live"
        if line.version != live.version:
            return f"DELETE of {line.entry_id} version {line.version}, but version {live.version} is live"
        return None

    def _not_the_next(self, line: LoggedOperation, before: LoggedOperation) -> str | None:
        assert before.version is not None
        if line.version != before.version + 1:
            return f"{line.kind} of {line.entry_id} opens version {line.version} after version {before.version}"
        if line.speaker != before.speaker:
            return f"{line.kind} of {line.entry_id} changes its speaker from {before.speaker!r} to {line.speaker!r}"
        return None

    def _said_already(self, line: LoggedOperation) -> str | None:
        if line.text is None:
            return f"{line.kind} of {line.entry_id} has no text"
        other = self._live_texts.get((line.speaker, line.text))
        if other not in (None, line.entry_id):  # a restored version may differ in its date or turns alone
            return f"{line.kind} of {line.entry_id} says what the live entry {other} says"
        return None

    def _follow(self, line: LoggedOperation) -> None:
        if line.kind is OperationKind.NOOP:
            return
        assert line.entry_id is not None
        versions = self.versions.setdefault(line.entry_id, [])
        if versions and versions[-1].closed is None:
            opened = versions[-1].opened
            versions[-1] = replace(versions[-1], closed=line)
            del self._live_texts[opened.speaker, opened.text or ""]
        if line.kind is not OperationKind.DELETE:
            versions.append(Version(line))
            self._live_texts[line.speaker, line.text or ""] = line.entry_id
