"""memory-r1 demo: the whole path on the bundled example, with the embedded model, in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """Demo.

    Example: memory-r1 demo
    """

    out: Path = Path("runs/demo")

    def run(self) -> int:
        """0."""
        return 0
