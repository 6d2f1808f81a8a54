"""Who lives which stories, in which sessions, and what a bank should make of it."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import memory_r1.lives.when as when
from memory_r1.dialogue import GoldOperation
from memory_r1.lives.people import Deck, Person
from memory_r1.lives.stories import Beat, Story

_FAR = date.max - timedelta(400)


@dataclass(frozen=True)
class Happening:
    """A beat in somebody's life.

    life       the number of the story lived: equal for all the beats of one course of events
    session    the number of the session it is told in
    slots      the values of everything said so far in this story
    operation  what a good manager decides about it; None is a NOOP
    """

    person: Person
    life: int
    story: Story
    beat: Beat
    session: int
    slots: Mapping[str, str]
    operation: GoldOperation | None

    def filled(self, text: str) -> str:
        """A text of the story with its values."""
        return fill(text, self.slots)


def fill(text: str, slots: Mapping[str, str]) -> str:
    """Put the values in, with a capital after each full stop and "an" before a vowel."""
    text = with_articles(text.format_map(slots))
    return re.sub(r"(^|[.!?] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def with_articles(text: str) -> str:
    """ "an" for "a" before a vowel, which a drawn value may begin with."""
    return re.sub(r"\b([Aa]) (?=[aeioAEIO]|u(?!ni|se|ke|k\b))(?!one\b|euro)", r"\1n ", text)


def plot(deck: Deck, people: tuple[Person, Person], times: Sequence[datetime], per_session: float) -> list[Happening]:
    """What both live and tell, in the order of the sessions.

    Args:
        times: when the sessions begin, in order.
        per_session: how many beats of each person a session tells on average.
    """
    plotter = _Plotter(deck, [time.date() for time in times])
    for person, other in (people, people[::-1]):
        wanted = round(per_session * len(times))
        for story in _repertoire(deck):
            if wanted <= 0:
                break
            wanted -= plotter.live(person, other, story)
    return sorted(plotter.happenings, key=lambda happening: happening.session)


def _repertoire(deck: Deck) -> list[Story]:
    stories = [story for story in deck.library.stories for _ in range(story.times)]
    deck.draw.shuffle(stories)
    return stories


class _Plotter:
    """Places stories in the sessions, the emptier ones first."""

    def __init__(self, deck: Deck, days: Sequence[date]) -> None:
        self.deck, self.days = deck, days
        self.happenings: list[Happening] = []
        self._lives = 0
        self._due: dict[str, date] = {}  # the last day of each future event of the life being lived

    def live(self, person: Person, other: Person, story: Story) -> int:
        """Let a person live a story; returns how many beats it has."""
        path = self.deck.draw.choice([path for path in story.paths if len(path) <= len(self.days)])
        sessions = self._sessions(len(path))
        slots = {**person.slots(other), **self.deck.values(story.draw)}
        written: dict[str, str] = {}  # the live text of each memory, by the beat that added it
        self._lives += 1
        self._due = {}
        for place, name in enumerate(path):
            beat = story.beats[name]
            slots |= self._dates(story, path, sessions, place)
            operation = _operation(beat, path[0], fill(beat.text, slots) if beat.text else None, written)
            told = Happening(person, self._lives, story, beat, sessions[place], dict(slots), operation)
            self.happenings.append(told)
        return len(path)

    def _sessions(self, count: int) -> list[int]:
        """Of a few choices the one in whose sessions least is told, and that are not far apart."""
        load = [sum(one.session == session for one in self.happenings) for session in range(len(self.days))]
        choices = [sorted(self.deck.draw.sample(range(len(self.days)), count)) for _ in range(6)]
        return min(
            choices, key=lambda sessions: sum(load[session] ** 2 for session in sessions) + sessions[-1] - sessions[0]
        )

    def _dates(self, story: Story, path: Sequence[str], sessions: Sequence[int], place: int) -> dict[str, str]:
        beat, at, draw = story.beats[path[place]], self.days[sessions[place]], self.deck.draw
        slots: dict[str, str] = {}
        if beat.past:
            slots |= _slots(beat.past, when.past(at, self._since(sessions, place), draw))
        if beat.years:
            slots |= _slots(beat.years, when.years_ago(at, draw))
        if beat.future:
            after, before = self._bounds(beat.future, story, path, sessions, place)
            time = when.future(at, after, before, draw)
            self._due[beat.future] = time.last
            slots |= _slots(beat.future, time)
        return slots

    def _since(self, sessions: Sequence[int], place: int) -> date:
        """The day after which something has happened: since it was last spoken of, or news that is not too old."""
        session = sessions[place]
        if place:
            return self.days[sessions[place - 1]]
        fresh = session > 0 and self.deck.draw.random() < 0.5
        return self.days[session - 1] - timedelta(7) if fresh else self.days[session] - timedelta(70)

    def _bounds(
        self, event: str, story: Story, path: Sequence[str], sessions: Sequence[int], place: int
    ) -> tuple[date, date]:
        """The days between which a future event must lie, for what is told about it later; one put off comes later."""
        after, before, put_off = max(self.days[sessions[place]], self._due.get(event, date.min)), _FAR, False
        for name, session in list(zip(path, sessions, strict=True))[place + 1 :]:
            if story.beats[name].before == event:
                after = max(after, self.days[session])
            if story.beats[name].after == event:
                before = min(before, self.days[session])
            put_off = put_off or story.beats[name].future == event
        return after, after + (before - after) / 2 if put_off else before  # which leaves room for the later date


def _slots(event: str, time: when.When) -> dict[str, str]:
    return {event: time.said, f"{event}_on": time.on, f"{event}_day": time.answer}


def _operation(beat: Beat, first: str, text: str | None, written: dict[str, str]) -> GoldOperation | None:
    """What the beat does to the memories of its story, which is noted in `written`."""
    if beat.kind == "NOOP":
        return None
    if beat.kind == "ADD":
        assert text is not None
        written[beat.name] = text
        return GoldOperation("ADD", text)
    old = written.pop(beat.of or first)
    if beat.kind == "DELETE":
        return GoldOperation("DELETE", old=old)
    assert text is not None
    written[beat.of or first] = text
    return GoldOperation("UPDATE", text, old)


def session_times(draw: random.Random, count: int) -> list[datetime]:
    """When sessions begin: from some day of the years 2020 to 2025 on, one to five weeks apart."""
    day = datetime(2020, 1, 1) + timedelta(draw.randrange(5 * 365))
    times = []
    for _ in range(count):
        times.append(day.replace(hour=draw.randint(8, 21), minute=draw.randrange(60)))
        day += timedelta(draw.randint(8, 35))
    return times
