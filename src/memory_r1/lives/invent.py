"""From a seed to dialogues, questions and operations: the people, their plots, the talk, the questions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from memory_r1.dialogue import Dialogue, GoldOperation, Question, Session, Turn
from memory_r1.errors import InputError
from memory_r1.lives.people import Deck
from memory_r1.lives.plot import Happening, plot, session_times
from memory_r1.lives.questions import Told, questions
from memory_r1.lives.stories import Part, library
from memory_r1.lives.talk import Conversation, Line


@dataclass(frozen=True)
class Invented:
    """Dialogues whose turns carry their gold operations, and the questions about them."""

    dialogues: tuple[Dialogue, ...]
    questions: tuple[Question, ...]


def invent(seed: int, dialogues: int = 1, part: Part = "train") -> Invented:
    """Write so many dialogues with about 25 to 40 questions each; the same arguments give the same text.

    Args:
        part: "held-out" draws other phrasings, question forms and names than "train".

    Raises:
        InputError: dialogues is below 1.
    """
    if dialogues < 1:
        raise InputError(f"dialogues is {dialogues}, expected at least 1")
    made = [_one(f"{part}-{seed}-{number:03}", part) for number in range(dialogues)]
    return Invented(tuple(dialogue for dialogue, _ in made), tuple(one for _, posed in made for one in posed))


def _one(name: str, part: Part) -> tuple[Dialogue, list[Question]]:
    draw = random.Random(name)  # by its text: a dialogue does not depend on how many are written
    deck = Deck(library(), part, draw)
    people, times = deck.people(), session_times(draw, draw.randint(8, 15))
    happenings = plot(deck, people, times, per_session=draw.uniform(2.4, 3.4))
    sessions: list[Session] = []
    told: list[Told] = []
    for number, at in enumerate(times):
        lines = Conversation(deck, people, at.hour).tell(_by_turns(draw, happenings, number))
        turns = _turns(f"{name}/s{number + 1}", lines, at)
        sessions.append(Session(f"s{number + 1}", at, turns))
        told += [Told(turn.id, one) for line, turn in zip(lines, turns, strict=True) for one in line.told]
    asked = [
        Question(f"{name}/q{number:02}", name, one.text, one.answer, one.category, one.evidence)
        for number, one in enumerate(questions(told, deck, draw.randint(25, 40)), start=1)
    ]
    return Dialogue(name, tuple(sessions)), asked


def _by_turns(draw: random.Random, happenings: Sequence[Happening], session: int) -> list[Happening]:
    """What a session tells, first something of the one, then of the other, as long as both have something."""
    due = [one for one in happenings if one.session == session]
    draw.shuffle(due)
    earlier = [sum(other.person is one.person for other in due[:place]) for place, one in enumerate(due)]
    return [one for _, one in sorted(zip(earlier, due, strict=True), key=lambda pair: pair[0])]


def _turns(session: str, lines: Sequence[Line], at: datetime) -> tuple[Turn, ...]:
    return tuple(
        Turn(f"{session}:{number:02}", line.speaker.name, line.text, at, _operations(line.told))
        for number, line in enumerate(lines, start=1)
    )


def _operations(told: Iterable[Happening]) -> tuple[GoldOperation, ...]:
    return tuple(one.operation for one in told if one.operation)
