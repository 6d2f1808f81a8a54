"""What the terminal shows: a bar with an ETA where somebody watches, plain lines in a log, JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol


class Step(Protocol):
    """Called with how much is done, of how much, and a short remark."""

    def __call__(self, done: int, total: int, remark: str = "") -> None: ...


@contextmanager
def progress(title: str) -> Iterator[Step]:
    """A progress bar on a terminal; elsewhere a line at the start, every ten seconds, and at the end (to stderr)."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _bar(title) as step:
            yield step
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Step]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("eta"),
        TimeRemainingColumn(), TextColumn("{task.fields[remark]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, remark="")

        def step(done: int, total: int, remark: str = "") -> None:
            bar.update(task, completed=done, total=total, remark=remark)

        yield step


def _lines(title: str, every_s: float = 10.0) -> Step:
    note(f"{title} ...")
    began, last, before = time.monotonic(), 0.0, 0

    def step(done: int, total: int, remark: str = "") -> None:
        nonlocal began, last, before
        if done < before:  # a next stage counts from its own beginning
            began, last = time.monotonic(), 0.0
        before = done
        elapsed = time.monotonic() - began
        if done < total and elapsed - last < every_s:
            return
        last = elapsed
        eta = f", eta {elapsed / done * (total - done):.0f} s" if 0 < done < total else ""
        note(f"{title}: {done}/{total}, {elapsed:.0f} s{eta}{'  ' + remark if remark else ''}")

    return step


def note(line: str) -> None:
    """Print a line to stderr, above a progress bar; if nobody reads it, work goes on without."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout, for machines."""
    print(json.dumps(value, ensure_ascii=False, indent=1))
