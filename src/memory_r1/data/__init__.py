"""Files that ship with the package: the example dialogues and the questions about them."""

from importlib.resources import files
from pathlib import Path


def example_path() -> Path:
    """Where `example.jsonl` lies: "ines-tom" to train on, "ravi-hanna" held out."""
    return Path(str(files(__name__) / "example.jsonl"))
