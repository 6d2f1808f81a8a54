"""What a memory manager did to the banks in a file, as Markdown: its operation mix, and examples of what it changed.

Usage: python benchmarks/operations.py BANK.db [--samples 8]

BANK.db is what `memory-r1 eval ... --manager llm --bank BANK.db` keeps, a scope for each dialogue. The examples are
evenly spaced over all UPDATEs and all DELETEs, not chosen by what they look like: the words that led to each, what the
entry said before, and what it says after.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memory_r1.bank import Bank, LoggedOperation, OperationKind

LONGEST = 160  # characters of a cell


@dataclass(frozen=True)
class Change:
    """An UPDATE or DELETE with the text that it replaced, and what was said."""

    operation: LoggedOperation
    before: str
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--samples", type=int, default=8)
    flags = parser.parse_args()
    with Bank.open(flags.file) as any_scope:
        scopes = any_scope.scopes()
    kinds: Counter[str] = Counter()
    changes: list[Change] = []
    _line("dialogue", *OperationKind, "live entries", "turns left pending")
    _line(*["---"] * 7)
    for scope in scopes:
        with Bank.open(flags.file, scope=scope) as bank:
            stats = bank.stats()
            if not stats.operations:
                continue
            kinds.update({kind.value: count for kind, count in stats.operations.items()})
            counts = (str(stats.operations.get(kind, 0)) for kind in OperationKind)
            _line(scope, *counts, str(stats.live), str(stats.pending_turns))
            changes += _changes(bank)
    total = sum(kinds.values()) or 1
    _line("share", *(f"{kinds[kind.value] / total:.1%}" for kind in OperationKind), "", "")
    for kind in (OperationKind.UPDATE, OperationKind.DELETE):
        _print_changes([one for one in changes if one.operation.kind is kind], kind, flags.samples)


def _changes(bank: Bank) -> Iterator[Change]:
    texts: dict[str, str] = {}  # entry id -> what it says so far
    for operation in bank.operations():
        entry_id = operation.entry_id or ""
        if operation.kind in (OperationKind.UPDATE, OperationKind.DELETE):
            said = bank.turn(operation.turn_ids[-1]).text if operation.turn_ids else ""
            yield Change(operation, texts.get(entry_id, ""), said)
        if operation.kind in (OperationKind.ADD, OperationKind.UPDATE):
            texts[entry_id] = operation.text or ""


def _print_changes(changes: Sequence[Change], kind: OperationKind, samples: int) -> None:
    print(f"\n{len(changes)} {kind.value}s\n")
    if not changes:
        return
    _line("said", "before", "after")
    _line(*["---"] * 3)
    for one in changes[:: max(1, len(changes) // max(1, samples))][:samples]:
        _line(one.said, one.before, (one.operation.text or "") if kind is OperationKind.UPDATE else "(deleted)")


def _line(*cells: str) -> None:
    shown = (" ".join(cell.replace("|", "/").split())[:LONGEST] for cell in cells)
    print("| " + " | ".join(shown) + " |")


if __name__ == "__main__":
    main()
