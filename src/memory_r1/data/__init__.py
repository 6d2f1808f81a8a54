"""Files that ship with the package: example dialogues with questions, and adapters trained for the embedded model."""

from importlib.resources import files
from pathlib import Path
from typing import Literal


def example_path() -> Path:
    """Where `example.jsonl` lies: "ines-tom" to train on, "ravi-hanna" held out."""
    return Path(str(files(__name__) / "example.jsonl"))


def adapter_path(agent: Literal["answer", "manager"]) -> Path | None:
    """The adapter for an agent on the embedded model, or None where none ships; adapters/README.md is its card."""
    path = Path(str(files(__name__) / "adapters" / agent))
    return path if path.is_dir() else None
