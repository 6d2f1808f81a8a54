"""One face for every file of dialogues and questions: LoCoMo, LongMemEval, MSC-Self-Instruct and people's own JSONL."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memory_r1.bench.locomo import CATEGORY_NAMES, SPLITS, load_locomo
from memory_r1.bench.longmemeval import TYPES, load_longmemeval
from memory_r1.bench.msc import load_msc_questions
from memory_r1.bench.run import ReadyFacts
from memory_r1.dialogue import Dialogue, DialogueFile, Question, load_dialogues
from memory_r1.errors import InputError
from memory_r1.memory import Extractor, Fact, LLMExtractor, TurnExtractor
from memory_r1.policy.base import Policy

Extraction = Literal["turns", "facts", "llm"]


@dataclass(frozen=True)
class Dataset:
    """Dialogues with their questions, and where they came from.

    facts       ready-made facts by dialogue id, where the file has any
    categories  names of category ids; an id that is not there is its own name
    splits      names for sets of dialogues
    sha256      of the file's bytes
    """

    path: Path
    file: DialogueFile
    sha256: str
    facts: Mapping[str, tuple[Fact, ...]] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def select(self, part: str) -> tuple[list[Dialogue], list[Question]]:
        """The dialogues and questions of a part: "all", or splits and dialogue ids separated by commas.

        Raises:
            InputError: an unknown id, or a part without questions.
        """
        if part == "all":
            ids = [dialogue.id for dialogue in self.file.dialogues]
        else:
            names = [name.strip() for name in part.split(",") if name.strip()]
            ids = [dialogue_id for name in names for dialogue_id in self.splits.get(name, (name,))]
        dialogues, questions = [self.file.dialogue(name) for name in ids], self.file.questions_of(ids)
        if not questions:
            raise InputError(f"{self.path}: {part!r} has no questions, expected dialogues with some")
        return dialogues, questions

    def extractor(self, extraction: Extraction, policy: Policy | None = None) -> Callable[[Dialogue], Extractor]:
        """How the facts of each dialogue are to be had.

        Raises:
            InputError: the file has no ready-made facts, or "llm" without a policy.
        """
        if extraction == "turns":
            return lambda dialogue: TurnExtractor()
        if extraction == "llm":
            if policy is None:
                raise InputError("extraction by llm needs a policy, got none: name a model")
            return lambda dialogue: LLMExtractor(policy)
        if not self.facts:
            raise InputError(f"{self.path} has no ready-made facts: extract turns or llm instead")
        return lambda dialogue: ReadyFacts(self.facts[dialogue.id])


def load_dataset(path: Path | str, *, adversarial: bool = False) -> Dataset:
    """Read a file of any known format, told by its name and how it begins.

    A .json is LongMemEval's where its first record has a question_id, else LoCoMo's; anything else is MSC-Self-Instruct
    where its first record has a self_instruct, else our own. A benchmark's .gz is unpacked, our own is not.

    Args:
        adversarial: also take LoCoMo's category 5.

    Raises:
        DialogueError: the file is missing or breaks its schema.
    """
    path = Path(path)
    begins = _beginning(path)
    if path.name.endswith((".json", ".json.gz")):
        if b'"question_id"' in begins:
            return longmemeval_dataset(path)
        return locomo_dataset(path, adversarial=adversarial)
    if b'"self_instruct"' in begins.split(b"\n")[0]:
        return msc_dataset(path)
    file = load_dialogues(path)
    return Dataset(path, file, hashlib.sha256(path.read_bytes()).hexdigest())


def locomo_dataset(path: Path, *, adversarial: bool = False) -> Dataset:
    """LoCoMo with Memory-R1's splits; raises DialogueError."""
    file = load_locomo(path, adversarial=adversarial, facts=True)
    return Dataset(path, file, file.sha256, file.facts, CATEGORY_NAMES, SPLITS)


def longmemeval_dataset(path: Path) -> Dataset:
    """LongMemEval, whose question types name the dialogues of a part; raises DialogueError."""
    file = load_longmemeval(path)
    parts = {kind: tuple(q.dialogue_id for q in file.questions if q.category == kind) for kind in TYPES}
    return Dataset(path, file, file.sha256, splits=parts)


def msc_dataset(path: Path) -> Dataset:
    """MSC-Self-Instruct; raises DialogueError."""
    file = load_msc_questions(path)
    return Dataset(path, file, file.sha256)


def _beginning(path: Path, size: int = 2**18) -> bytes:
    """The first bytes of a file, unpacked; none where it cannot be read, which its loader will say better."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(size)
    except (OSError, EOFError, zlib.error):
        return b""
