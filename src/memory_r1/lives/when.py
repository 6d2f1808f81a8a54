"""When something happened or will, as people say it, and as a gold answer states it.

A phrase is as precise as it is: "last month" is answered by "April 2023", no finer. Left out: phrases whose day only a
calendar at hand could tell ("on Friday", "in two weeks"): no answer rests on them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from dateutil.relativedelta import relativedelta

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_COUNTS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class When:
    """A time and the words for it.

    said         in a turn, behind a clause: "last Friday", "on the 9th of March"
    answer       "5 May 2023", "April 2023", "the week before 8 May 2023"
    on           the answer in a sentence: "on 5 May 2023"
    first, last  the days it may mean, both included
    """

    said: str
    answer: str
    on: str
    first: date
    last: date


def written(day: date) -> str:
    """A day as answers state it: "7 May 2023"."""
    return f"{day.day} {day:%B %Y}"


def past(at: date, since: date, draw: random.Random) -> When:
    """Some time after `since` and not after `at`, the day it is told; yesterday where nothing else fits."""
    fitting = [when for when in _past(at, draw) if since < when.first]
    return draw.choice(fitting or [_on_day("yesterday", at - timedelta(1))])


def future(at: date, after: date, before: date, draw: random.Random) -> When:
    """Some time after `at` that lies after `after` and before `before`; a day of the calendar where no phrase fits."""
    fitting = [when for when in _future(at, draw) if after < when.first and when.last < before]
    earliest = max(at, after) + timedelta(1)
    span = max(0, min((before - earliest).days - 1, 60))
    return draw.choice(fitting or [_calendar_day(earliest + timedelta(draw.randint(0, span)), draw)])


def years_ago(at: date, draw: random.Random) -> When:
    """A year two to nine years back."""
    count = draw.randint(2, 9)
    year = at.year - count
    said = draw.choice([f"{_COUNTS[count - 2]} years ago", f"in {year}", f"back in {year}"])
    return When(said, str(year), f"in {year}", date(year, 1, 1), date(year, 12, 31))


def _past(at: date, draw: random.Random) -> Iterator[When]:
    """Phrases for the last two months; days stand more often than periods."""
    yield _on_day("yesterday", at - timedelta(1))
    yield _on_day("the day before yesterday", at - timedelta(2))
    yield _on_day("this morning", at)
    days = draw.randint(3, 6)
    yield _on_day(f"{_COUNTS[days - 2]} days ago", at - timedelta(days))
    for ago in draw.sample(range(1, 8), 3):
        day = at - timedelta(ago)
        yield _on_day(f"last {_WEEKDAYS[day.weekday()]}", day)
    for ago in draw.sample(range(3, 45), 3):
        yield _calendar_day(at - timedelta(ago), draw)
    yield _period("last week", f"the week before {written(at)}", at - timedelta(7), at - timedelta(1))
    yield _period("last weekend", f"the weekend before {written(at)}", at - timedelta(9), at - timedelta(1))
    weeks = draw.choice((2, 3))
    start = at - timedelta(7 * weeks)
    yield _period(f"{_COUNTS[weeks - 2]} weeks ago", f"{weeks} weeks before {written(at)}", start, start + timedelta(6))
    yield _month("last month", at, -1)
    yield _month("two months ago", at, -2)


def _future(at: date, draw: random.Random) -> Iterator[When]:
    yield _on_day("tomorrow", at + timedelta(1))
    yield _on_day("the day after tomorrow", at + timedelta(2))
    for ahead in draw.sample(range(1, 8), 3):
        day = at + timedelta(ahead)
        yield _on_day(f"{draw.choice(('next', 'this'))} {_WEEKDAYS[day.weekday()]}", day)
    for ahead in draw.sample(range(4, 60), 4):
        yield _calendar_day(at + timedelta(ahead), draw)
    yield _period("next week", f"the week after {written(at)}", at + timedelta(1), at + timedelta(13))
    yield _period("next weekend", f"the weekend after {written(at)}", at + timedelta(1), at + timedelta(13))
    yield _month("next month", at, 1)


def _on_day(said: str, day: date) -> When:
    return When(said, written(day), f"on {written(day)}", day, day)


def _calendar_day(day: date, draw: random.Random) -> When:
    suffix = "th" if 11 <= day.day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    said = draw.choice([f"on the {day.day}{suffix} of {day:%B}", f"on {day:%B} {day.day}{suffix}"])
    return _on_day(said, day)


def _period(said: str, answer: str, first: date, last: date) -> When:
    lead = "about" if answer[0].isdigit() else "in" if answer.startswith("the week ") else "on"
    return When(said, answer, f"{lead} {answer}", first, last)


def _month(said: str, at: date, shift: int) -> When:
    first = at.replace(day=1) + relativedelta(months=shift)
    answer = f"{first:%B %Y}"
    return When(said, answer, f"in {answer}", first, first + relativedelta(months=1, days=-1))
