"""Two people, and values drawn from the pools so that no two stories of a dialogue share a name."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memory_r1.lives.stories import Library, Part

_SHARED_BELOW = 16  # values: a smaller pool is not divided between the parts


@dataclass(frozen=True)
class Person:
    """A speaker."""

    name: str
    pronouns: tuple[str, str, str]  # he, his, him

    def slots(self, other: Person) -> dict[str, str]:
        """What every story of this person may name, told to `other`."""
        he, his, him = self.pronouns
        names = {"who": self.name, "you": other.name}
        return {**names, "he": he, "his": his, "him": him, "He": he.capitalize(), "His": his.capitalize()}


@dataclass
class Deck:
    """Draws from the pools of one part, for one dialogue; a value comes again only when its pool is used up."""

    library: Library
    part: Part
    draw: random.Random
    used: dict[str, list[str]] = field(default_factory=dict)

    def people(self) -> tuple[Person, Person]:
        """Two speakers with different names."""
        first, second = self._person(), self._person()
        return first, second

    def values(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """A value for each slot, from its pool or its range "40-90/5" (from, to, step)."""
        return {slot: self.value(source) for slot, source in wanted.items()}

    def value(self, source: str) -> str:
        """One value from a pool or a range."""
        if source[0].isdigit():
            span, _, step = source.partition("/")
            low, high = (int(end) for end in span.split("-"))
            return f"{self.draw.randrange(low, high + 1, int(step or 1)):,}"
        return self._least_used(source, self._of_part(self.library.pools[source]))

    def wording(self, lines: Sequence[str]) -> str:
        """One of some wordings, one not used yet where there is any."""
        return self._least_used("wordings", lines)

    def _person(self) -> Person:
        if self.draw.random() < 0.5:
            return Person(self.value("women"), ("she", "her", "her"))
        return Person(self.value("men"), ("he", "his", "him"))

    def _least_used(self, pool: str, values: Sequence[str]) -> str:
        seen = self.used.setdefault(pool, [])
        fewest = min(seen.count(value) for value in values)
        value = self.draw.choice([value for value in values if seen.count(value) == fewest])
        seen.append(value)
        return value

    def _of_part(self, pool: Sequence[str]) -> Sequence[str]:
        if len(pool) < _SHARED_BELOW:
            return pool
        return [value for place, value in enumerate(pool) if (place % 4 == 3) == (self.part == "held-out")]
