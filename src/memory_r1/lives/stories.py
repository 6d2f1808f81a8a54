"""The story files: what may happen in a life, in which words it is told, and what is asked about it.

A file is TOML. Every table is a story, every table in it a beat: one thing said in one turn.

    [choir]                                      a story
    draw = { choir = "choirs", day = "weekdays" }   slots and the pool (pools.toml) or range ("40-90/5") they come from
    paths = ["join switch", "join quit"]         which beats may follow each other; each path is one course of events
    times = 1                                    how often one person may live it

    [choir.join]                                 a beat
    past = "joined"                              gives {joined} "last Friday", {joined_on} "on 5 May 2023", {joined_day}
    say = '''...'''                              phrasings, one a line; a line that begins with ~ is held out
    lead = '''...'''                             optional: what the other asks to bring it up
    reply = '''...'''                            optional: what the other says to it; else by `mood`
    add = "..."                                  what the bank should hold after it; or update, or delete = true;
                                                 none of them is a NOOP
    of = "join"                                  which beat's memory is changed; default the first of the path
    items = { choirs = "{choir}" }               what it adds to a list that can be asked for (lists.toml)
    ask = '''...'''                              category | form / form ~ held-out form | answer, one a line

`past`, `future` and `years` date a beat, the last to a year long ago; `after` and `before` name a future event that
this beat's session follows or precedes. A question of category "now" holds as long as its memory stands unchanged.
Slots that are always there: {who}, {you} (the other's name), {he}, {his}, {him}, {He}, {His}.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from memory_r1.errors import InputError

Part = Literal["train", "held-out"]
Kind = Literal["ADD", "UPDATE", "DELETE", "NOOP"]


@dataclass(frozen=True)
class Lines:
    """Wordings of one thing, those to train on and those held out."""

    train: tuple[str, ...] = ()
    held: tuple[str, ...] = ()

    def of(self, part: Part) -> tuple[str, ...]:
        return self.train if part == "train" else self.held


@dataclass(frozen=True)
class Asked:
    """A question that a beat gives rise to; forms and answer still have their slots."""

    category: str
    forms: Lines
    answer: str


@dataclass(frozen=True)
class Beat:
    """One thing told in one turn. `text` is None where nothing is to be remembered (`kind` NOOP or DELETE)."""

    name: str
    say: Lines
    lead: Lines = Lines()
    reply: Lines = Lines()
    mood: str = "plain"
    kind: Kind = "NOOP"
    text: str | None = None
    of: str | None = None
    past: str | None = None
    future: str | None = None
    years: str | None = None
    after: str | None = None
    before: str | None = None
    asks: tuple[Asked, ...] = ()
    items: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Story:
    """A course of events in one person's life, with its variants."""

    name: str
    draw: Mapping[str, str]
    paths: tuple[tuple[str, ...], ...]
    beats: Mapping[str, Beat]
    times: int = 1


@dataclass(frozen=True)
class Talk:
    """What is said between the beats. `scripts` are exchanges by kind; each line of one is the other's turn."""

    lines: Mapping[str, Lines]
    scripts: Mapping[str, Mapping[Part, tuple[tuple[str, ...], ...]]]


@dataclass(frozen=True)
class Library:
    """Every story, pool, list question and piece of small talk."""

    stories: tuple[Story, ...]
    pools: Mapping[str, tuple[str, ...]]
    lists: Mapping[str, Mapping[str, Lines]]
    talk: Talk


@cache
def library() -> Library:
    """Read the files that ship with the package; raises InputError on one that breaks the format."""
    tables = {path.name: tomllib.loads(path.read_text(encoding="utf-8")) for path in _story_files()}
    pools = {name: tuple(_split(values, ",")) for name, values in tables.pop("pools.toml").items()}
    lists = {
        name: {kind: _forms(forms) for kind, forms in kinds.items()} for name, kinds in tables.pop("lists.toml").items()
    }
    talk = _talk(tables.pop("talk.toml"))
    stories = [_story(name, table) for _, group in sorted(tables.items()) for name, table in group.items()]
    return Library(tuple(stories), pools, lists, talk)


def slots_in(text: str) -> set[str]:
    """The names that stand in braces."""
    return set(re.findall(r"{(\w+)}", text))


def _story_files() -> Iterator[Any]:
    return (path for path in files(__package__).joinpath("stories").iterdir() if path.name.endswith(".toml"))


def _story(name: str, table: Mapping[str, Any]) -> Story:
    paths = tuple(tuple(path.split()) for path in table["paths"])
    beats = {key: _beat(f"{name}.{key}", key, value) for key, value in table.items() if _is_beat(key, value)}
    unknown = {beat for path in paths for beat in path} ^ set(beats)
    if unknown:
        raise InputError(f"story {name!r}: beats {sorted(unknown)} are in a path or told, expected both")
    return Story(name, table.get("draw", {}), paths, beats, table.get("times", 1))


def _is_beat(key: str, value: object) -> bool:
    return key != "draw" and isinstance(value, dict)


_TEXTS = {"of", "past", "future", "years", "after", "before", "mood", "items"}
_KEYS = _TEXTS | {"say", "lead", "reply", "add", "update", "delete", "ask"}


def _beat(where: str, name: str, table: Mapping[str, Any]) -> Beat:
    if not set(table) <= _KEYS or "say" not in table:
        raise InputError(f"beat {where}: has {sorted(table)}, expected say and some of {sorted(_KEYS)}")
    wordings = {key: _lines(table.get(key, "")) for key in ("say", "lead", "reply")}
    asks = tuple(_asked(where, line) for line in table.get("ask", "").splitlines() if line.strip())
    given: dict[str, Any] = {**wordings, **{key: table[key] for key in _TEXTS & set(table)}}
    kinds: dict[str, Kind] = {"add": "ADD", "update": "UPDATE", "delete": "DELETE"}
    for key in kinds.keys() & table.keys():
        given |= {"kind": kinds[key], "text": None if key == "delete" else table[key]}
    return Beat(name=name, asks=asks, **given)


def _asked(where: str, line: str) -> Asked:
    parts = [part.strip() for part in line.split("|")]
    if len(parts) != 3:
        raise InputError(
            f"beat {where}: the question {line!r} has {len(parts)} parts, expected category | forms | answer"
        )
    return Asked(parts[0], _forms(parts[1]), parts[2])


def _forms(text: str) -> Lines:
    """Question forms "a / b ~ c": a and b to train on, c held out."""
    train, _, held = text.partition("~")
    return Lines(_split(train, "/"), _split(held, "/"))


def _lines(block: str) -> Lines:
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    held = [line.removeprefix("~").strip() for line in lines if line.startswith("~")]
    return Lines(tuple(line for line in lines if not line.startswith("~")), tuple(held))


def _talk(table: Mapping[str, Any]) -> Talk:
    lines = {name: _lines(block) for name, block in table["lines"].items()}
    return Talk(lines, {name: _scripts(block) for name, block in table["scripts"].items()})


def _scripts(block: str) -> dict[Part, tuple[tuple[str, ...], ...]]:
    """Exchanges, parted by blank lines; one whose first line begins with ~ is held out."""
    exchanges = [tuple(part.strip().splitlines()) for part in block.split("\n\n") if part.strip()]
    held = tuple((one[0].removeprefix("~").strip(), *one[1:]) for one in exchanges if one[0].startswith("~"))
    return {"train": tuple(one for one in exchanges if not one[0].startswith("~")), "held-out": held}


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(separator) if part.strip())
