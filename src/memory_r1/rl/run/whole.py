"""Files and folders that are there whole or not at all, whatever kills the process. Left out: what they hold."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write the file: it takes the place of `path` at the end of the block, on disk before it does."""
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill: it takes the place of `path` at the end of the block.

    A folder cannot be replaced in one step: for an instant there is none, and the old one lies beside as `.old`.
    """
    partial, old = (path.with_name(f"{path.name}.{suffix}") for suffix in ("partial", "old"))
    for rest in (partial, old):
        shutil.rmtree(rest, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if path.exists():
        os.rename(path, old)
    os.rename(partial, path)
    shutil.rmtree(old, ignore_errors=True)
