"""memory-r1 bank: the verbs that look into a bank. Those that edit it are in edit.py, the rest in upkeep.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from memory_r1.cli.edit import Add, Delete, Restore, Undo, Update
from memory_r1.cli.flags import ScopeVerb, wall_clock
from memory_r1.cli.show import print_json
from memory_r1.cli.upkeep import DeleteScope, Export, Import, Reembed, Vacuum, Verify
from memory_r1.errors import InputError

if TYPE_CHECKING:
    from memory_r1.bank import Entry

_MOMENT = "%Y-%m-%dT%H:%M:%S.%f"  # UTC, as bank as-of takes it


@dataclass(frozen=True)
class _Look(ScopeVerb):
    json: bool = False
    """print JSON"""


@dataclass(frozen=True)
class List(_Look):
    """List the live entries, oldest first.

    Example: memory-r1 bank list --bank memory.db --scope alice
    """

    speaker: str | None = None
    """only this speaker's"""

    def run(self) -> int:
        """Print them."""
        with self.where.open(existing=True) as bank:
            entries = [e for e in bank.entries() if self.speaker is None or e.speaker == self.speaker]
        _print_entries(entries, self.json)
        return 0


@dataclass(frozen=True)
class Show(_Look):
    """Show one live entry with the turns it was learnt from.

    Example: memory-r1 bank show e17
    """

    id: Annotated[str, tyro.conf.Positional] = tyro.MISSING

    def run(self) -> int:
        """Print it; raises UnknownEntryError when it is not live."""
        with self.where.open(existing=True) as bank:
            entry = bank.get(self.id)
            turns = bank.source_turns(entry)
        if self.json:
            print_json({**_plain(entry), "turns": [{**asdict(turn), "at": _iso(turn.at)} for turn in turns]})
            return 0
        _print_entries([entry], False)
        for turn in turns:
            print(f"  turn {turn.id}, {turn.speaker}: {turn.text}")
        return 0


@dataclass(frozen=True)
class History(_Look):
    """Show every version of an entry, oldest first, with who decided it.

    Example: memory-r1 bank history e17
    """

    id: Annotated[str, tyro.conf.Positional] = tyro.MISSING

    def run(self) -> int:
        """Print them; raises UnknownEntryError when the scope never had such an entry."""
        with self.where.open(existing=True) as bank:
            versions = bank.history(self.id)
        if self.json:
            print_json([_plain(version) for version in versions])
            return 0
        for version in versions:
            until = f"until {version.valid_to:{_MOMENT}}" if version.valid_to else "live"
            print(f"v{version.version}  {version.valid_from:{_MOMENT}} {until}  by {version.decided_by}")
            print(f"    {version.text}")
        return 0


@dataclass(frozen=True)
class AsOf(_Look):
    """List what the bank believed at a time.

    Example: memory-r1 bank as-of 2026-05-01T12:00 --bank memory.db --scope alice
    """

    time: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """ISO, in UTC where it names no zone; a day alone is its first moment"""

    def run(self) -> int:
        """Print the entries in their versions of then."""
        moment = wall_clock(self.time)
        with self.where.open(existing=True) as bank:
            entries = bank.as_of(moment)
        _print_entries(entries, self.json)
        return 0


@dataclass(frozen=True)
class Operations(_Look):
    """List the operations log: what was done, when, by whom; the numbers are what bank undo takes.

    Example: memory-r1 bank log --last 20
    """

    last: int | None = None
    """only so many of the last ones"""

    def run(self) -> int:
        """Print them, oldest first."""
        from memory_r1.bank.record import line_record

        if self.last is not None and self.last < 1:
            raise InputError(f"last is {self.last}, expected at least 1")
        with self.where.open(existing=True) as bank:
            lines = bank.operations()[-(self.last or 0) :]
        if self.json:
            print_json([line_record(line) for line in lines])
            return 0
        for line in lines:
            what = f" {line.entry_id}" if line.entry_id else ""
            text = f": {line.text}" if line.text else ""
            undoes = f" (undoes {line.undoes})" if line.undoes else ""
            print(f"{line.seq} {line.at:{_MOMENT}} {line.kind}{what}{text}{undoes}  by {line.decided_by}")
        return 0


@dataclass(frozen=True)
class Search(_Look):
    """Search the live entries without asking a model to answer.

    Example: memory-r1 bank search "dogs" --k 5 --mode bm25
    """

    text: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    k: int = 10
    """how many entries"""
    speaker: str | None = None
    """only this speaker's"""
    mode: Literal["hybrid", "dense", "bm25"] = "hybrid"
    """BM25 needs no embedding model"""

    def run(self) -> int:
        """Print them, best first."""
        with self.where.open(existing=True) as bank:
            entries = bank.search(self.text, k=self.k, speaker=self.speaker, mode=self.mode)
        _print_entries(entries, self.json)
        return 0


@dataclass(frozen=True)
class Stats(_Look):
    """Count entries, versions, operations and turns.

    Example: memory-r1 bank stats --json
    """

    def run(self) -> int:
        """Print them."""
        with self.where.open(existing=True) as bank:
            stats, scopes = asdict(bank.stats()), bank.scopes()
        stats["operations"] = {kind.value: count for kind, count in stats["operations"].items()}
        if self.json:
            print_json({**stats, "scopes": scopes})
            return 0
        counts = ", ".join(f"{count} {kind}" for kind, count in stats["operations"].items())
        for name, value in {**stats, "operations": counts, "scopes": ", ".join(scopes)}.items():
            print(f"{name.replace('_', ' '):14} {value}")
        return 0


@dataclass(frozen=True)
class BankVerb:
    """Look into a bank, go back in it, move it, keep it in order.

    Example: memory-r1 bank search "dogs" --bank memory.db
    """

    verb: tyro.conf.OmitSubcommandPrefixes[
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Show, tyro.conf.subcommand("show")]
        | Annotated[History, tyro.conf.subcommand("history")]
        | Annotated[Search, tyro.conf.subcommand("search")]
        | Annotated[Stats, tyro.conf.subcommand("stats")]
        | Annotated[AsOf, tyro.conf.subcommand("as-of")]
        | Annotated[Operations, tyro.conf.subcommand("log")]
        | Annotated[Add, tyro.conf.subcommand("add")]
        | Annotated[Update, tyro.conf.subcommand("update")]
        | Annotated[Delete, tyro.conf.subcommand("delete")]
        | Annotated[Undo, tyro.conf.subcommand("undo")]
        | Annotated[Restore, tyro.conf.subcommand("restore")]
        | Annotated[Export, tyro.conf.subcommand("export")]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[Verify, tyro.conf.subcommand("verify")]
        | Annotated[Reembed, tyro.conf.subcommand("reembed")]
        | Annotated[Vacuum, tyro.conf.subcommand("vacuum")]
        | Annotated[DeleteScope, tyro.conf.subcommand("delete-scope")]
    ]

    def run(self) -> int:
        """Run the verb."""
        return self.verb.run()


def _print_entries(entries: Sequence[Entry], as_json: bool) -> None:
    from memory_r1.memory.dates import day

    if as_json:
        print_json([_plain(entry) for entry in entries])
        return
    for entry in entries:
        said = f" [{day(entry.said_at)}]" if entry.said_at else ""
        print(f"{entry.id}{said} {entry.speaker + ': ' if entry.speaker else ''}{entry.text}")


def _plain(entry: Entry) -> dict[str, object]:
    times = {name: _iso(getattr(entry, name)) for name in ("said_at", "valid_from", "valid_to")}
    return {**asdict(entry), **times}


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None
