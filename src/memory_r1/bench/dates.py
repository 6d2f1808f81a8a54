"""Dates in answers: "The Friday before 15 July 2023" -> the interval of days it names.

A small English grammar, made for scoring: it reads only phrases that name their date in full ("7 May 2023",
"May 2023", "summer of 2022", "2019", "two weekends before 17 July 2023", "first week of May 2023", "between 26 March
and 20 April 2023"), and dates without a year. Left out: words relative to now ("yesterday"), clock times, and numeric
dates whose order is a guess ("5/7/2023"); they name no date here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from difflib import SequenceMatcher
from functools import partial

from dateutil.relativedelta import relativedelta

_NO_YEAR = 2000  # stands for "any year"; a leap year, so that 29 February exists
_DAY = timedelta(days=1)

_MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "fall": 9, "winter": 12}  # first month, northern
_COUNTS = {
    "a": 1, "an": 1, "last": 1, "one": 1, "two": 2, "a couple of": 2, "three": 3, "four": 4, "five": 5, "six": 6,
    "seven": 7, "eight": 8, "nine": 9, "ten": 10,
}  # fmt: skip
_ORDINALS = {"first": 0, "1st": 0, "second": 1, "2nd": 1, "third": 2, "3rd": 2, "fourth": 3, "4th": 3, "last": -1}
_THIRDS = {"early": 0, "beginning": 0, "start": 0, "mid": 1, "middle": 1, "late": 2, "end": 2}


@dataclass(frozen=True)
class Span:
    """Days from `start` to `end`, both included. Without a year it names those days of any year."""

    start: date
    end: date
    has_year: bool = True

    def __post_init__(self) -> None:
        if self.start > self.end:  # else "31-1 May 2023" would lie within every day of May
            raise ValueError(f"a span from {self.start} to {self.end} holds no day")

    def within(self, outer: Span) -> bool:
        """Whether every day of this span is one of `outer`'s: as precise as `outer` or more, and not at odds."""
        if self.has_year and not outer.has_year:
            return self.start.year == self.end.year and self._without_year().within(outer)
        return self.has_year == outer.has_year and outer.start <= self.start and self.end <= outer.end

    def _without_year(self) -> Span:
        return Span(self.start.replace(year=_NO_YEAR), self.end.replace(year=_NO_YEAR), has_year=False)


@dataclass(frozen=True)
class _Found:
    """A span and the characters of the text that name it."""

    start: int
    end: int
    span: Span


def find_spans(text: str) -> list[Span]:
    """Every date the text names, in order; phrases that name no day of the calendar (31 June) are passed over."""
    return [found.span for found in _find(_tidy(text))]


def is_date(text: str) -> bool:
    """Whether the text is a date and nothing beside it but prepositions, articles and weekdays."""
    text = _tidy(text)
    found = _find(text)
    rest = text
    for one in found:
        rest = _blank(rest, one.start, one.end)
    return bool(found) and all(word in _AROUND for word in re.findall(r"\w+", rest.lower()))


_AROUND = {
    "a", "about", "and", "approximately", "around", "at", "between", "by", "circa", "during", "evening", "from", "in",
    "month", "morning", "night", "of", "on", "since", "sometime", "the", "year", *_WEEKDAYS,
}  # fmt: skip


def _tidy(text: str) -> str:
    """Drop stray quotes, single the spaces and mend months with a slip in them ("Janury")."""
    text = " ".join(re.sub(r"[`'’\"“”*]", "", text).split())
    return re.sub(r"(?i)(?<![a-z])(?:jan|feb|apr|aug|sep|oct|nov|dec)[a-z]{3,7}(?![a-z])", _mended, text)


def _mended(match: re.Match[str]) -> str:
    word = match[0].lower()
    month = next(month for month in _MONTHS if month.startswith(word[:3]))
    return month.capitalize() if SequenceMatcher(None, word, month).ratio() > 0.88 else match[0]


def _find(text: str) -> list[_Found]:
    found = sorted(_plain_dates(text), key=lambda one: one.start)
    return [one for one in map(partial(_qualified, text), _joined(text, found)) if one is not None]


# ---- plain dates: a day, a run of days, a month, a season, a year

_Y = r"(?P<year>(?:19|20)\d\d)(?!\d)"
_M = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)(?![a-z])\.?"
)
_OF_YEAR = rf"[\s,.]*(?:of\s+)?{_Y}"
_NTH = r"(?:st|nd|rd|th)?(?!\d)"
# "7 and 9 May" is read as 7 to 9 May: with "between" before it, it is, and without, no gold answer at hand has it
_D = rf"(?<![\d-])(?P<day>\d{{1,2}}){_NTH}(?:\s*(?:-|–|to|and|until|through)\s*(?P<last>\d{{1,2}}){_NTH})?"


def _days(year: str | None, month: str, day: str, last: str | None = None) -> Span:
    in_year = int(year or _NO_YEAR)
    return Span(
        date(in_year, _month_number(month), int(day)), date(in_year, _month_number(month), int(last or day)), bool(year)
    )


def _month(month: str, year: str | None = None) -> Span:
    start = date(int(year or _NO_YEAR), _month_number(month), 1)
    return Span(start, start + relativedelta(months=1) - _DAY, bool(year))


def _month_number(month: str) -> int:
    if month.isdigit():
        return int(month)
    return next(number for number, name in enumerate(_MONTHS, start=1) if name.startswith(month[:3].lower()))


def _season(season: str, year: str) -> Span:
    start = date(int(year), _SEASONS[season.lower()], 1)
    return Span(start, start + relativedelta(months=3) - _DAY)


def _year(year: str) -> Span:
    return Span(date(int(year), 1, 1), date(int(year), 12, 31))


# in order: what one form has read, the next do not see
_FORMS: list[tuple[re.Pattern[str], Callable[..., Span]]] = [
    (re.compile(rf"(?<!\d){_Y}[-/](?P<month>\d\d)[-/](?P<day>\d\d)(?!\d)"), _days),
    (re.compile(rf"(?<!\d){_Y}-(?P<month>\d\d)(?![\d-])"), _month),
    (re.compile(rf"(?i){_D}\s*(?:of\s+)?{_M}(?:{_OF_YEAR})?"), _days),
    (re.compile(rf"(?i)(?<![a-z]){_M}\s*{_D}(?:{_OF_YEAR})?"), _days),
    (re.compile(rf"(?i)(?<![a-z]){_M}{_OF_YEAR}"), _month),
    (re.compile(rf"(?i)\b(?P<season>{'|'.join(_SEASONS)})\s*,?\s*(?:of|in)?\s*{_Y}"), _season),
    (re.compile(rf"(?<![\w$.,]){_Y}(?!\w)"), _year),
    # a month alone: in full, and with a capital, since "may" and "march" are also verbs
    (re.compile(rf"\b(?P<month>{'|'.join(month.capitalize() for month in _MONTHS)})\b"), _month),
]


def _plain_dates(text: str) -> Iterator[_Found]:
    for pattern, read in _FORMS:
        for match in list(pattern.finditer(text)):
            try:
                span = read(**match.groupdict())
            except ValueError:  # no such day, as 31 June, or a run backwards
                continue
            yield _Found(match.start(), match.end(), span)
            text = _blank(text, match.start(), match.end())


def _blank(text: str, start: int, end: int) -> str:
    return text[:start] + " " * (end - start) + text[end:]


# ---- two dates that bound one span

_BETWEEN = re.compile(r"(?i)between (?:the )?$")
_TO = re.compile(r"(?i)\s*(?:to|-|–|until|through)\s*(?:the )?")
_AND = re.compile(r"(?i)\s*and\s*(?:the )?")


def _joined(text: str, found: list[_Found]) -> list[_Found]:
    """ "26 March to 20 April 2023" and "between 26 March and 20 April 2023" are one span."""
    joined: list[_Found] = []
    for one in found:
        before = joined[-1] if joined else None
        if before and _bounds_one_span(text, before, one) and (span := _from_to(before.span, one.span)):
            joined[-1] = _Found(before.start, one.end, span)
        else:
            joined.append(one)
    return joined


def _bounds_one_span(text: str, first: _Found, second: _Found) -> bool:
    between = text[first.end : second.start]
    return bool(_TO.fullmatch(between) or (_AND.fullmatch(between) and _BETWEEN.search(text[: first.start])))


def _from_to(first: Span, second: Span) -> Span | None:
    takes_year = second.has_year and not first.has_year
    start = _in_year(first.start, second.end.year) if takes_year else first.start
    return Span(start, second.end, second.has_year) if start <= second.end else None


def _in_year(day: date, year: int) -> date:
    moved: date = day + relativedelta(year=year)  # 29 February becomes the 28th where there is none
    return moved


# ---- what stands before a date and moves it

_UNIT = rf"(?P<unit>day|week|weekend|month|year|{'|'.join(_WEEKDAYS)})s?"
_COUNT = rf"(?:(?P<count>{'|'.join(sorted(_COUNTS, key=len, reverse=True))}|\d{{1,2}}) )?"
_DIRECTION = r"(?P<direction>before|prior to|after|following)"
_STEPS = {
    "day": relativedelta(days=1), "week": relativedelta(weeks=1), "month": relativedelta(months=1),
    "year": relativedelta(years=1),
}  # fmt: skip


def _shifted(match: re.Match[str], span: Span) -> Span | None:
    """The n-th unit before or after: a week before is the 7 days that end the day before, two weeks the 7 before."""
    unit, count = match["unit"].lower(), _count(match["count"])
    forward = match["direction"].lower() in ("after", "following")
    if unit == "weekend" or unit in _WEEKDAYS:
        return _nth_weekday(span, unit, count if forward else -count)
    return _steps(span, unit, count, count, forward)


def _few_shifted(match: re.Match[str], span: Span) -> Span | None:
    """ "A few" is two to six."""
    unit = match["unit"].lower()
    if unit == "weekend" or unit in _WEEKDAYS:
        return None
    return _steps(span, unit, 2, 6, match["direction"].lower() in ("after", "following"))


def _steps(span: Span, unit: str, fewest: int, most: int, forward: bool) -> Span:
    """The days at least `fewest` and at most `most` whole units away."""
    step = _STEPS[unit]
    if forward:
        after = span.end + _DAY
        return Span(after + step * (fewest - 1), after + step * most - _DAY, span.has_year)
    return Span(span.start - step * most, span.start - step * (fewest - 1) - _DAY, span.has_year)


def _nth_weekday(span: Span, unit: str, count: int) -> Span | None:
    """The count-th such weekday or weekend wholly before (negative) or after the span; none without a year."""
    if not span.has_year:
        return None
    length = 2 if unit == "weekend" else 1
    weekday = 5 if unit == "weekend" else _WEEKDAYS.index(unit)
    if count > 0:
        first = span.end + _DAY
        start = first + timedelta(days=(weekday - first.weekday()) % 7 + 7 * (count - 1))
    else:
        last = span.start - length * _DAY
        start = last - timedelta(days=(last.weekday() - weekday) % 7 + 7 * (-count - 1))
    return Span(start, start + (length - 1) * _DAY)


def _around(match: re.Match[str], span: Span) -> Span | None:
    """ "The week of" a day is Monday to Sunday, "the weekend of" a day the nearest; a longer span names itself."""
    if span.start != span.end:
        return span
    if not span.has_year:
        return None
    if match["unit"].lower() == "week":
        monday = span.start - timedelta(days=span.start.weekday())
        return Span(monday, monday + 6 * _DAY)
    weekday = span.start.weekday()
    saturday = span.start + timedelta(days=-weekday - 2 if weekday < 2 else 5 - weekday)
    return Span(saturday, saturday + _DAY)


def _part(match: re.Match[str], span: Span) -> Span | None:
    """ "First week of May 2023" is its days 1 to 7; weekends and weekdays are counted inside the span."""
    nth, unit = _ORDINALS[match["nth"].lower()], match["unit"].lower()
    if unit in ("day", "month", "year") or not (span.has_year or unit == "week"):
        return None
    if unit == "week":
        start = span.end - 6 * _DAY if nth == -1 else span.start + nth * 7 * _DAY
        part: Span | None = Span(start, start + 6 * _DAY, span.has_year)
    elif nth == -1:
        part = _nth_weekday(Span(span.end + _DAY, span.end + _DAY), unit, -1)
    else:
        part = _nth_weekday(Span(span.start - _DAY, span.start - _DAY), unit, nth + 1)
    return part if part and part.within(span) else None


def _third(match: re.Match[str], span: Span) -> Span | None:
    """Early, mid and late are the thirds of a month, season or year."""
    days = (span.end - span.start).days + 1
    third = _THIRDS[match["third"].lower()]
    first, after = (days * third // 3, days * (third + 1) // 3)
    return Span(span.start + first * _DAY, span.start + (after - 1) * _DAY, span.has_year) if days >= 3 else None


def _open(match: re.Match[str], span: Span) -> Span | None:
    """ "Before 2020" and "after 2020" are all the days there."""
    if match["direction"].lower() in ("after", "following"):
        return Span(span.end + _DAY, date.max, span.has_year)
    return Span(date.min, span.start - _DAY, span.has_year)


_QUALIFIERS: list[tuple[re.Pattern[str], Callable[[re.Match[str], Span], Span | None]]] = [
    (re.compile(rf"(?i)\b(?:a )?(?:few|several) {_UNIT} {_DIRECTION} (?:the )?$"), _few_shifted),
    (re.compile(rf"(?i)\b{_COUNT}{_UNIT} {_DIRECTION} (?:the )?$"), _shifted),
    (re.compile(rf"(?i)\b(?P<nth>{'|'.join(_ORDINALS)}) {_UNIT} (?:of|in) (?:the )?$"), _part),
    (re.compile(r"(?i)\b(?P<unit>week|weekend) of (?:the )?$"), _around),
    (re.compile(rf"(?i)\b(?P<third>{'|'.join(_THIRDS)})(?: of| in|-)? ?(?:the )?$"), _third),
    (re.compile(rf"(?i)\b{_DIRECTION} (?:the )?$"), _open),
]


def _qualified(text: str, found: _Found) -> _Found | None:
    for pattern, move in _QUALIFIERS:
        if match := pattern.search(text[: found.start]):
            span = _guarded(move, match, found.span)
            return _Found(match.start(), found.end, span) if span else None
    return found


def _guarded(move: Callable[[re.Match[str], Span], Span | None], match: re.Match[str], span: Span) -> Span | None:
    try:
        return move(match, span)
    except (OverflowError, ValueError):  # beyond the calendar, or no day left
        return None


def _count(word: str | None) -> int:
    word = (word or "a").lower()
    return int(word) if word.isdigit() else _COUNTS[word]
