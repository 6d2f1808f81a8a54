"""JSON lines about the iterations of a run: metrics.jsonl and samples.jsonl.

A line is appended when its iteration is done. A line that a crash cut short has no end and counts as not written; what
a lost stretch wrote is cut off when the run goes on. Left out: what the lines say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory_r1.rl.run.whole import whole_file


def read(path: Path) -> list[dict[str, Any]]:
    """The records in the file, in order; none where there is no file."""
    return [json.loads(line) for line in _lines(path)]


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add one record, which has an `iteration`."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def cut_back(path: Path, last: int | None) -> None:
    """Drop the records of iterations after `last`, all of them for None; makes the file where there is none."""
    kept = [line for line in _lines(path) if last is not None and json.loads(line)["iteration"] <= last]
    with whole_file(path) as partial:
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
