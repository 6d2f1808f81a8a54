"""The questions about a dialogue: what its stories give rise to, lists over several of them, and a choice of these."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from memory_r1.lives.people import Deck
from memory_r1.lives.plot import Happening, with_articles
from memory_r1.lives.stories import Asked

_NUMBERS = ("two", "three", "four", "five", "six")
_MOST_WORDS = 6  # of an answer: what the answer agent's prompt asks for
_SHARES = {"temporal": 0.25, "update": 0.25, "single-hop": 0.25, "multi-hop": 0.15, "open": 0.1}


@dataclass(frozen=True)
class Posed:
    """A question with its gold answer, its category and the turns it rests on."""

    text: str
    answer: str
    category: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """A happening and the id of the turn that tells it."""

    turn: str
    one: Happening


def questions(told: Sequence[Told], deck: Deck, count: int) -> list[Posed]:
    """About so many questions, mixed over the categories, in random order; `told` is in order of telling."""
    candidates: dict[str, list[Posed]] = {category: [] for category in _SHARES}
    for posed in (*_of_stories(told, deck), *_of_lists(told, deck)):
        if len(posed.answer.split()) <= _MOST_WORDS:
            candidates[posed.category].append(posed)
    return _mixed(candidates, count, deck.draw)


def _mixed(candidates: Mapping[str, list[Posed]], count: int, draw: random.Random) -> list[Posed]:
    """Each category's share first, then whatever is left."""
    for group in candidates.values():
        draw.shuffle(group)
    chosen = [posed for category, group in candidates.items() for posed in group[: round(_SHARES[category] * count)]]
    rest = [posed for group in candidates.values() for posed in group if posed not in chosen]
    chosen += draw.sample(rest, max(0, min(len(rest), count - len(chosen))))
    draw.shuffle(chosen)
    return list({posed.text: posed for posed in chosen}.values())


def _of_stories(told: Sequence[Told], deck: Deck) -> Iterator[Posed]:
    for life in dict.fromkeys(each.one.life for each in told):
        course = [each for each in told if each.one.life == life]
        for number, (turn, one) in enumerate((each.turn, each.one) for each in course):
            memory = _memory(one, course)
            until, later = (
                [each for each in part if each.one.operation and _memory(each.one, course) == memory]
                for part in (course[: number + 1], course[number + 1 :])
            )
            if any(each.one.beat.kind == "DELETE" for each in (*until, *later)):
                continue  # the bank ends without it
            written = tuple(dict.fromkeys(each.turn for each in until))
            for asked in one.beat.asks:
                if asked.category != "now" or not later:
                    yield _posed(asked, one, turn, written, deck)


def _posed(asked: Asked, one: Happening, turn: str, written: tuple[str, ...], deck: Deck) -> Posed:
    """A story's question; what is asked about a changing memory rests on every turn that wrote it so far."""
    now = "update" if len(written) > 1 else "temporal" if asked.answer.endswith("_day}") else "single-hop"
    category = now if asked.category == "now" else asked.category
    evidence = written if category in ("update", "multi-hop") else (turn,)
    answer = with_articles(asked.answer.format_map(one.slots))
    return Posed(one.filled(deck.wording(asked.forms.of(deck.part))), answer, category, evidence)


def _memory(one: Happening, course: Sequence[Told]) -> str:
    """Which of its story's memories a happening is about, by the beat that added it."""
    return one.beat.name if one.beat.kind == "ADD" else one.beat.of or course[0].one.beat.name


def _of_lists(told: Sequence[Told], deck: Deck) -> Iterator[Posed]:
    """Which ... has she ..., and how many: over everything of a kind that one person told of."""
    found: dict[tuple[str, str], dict[str, Told]] = {}
    undone = {each.one.life for each in told if each.one.beat.kind == "DELETE"}
    for each in (each for each in told if each.one.life not in undone):
        for name, item in each.one.beat.items.items():
            named = with_articles(item.format_map(each.one.slots))
            found.setdefault((each.one.person.name, name), {}).setdefault(named, each)
    for (_, name), items in found.items():
        if not 2 <= len(items) <= len(_NUMBERS):
            continue
        evidence = tuple(dict.fromkeys(each.turn for each in items.values()))
        first = next(iter(items.values())).one
        answers = {"which": ", ".join(items), "count": _NUMBERS[len(items) - 2]}
        for kind, forms in deck.library.lists[name].items():
            yield Posed(first.filled(deck.wording(forms.of(deck.part))), answers[kind], "multi-hop", evidence)
