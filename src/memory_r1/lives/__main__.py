"""Write invented dialogues to a file: `python -m memory_r1.lives --seed 0 --dialogues 40 --out lives.jsonl`."""

from __future__ import annotations

import argparse
from pathlib import Path

from memory_r1.dialogue import save_dialogues
from memory_r1.lives import invent


def main() -> None:
    """Read the flags, write the file, say what it holds."""
    parser = argparse.ArgumentParser(prog="python -m memory_r1.lives", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dialogues", type=int, default=40)
    parser.add_argument("--part", choices=["train", "held-out"], default="train", help="held-out: other phrasings")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    flags = parser.parse_args()
    if flags.dialogues < 1:
        parser.error(f"--dialogues is {flags.dialogues}, expected at least 1")
    made = invent(flags.seed, flags.dialogues, flags.part)
    try:
        save_dialogues(flags.out, made.dialogues, made.questions)
    except OSError as error:
        parser.error(f"{flags.out} cannot be written: {error}")
    turns = sum(len(dialogue.turns) for dialogue in made.dialogues)
    print(f"{flags.out}: {len(made.dialogues)} dialogues, {turns} turns, {len(made.questions)} questions")


if __name__ == "__main__":
    main()
