"""memory-r1 bank: the verbs that move a bank, check it and keep it in order. Those that edit it are in edit.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Annotated, TextIO, cast

import tyro

from memory_r1.cli.flags import BankFlags, ScopeVerb, exists
from memory_r1.cli.show import print_json, progress
from memory_r1.errors import InputError

if TYPE_CHECKING:
    from memory_r1.bank import Bank
    from memory_r1.bank.exchange import KeptLog
    from memory_r1.bank.mem0 import Mem0Entry, Mem0Store


@dataclass(frozen=True)
class Export(ScopeVerb):
    """Write everything of a scope as JSON lines: turns, operations, vectors. bank import gives the same bank again.

    Example: memory-r1 bank export alice.jsonl --bank memory.db --scope alice
    Example: memory-r1 bank export - --no-vectors | less
    """

    file: Annotated[Path, tyro.conf.Positional] = tyro.MISSING
    """where to; - is the standard output"""
    vectors: bool = True
    """without them the file is a tenth as long, and the import embeds every text anew"""
    overwrite: bool = False
    """replace a file that is there"""

    def run(self) -> int:
        """Write it; a file is there whole or not at all."""
        from memory_r1.bank.exchange import export_scope

        self.where.refuse_missing()
        with self._out() as out, progress("exporting") as step:
            export_scope(self.where.bank, self.where.scope, out, vectors=self.vectors, progress=step)
        return 0

    @contextmanager
    def _out(self) -> Iterator[TextIO]:
        if str(self.file) == "-":
            yield sys.stdout
            return
        if exists(self.file) and not self.overwrite:
            raise InputError(f"{self.file}: is there already: choose another name, or --overwrite")
        with _writing(self.file) as out:
            yield out


@dataclass(frozen=True)
class Import(ScopeVerb):
    """Fill an empty scope from what bank export wrote, or empty scopes from a mem0 store (its qdrant folder).

    Example: memory-r1 bank import alice.jsonl --bank memory.db --scope alice
    Example: memory-r1 bank import /tmp/qdrant --history ~/.mem0/history.db --bank memory.db
    """

    source: Annotated[Path, tyro.conf.Positional] = tyro.MISSING
    """a file that bank export wrote, or mem0's qdrant folder"""
    history: Path | None = None
    """mem0: its history.db, for the versions that are no longer live"""
    collection: str | None = None
    """mem0: the collection's name, if the folder has several"""
    owner: str | None = None
    """mem0: only this user_id, into --scope; default: every owner into the scope of its name"""

    def run(self) -> int:
        """Import, all scopes or none begun on bad input, and print how much."""
        from memory_r1.bank.exchange import check_log, import_scope

        logs = self._mem0() if exists(self.source) and self.source.is_dir() else self._exported()
        for kept in logs.values():
            check_log(kept)
        for scope in logs:
            self.where.of(scope).refuse_used()
        for scope, kept in logs.items():
            with progress(f"importing {scope}") as step:
                import_scope(self.where.bank, scope, kept, self.where.chosen_embedder(), step)
            print(f"{scope}: {len(kept.turns)} turns, {len(kept.lines)} operations")
        return 0

    def _exported(self) -> dict[str, KeptLog]:
        from memory_r1.bank.exchange import read_log

        if self.history or self.collection or self.owner:
            raise InputError(f"{self.source}: --history, --collection and --owner are for mem0's folders")
        return {self.where.scope: read_log(self.source)}

    def _mem0(self) -> dict[str, KeptLog]:
        """A log for each scope."""
        from memory_r1.bank.exchange import KeptLog
        from memory_r1.bank.mem0 import logged_operations, read_mem0

        store = read_mem0(self.source, self.history, collection=self.collection)
        owned = self._owned(store)
        if len(store.owners) == 1 or not owned:  # whose a deleted memory was is not kept; with one owner it is clear
            owned = {scope: [*entries, *store.gone] for scope, entries in owned.items()}
        elif store.gone:
            print(f"left out: {len(store.gone)} deleted memories, mem0 does not keep whose they were", file=sys.stderr)
        if store.textless:
            print(f"left out: the live text of {store.textless} memories that is empty or no text", file=sys.stderr)
        now = datetime.now(UTC)
        later = sum(entry.expires_on is not None and entry.expires_on >= now.date() for entry in store.entries)
        if later:
            print(f"kept for good: {later} memories that mem0 would let expire", file=sys.stderr)
        return {scope: KeptLog(tuple(logged_operations(entries, now))) for scope, entries in owned.items()}

    def _owned(self, store: Mem0Store) -> dict[str, list[Mem0Entry]]:
        """Whose entries go into which scope; nobody's are left out without a word."""
        owned: dict[str, list[Mem0Entry]] = {}
        for owner, entries in store.owners.items():
            name = _scope_of(owner)
            if name in owned or not name.strip():
                raise InputError(
                    f"{self.source}: two owners are called {name!r}, or one has no name: take them in one by one from "
                    "Python, see memory_r1.bank.mem0"
                )
            owned[name] = entries
        if self.owner is None:
            if self.where.scope != BankFlags.scope:
                raise InputError(f"--scope {self.where.scope} needs --owner, one of: {', '.join(owned)}")
            return owned
        if self.owner not in owned:
            raise InputError(f"{self.source}: no owner {self.owner!r}, expected one of: {', '.join(owned)}")
        return {self.where.scope: owned[self.owner]}


@contextmanager
def _writing(file: Path) -> Iterator[TextIO]:
    """A text file that is there whole and on disk when the block ends, or not at all."""
    target = Path(os.path.realpath(file))  # what a link points to is replaced, not the link
    try:
        with NamedTemporaryFile("w", encoding="utf-8", newline="\n", dir=target.parent, delete=False) as out:
            part = Path(out.name)
            try:
                yield cast(TextIO, out)
                out.flush()
                os.fsync(out.fileno())
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error}") from error


@dataclass(frozen=True)
class Verify:
    """Check every invariant of the whole file, all scopes, and name what is broken.

    Example: memory-r1 bank verify --bank memory.db
    """

    bank: Path = Path("memory.db")
    """the bank's file"""
    json: bool = False
    """print the problems as a JSON list"""

    def run(self) -> int:
        """0 when all is well, 1 when something is broken."""
        with BankFlags(self.bank).open(existing=True) as bank:
            problems, scopes = bank.verify(), bank.scopes()
        if self.json:
            print_json(problems)
        else:
            print("\n".join(problems) or f"{self.bank}: sound; scopes checked: {len(scopes)}")
        return 1 if problems else 0


@dataclass(frozen=True)
class Reembed:
    """Make the vectors of the whole file anew with another embedder; stopped, the same command goes on.

    Until it is done the bank works as before; from then on it is opened with the new embedder.

    Example: memory-r1 bank reembed hashing-256 --bank memory.db
    """

    embedder: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """the new one, see docs/bank.md"""
    bank: Path = Path("memory.db")
    """the bank's file"""

    def run(self) -> int:
        """Re-embed and print how much."""
        from memory_r1.bank import embedder_named
        from memory_r1.bank.reembed import reembed

        embedder = embedder_named(self.embedder)
        BankFlags(self.bank).refuse_missing()
        with progress("re-embedding") as step:
            done = reembed(self.bank, embedder, step)
        if not done.was_due:
            print(f"{self.bank}: its vectors are {done.after}'s already")
        else:
            print(f"{self.bank}: {done.embedded} versions embedded, {done.resumed} taken over from a stopped run")
        return 0


@dataclass(frozen=True)
class Vacuum:
    """Give the room of what was deleted back to the disk.

    Example: memory-r1 bank vacuum --bank memory.db
    """

    bank: Path = Path("memory.db")
    """the bank's file"""

    def run(self) -> int:
        """Write the file anew and print its size before and after."""
        with BankFlags(self.bank).open(existing=True) as bank:
            before, after = bank.vacuum()
        print(f"{self.bank}: {before:,} bytes before, {after:,} after")
        return 0


@dataclass(frozen=True)
class DeleteScope(ScopeVerb):
    """Forget a scope for good: entries, history, turns and vectors. There is no undo.

    Example: memory-r1 bank delete-scope --bank memory.db --scope alice --yes
    """

    yes: bool = False
    """do not ask"""

    def run(self) -> int:
        """Delete it once that is confirmed."""
        with self.where.open(existing=True) as bank:
            if self.where.scope not in bank.scopes():
                raise InputError(f"scope {self.where.scope!r} holds nothing, expected one of: {_names(bank)}")
            stats = bank.stats()
            what = f"{stats.live} live entries, {stats.versions} versions and {stats.turns} turns"
            if not self.yes:
                self._confirm(what)
            gone = bank.delete_scope()
        print(f"deleted scope {self.where.scope}: {what}")
        if not gone:
            print(
                "somebody is reading the file: run bank vacuum later, until then old pages stay in it", file=sys.stderr
            )
        return 0

    def _confirm(self, what: str) -> None:
        if sys.stdin is None or not sys.stdin.isatty():
            raise InputError(f"delete-scope would delete {what} for good and nobody is there to ask: add --yes")
        print(f"This deletes {what} of scope {self.where.scope!r} for good.", file=sys.stderr)
        try:
            typed = input("Type the scope's name to go on: ")
        except EOFError:
            typed = ""
        if typed != self.where.scope:
            raise InputError("the name was not the scope's: nothing was deleted")


def _scope_of(owner: object) -> str:
    """A mem0 user's id, or all that is known of an owner who has more or other ids."""
    name = str(owner)
    return name.removeprefix("user_id=") if "&" not in name else name


def _names(bank: Bank) -> str:
    return ", ".join(map(repr, bank.scopes())) or "none: the bank is empty"
