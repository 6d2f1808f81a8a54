"""LoCoMo: ten very long conversations of two friends, with questions (arXiv:2402.17753, official locomo10.json).

The file is a JSON list of samples, each about so:

    {"sample_id": "conv-26",
     "conversation": {"session_1_date_time": "1:56 pm on 8 May, 2023",
                      "session_1": [{"speaker": "Caroline", "dia_id": "D1:3", "text": "I went to a support group.",
                                     "blip_caption": "a photo of a sign"}]},
     "observation": {"session_1_observation": {"Caroline": [["Caroline attended a support group.", "D1:3"]]}},
     "qa": [{"question": "When did ...", "answer": "7 May 2023", "evidence": ["D1:3"], "category": 2}]}

Turn ids are the file's own and unique within a conversation only. Left out: the images (their captions stay), event
and session summaries, and any correction of gold answers: an audit found 99 of them wrong, and results that are to be
compared keep them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from memory_r1.bench.records import field_of, json_list, object_of, read_bytes
from memory_r1.dialogue import Dialogue, DialogueFile, Question, Session, Turn
from memory_r1.errors import DialogueError, InputError
from memory_r1.memory.extract import Fact

CATEGORY_NAMES: Mapping[str, str] = {
    "1": "multi-hop", "2": "temporal", "3": "open-domain", "4": "single-hop", "5": "adversarial",
}  # fmt: skip
"""The official names by category id. Memory-R1's tables permute them: print the id with the name."""

ADVERSARIAL = "5"
NOT_MENTIONED = "Not mentioned in the conversation"
"""The gold answer of adversarial questions: the official option that says so; `f1_locomo` looks for "not mentioned"."""

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("conv-26",),
    "val": ("conv-30",),
    "test": ("conv-41", "conv-42", "conv-43", "conv-44", "conv-47", "conv-48", "conv-49", "conv-50"),
}
"""Memory-R1's split by conversation: 152, 81 and 1,307 questions without the adversarial ones."""


def split(name: str) -> tuple[str, ...]:
    """The conversations of a split ("train", "val", "test"), of all three ("all"), or the one of this id ("conv-26").

    Raises:
        InputError: neither a split nor a conversation; the message lists both.
    """
    every = tuple(conversation for part in SPLITS.values() for conversation in part)
    known = {**SPLITS, "all": every, **{conversation: (conversation,) for conversation in every}}
    if name not in known:
        raise InputError(f"unknown LoCoMo split or conversation {name!r}, expected one of: {', '.join(known)}")
    return known[name]


@dataclass(frozen=True)
class EvidenceRepair:
    """A reference to turns that was not one turn's id: where it stood, the reference, and the turn ids read from it.

    Nothing kept means that it names no turn of its conversation and was dropped.
    """

    where: str
    given: str
    kept: tuple[str, ...]


@dataclass(frozen=True)
class LocomoFile(DialogueFile):
    """The dialogues and questions of the file; `questions_of(split("test"))` are those of a split.

    facts    by dialogue id: the file's "observations", written by an LLM, as ready-made extraction; empty if not asked
             for
    repairs  what was mended or dropped among references to turns
    sha256   of the file's bytes, to name it in results
    """

    facts: Mapping[str, tuple[Fact, ...]] = field(default_factory=dict)
    repairs: tuple[EvidenceRepair, ...] = ()
    sha256: str = ""

    @property
    def dropped(self) -> tuple[EvidenceRepair, ...]:
        """The references of which nothing could be kept."""
        return tuple(repair for repair in self.repairs if not repair.kept)


def load_locomo(path: Path | str, *, adversarial: bool = False, facts: bool = False) -> LocomoFile:
    """Read locomo10.json, or another file of its schema.

    Questions are named by their place in the file ("conv-26/q1"), the same with and without `adversarial`.

    Args:
        adversarial: also take category 5, whose answer is not in the conversation. Their gold is the file's "answer"
            where it has one, else NOT_MENTIONED; the file's "adversarial_answer" is the trap, never the gold.
        facts: also read the ready-made facts.

    Raises:
        DialogueError: the file is missing, not JSON, or breaks the schema; names the sample and the field.
    """
    path = Path(path)
    content = read_bytes(path, "the official locomo10.json")
    records = json_list(content, path, "the official locomo10.json")
    samples = [_sample(record, f"{path}, sample {n}") for n, record in enumerate(records, start=1)]
    questions = tuple(question for sample in samples for question in sample.questions(adversarial))
    return LocomoFile(
        dialogues=tuple(sample.dialogue for sample in samples),
        questions=questions,
        facts={sample.dialogue.id: sample.facts() for sample in samples} if facts else {},
        repairs=tuple(repair for sample in samples for repair in sample.repairs),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _sample(record: object, where: str) -> _Sample:
    fields = object_of(record, where)
    sample_id = field_of(fields, "sample_id", str, where)
    conversation = field_of(fields, "conversation", dict, f"sample {sample_id!r}")
    return _Sample(fields, Dialogue(sample_id, _sessions(conversation, f"sample {sample_id!r}")))


@dataclass
class _Sample:
    """One conversation of the file, read as far as its turns; notes what is mended while the rest is read."""

    fields: Mapping[str, Any]
    dialogue: Dialogue
    repairs: list[EvidenceRepair] = field(default_factory=list)

    def questions(self, adversarial: bool) -> list[Question]:
        """The questions in file order, category 5 only if asked for."""
        records = field_of(self.fields, "qa", list, f"sample {self.dialogue.id!r}")
        read = []
        for number, record in enumerate(records, start=1):
            name = f"{self.dialogue.id}/q{number}"
            category = str(field_of(object_of(record, name), "category", (int, str), name))
            if adversarial or category != ADVERSARIAL:
                read.append(self._question(record, category, name))
        return read

    def _question(self, fields: Mapping[str, Any], category: str, name: str) -> Question:
        return Question(
            rules="locomo",
            id=name,
            dialogue_id=self.dialogue.id,
            text=field_of(fields, "question", str, name),
            answer=_gold(fields, category, name),
            category=category,
            answerable=category != ADVERSARIAL,
            evidence=self._turn_ids(field_of(fields, "evidence", list, name), name),
        )

    def facts(self) -> tuple[Fact, ...]:
        """The observations, session by session."""
        where = f"sample {self.dialogue.id!r}"
        observation = field_of(self.fields, "observation", dict, where)
        return tuple(
            self._fact(pair, speaker, session, f"{self.dialogue.id}/{session.id}_observation/{speaker}")
            for session in self.dialogue.sessions
            for speaker, pairs in field_of(observation, f"{session.id}_observation", dict, where).items()
            for pair in pairs
        )

    def _fact(self, pair: object, speaker: str, session: Session, where: str) -> Fact:
        match pair:
            case [str(text), str(reference)]:
                return Fact(text, speaker, session.at, self._turn_ids([reference], where))
            case [str(text), list(references)]:
                return Fact(text, speaker, session.at, self._turn_ids(references, where))
        raise DialogueError(f"{where}: got {pair!r:.60}, expected [fact, dia_id]")

    def _turn_ids(self, references: list[Any], where: str) -> tuple[str, ...]:
        """The turns that references such as "D1:3", "D8:6; D9:17", "D:11:26" and "D30:05" name."""
        known = {turn.id for turn in self.dialogue.turns}
        kept: list[str] = []
        for reference in map(str, references):
            numbers = re.findall(r"D:?(\d+):(\d+)", reference)
            named = [name for s, t in numbers if (name := f"D{int(s)}:{int(t)}") in known]
            if named != [reference]:
                self.repairs.append(EvidenceRepair(where, reference, tuple(named)))
            kept += named
        return tuple(dict.fromkeys(kept))


def _sessions(conversation: Mapping[str, Any], where: str) -> tuple[Session, ...]:
    """The sessions that have turns, in order; the file also dates some that have none."""
    numbers = sorted(int(match[1]) for key in conversation if (match := re.fullmatch(r"session_(\d+)", key)))
    return tuple(_session(conversation, number, where) for number in numbers if conversation[f"session_{number}"])


def _session(conversation: Mapping[str, Any], number: int, where: str) -> Session:
    name = f"session_{number}"
    at = _time(field_of(conversation, f"{name}_date_time", str, where), f"{where}: field '{name}_date_time'")
    turns = field_of(conversation, name, list, where)
    return Session(name, at, tuple(_turn(turn, at, f"{where}, {name}, turn {n}") for n, turn in enumerate(turns, 1)))


def _turn(record: object, at: datetime, where: str) -> Turn:
    fields = object_of(record, where)
    text = field_of(fields, "text", str, where)
    if "blip_caption" in fields:
        text = f"{text} [shares a photo: {field_of(fields, 'blip_caption', str, where)}]".strip()
    return Turn(field_of(fields, "dia_id", str, where), field_of(fields, "speaker", str, where), text, at)


def _time(text: str, where: str) -> datetime:
    try:
        return datetime.strptime(text, "%I:%M %p on %d %B, %Y")
    except ValueError as error:
        raise DialogueError(f"{where} is {text!r:.60}, expected a time such as '1:56 pm on 8 May, 2023'") from error


def _gold(fields: Mapping[str, Any], category: str, where: str) -> str:
    if category == ADVERSARIAL and "answer" not in fields:
        return NOT_MENTIONED
    return str(field_of(fields, "answer", (str, int, float), where)).strip()
