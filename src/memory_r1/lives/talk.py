"""The turns of a session: who says what, in reply to whom.

Speakers take turns. A beat is often asked for, mostly reacted to, and embedded in talk that holds nothing to remember.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from memory_r1.lives.people import Deck, Person
from memory_r1.lives.plot import Happening, fill
from memory_r1.lives.stories import Lines

_PURE_REACTION, _LEAD, _CHAT, _SECOND_FACT, _ASIDE, _OPENER, _ABRUPT = 0.2, 0.75, 0.06, 0.15, 0.08, 0.3, 0.4
_HOURS = {"morning": range(12), "evening": range(17, 24), "night": range(18, 24), "bed": range(19, 24)}


@dataclass
class Line:
    """One turn in the making: what is said, and which happenings it tells."""

    speaker: Person
    said: list[str] = field(default_factory=list)
    told: list[Happening] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(self.said)


class Conversation:
    """One session between two people, written line by line."""

    def __init__(self, deck: Deck, people: tuple[Person, Person], hour: int) -> None:
        self.deck, self.people, self.hour = deck, people, hour
        self.lines: list[Line] = []
        self._unanswered: Happening | None = None

    def tell(self, happenings: Sequence[Happening]) -> list[Line]:
        """A whole session that tells these happenings."""
        chats, waiting = 0, list(happenings)
        if waiting and self._maybe(_ABRUPT):
            self._add(waiting[0].person, self._line("hello", waiting[0].person))
            self._beat(waiting.pop(0))
        else:
            self._script("opening")
        for happening in waiting:
            if chats < 2 and self._maybe(_CHAT):
                self._react_apart()
                self._script("chat")
                chats += 1
            self._tell(happening)
        self._react_apart()
        while chats < 2 and len(self.lines) < 7:
            self._script("chat")
            chats += 1
        if not self._maybe(_ABRUPT):
            self._script("closing")
        return self.lines

    def _tell(self, happening: Happening) -> None:
        speaker, last = happening.person, self.lines[-1].speaker
        if last is speaker and len(self.lines[-1].told) == 1 and self._maybe(_SECOND_FACT):
            self._add(speaker, self._line("also", speaker))
            self._beat(happening)
            return
        if last is speaker:
            self._react()
            self._ask_for(happening)
        elif self._unanswered and self._maybe(_PURE_REACTION):
            self._react_apart()
            self._ask_for(happening)
        else:
            self._react()
            if self._maybe(_OPENER):
                self._add(speaker, self._line("opener", speaker))
        self._beat(happening)

    def _beat(self, happening: Happening) -> None:
        said = happening.filled(self.deck.wording(happening.beat.say.of(self.deck.part)))
        self._add(happening.person, said)
        self.lines[-1].told.append(happening)
        self._unanswered = happening
        if self._maybe(_ASIDE):
            self._add(happening.person, self._line("aside", happening.person))

    def _ask_for(self, happening: Happening) -> None:
        """The other asks: for this very thing where the story has such a question, else for news."""
        leads, other = happening.beat.lead.of(self.deck.part), self._other(happening.person)
        fits = leads and self._maybe(_LEAD)
        self._add(other, happening.filled(self.deck.wording(leads)) if fits else self._line("prompt", other))

    def _react(self) -> None:
        """Say something to what was told last, if nobody has."""
        if self._unanswered is None:
            return
        happening, self._unanswered = self._unanswered, None
        replies = happening.beat.reply.of(self.deck.part)
        if replies:
            said = fill(self.deck.wording(replies), {**happening.slots, "you": happening.person.name})
        else:
            said = self._line(happening.beat.mood, self._other(happening.person))
        self._add(self._other(happening.person), said)

    def _react_apart(self) -> None:
        """React in a turn of its own, for which the teller thanks."""
        if self._unanswered:
            told = self._unanswered
            self._react()
            kind = {"bad": "thanks_bad", "plain": "anyway"}.get(told.beat.mood, "thanks")
            self._add(told.person, self._line(kind, told.person))

    def _script(self, kind: str) -> None:
        """An exchange of small talk; its first line is the other's who did not speak last."""
        exchanges = self.deck.library.talk.scripts[kind][self.deck.part]
        first = self.deck.wording([exchange[0] for exchange in exchanges if self._timely(exchange)])
        exchange = next(one for one in exchanges if one[0] == first)
        speaker = self._other(self.lines[-1].speaker) if self.lines else self.deck.draw.choice(self.people)
        for line in exchange:
            self._add(speaker, self._filled(line, speaker), apart=True)
            speaker = self._other(speaker)

    def _timely(self, exchange: Sequence[str]) -> bool:
        """Whether nobody says good morning in the evening."""
        words = re.findall(r"\w+", " ".join(exchange).lower())
        return all(self.hour in hours for word, hours in _HOURS.items() if word in words)

    def _line(self, kind: str, speaker: Person) -> str:
        lines: Lines = self.deck.library.talk.lines[kind]
        return self._filled(self.deck.wording(lines.of(self.deck.part)), speaker)

    def _filled(self, text: str, speaker: Person) -> str:
        return fill(text, _Drawn(self.deck, self._other(speaker).name))

    def _add(self, speaker: Person, said: str, *, apart: bool = False) -> None:
        if not self.lines or self.lines[-1].speaker is not speaker:
            self.lines.append(Line(speaker))
        assert not apart or not self.lines[-1].said
        self.lines[-1].said.append(said)

    def _other(self, person: Person) -> Person:
        return self.people[1] if person is self.people[0] else self.people[0]

    def _maybe(self, chance: float) -> bool:
        return self.deck.draw.random() < chance


class _Drawn(dict[str, str]):
    """Slots of small talk: {you}, and any pool by its name."""

    def __init__(self, deck: Deck, you: str) -> None:
        super().__init__(you=you)
        self._deck = deck

    def __missing__(self, pool: str) -> str:
        return self._deck.value(pool)
