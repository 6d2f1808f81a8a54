"""Relative dates become absolute when a turn is written down: "yesterday" -> "yesterday (7 May 2023)".

English phrases that name a day, week, weekend, month, season or year relative to the session. The words stay and the
date is added behind them, at the precision of the phrase and no finer. Left out: vague phrases ("the other day",
"recently", a bare "on Friday"), "in two weeks", which is as often a duration, and other languages: they stay as they
are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from dateutil.relativedelta import relativedelta

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_NUMBERS = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "a couple of": 2,
}  # fmt: skip
_COUNT = r"(?P<count>a couple of|an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\d{1,2})"
_WHICH = r"(?P<which>last|this past|past|this|next|this coming)"


def absolute_dates(text: str, at: datetime | None) -> str:
    """Add the absolute date behind every relative one; `at` is when the text was said. None changes nothing.

    >>> absolute_dates("We met yesterday.", datetime(2023, 5, 8))
    'We met yesterday (7 May 2023).'
    """
    if at is None:
        return text
    for rule in _RULES:
        text = rule.annotate(text, at)
    return text


def day(at: datetime) -> str:
    """A date as people write it: "7 May 2023"."""
    return f"{at.day} {at:%B} {at.year}"


def _shifted_day(days: int) -> Callable[[re.Match[str], datetime], str | None]:
    return lambda match, at: _guarded(at, relativedelta(days=days), day)


def _weekday(match: re.Match[str], at: datetime) -> str | None:
    """Last Friday is the latest Friday before the day itself, next or this Friday the first one after it."""
    wanted = _WEEKDAYS.index(match["weekday"].lower())
    ahead = (wanted - at.weekday() - 1) % 7 + 1
    past = match["which"].lower() in ("last", "this past", "past")
    days = ahead - 7 if past and ahead != 7 else (-7 if past else ahead)
    return _guarded(at, relativedelta(days=days), day)


def _period(match: re.Match[str], at: datetime) -> str | None:
    step = {"last": -1, "this past": -1, "past": -1, "next": 1, "this coming": 1}.get(match["which"].lower(), 0)
    unit = match["unit"].lower()
    if unit in ("week", "weekend"):
        return f"the {unit} {('before', 'of', 'after')[step + 1]} {day(at)}"
    if unit == "month":
        return _guarded(at, relativedelta(months=step), "{:%B %Y}".format)
    if unit == "year":
        return _guarded(at, relativedelta(years=step), "{:%Y}".format)
    # "last summer" said in November may mean this year's: only the running one is certain
    return f"{unit} {at.year}" if step == 0 else None


def _ago(match: re.Match[str], at: datetime) -> str | None:
    word, unit = match["count"].lower(), match["unit"].lower()
    count = int(word) if word.isdigit() else _NUMBERS[word]
    if unit == "day":
        return _guarded(at, relativedelta(days=-count), day)
    if unit in ("week", "weekend"):
        return f"the {unit} before {day(at)}" if count == 1 else f"{count} {unit}s before {day(at)}"
    if unit == "month":
        return _guarded(at, relativedelta(months=-count), "{:%B %Y}".format)
    return _guarded(at, relativedelta(years=-count), "{:%Y}".format)


def _guarded(at: datetime, shift: relativedelta, write: Callable[[datetime], str]) -> str | None:
    try:
        return write(at + shift)
    except (OverflowError, ValueError):  # before the year 1 or after 9999: nothing to add
        return None


class _Rule:
    """A phrase and how it resolves; None leaves the phrase alone."""

    def __init__(self, phrase: str, resolve: Callable[[re.Match[str], datetime], str | None]) -> None:
        # a phrase that already has its date behind it is left alone, so that annotating twice changes nothing;
        # so is the end of "1.5 years ago" or "half a year ago"; (?a:) keeps "ı" and "ſ" from being "i" and "s"
        before, behind = r"(?<![\w-])(?<!\d[.,/])(?<!half )", r"(?![\w'’-])(?!\s*\()"
        self._pattern = re.compile(rf"{before}(?a:{phrase}){behind}", re.IGNORECASE)
        self._resolve = resolve

    def annotate(self, text: str, at: datetime) -> str:
        def dated(match: re.Match[str]) -> str:
            date = self._resolve(match, at)
            return match[0] if date is None else f"{match[0]} ({date})"

        return self._pattern.sub(dated, text)


_RULES = [
    _Rule(r"(?:the )?day before yesterday", _shifted_day(-2)),
    _Rule(r"(?:the )?day after tomorrow", _shifted_day(2)),
    _Rule(r"(?<!\bday before )yesterday|last night", _shifted_day(-1)),
    _Rule(r"(?<!\bday after )tomorrow", _shifted_day(1)),
    _Rule(r"today|tonight|this (?:morning|afternoon|evening)", _shifted_day(0)),
    _Rule(rf"{_WHICH} (?P<weekday>{'|'.join(_WEEKDAYS)})", _weekday),
    _Rule(rf"{_WHICH} (?P<unit>week|weekend|month|year|spring|summer|autumn|fall|winter)", _period),
    _Rule(rf"{_COUNT} (?P<unit>day|week|weekend|month|year)s? ago", _ago),
]
