"""Relative dates written out. Every date here was worked by hand; 10 May 2023 is a Wednesday."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memory_r1.memory.dates import absolute_dates, day

WEDNESDAY = datetime(2023, 5, 10, 21, 30)


@pytest.mark.parametrize(
    ("phrase", "date"),
    [
        ("today", "10 May 2023"),
        ("tonight", "10 May 2023"),
        ("this morning", "10 May 2023"),
        ("this afternoon", "10 May 2023"),
        ("this evening", "10 May 2023"),
        ("yesterday", "9 May 2023"),
        ("last night", "9 May 2023"),
        ("the day before yesterday", "8 May 2023"),
        ("day before yesterday", "8 May 2023"),
        ("tomorrow", "11 May 2023"),
        ("the day after tomorrow", "12 May 2023"),
        # a weekday: the latest before the day itself, or the first after it
        ("last Tuesday", "9 May 2023"),
        ("last Wednesday", "3 May 2023"),
        ("last Thursday", "4 May 2023"),
        ("this past Monday", "8 May 2023"),
        ("past Sunday", "7 May 2023"),
        ("this Friday", "12 May 2023"),
        ("this Wednesday", "17 May 2023"),
        ("next Wednesday", "17 May 2023"),
        ("next Tuesday", "16 May 2023"),
        ("this coming Saturday", "13 May 2023"),
        # weeks stay as wide as they are
        ("last week", "the week before 10 May 2023"),
        ("this week", "the week of 10 May 2023"),
        ("next week", "the week after 10 May 2023"),
        ("last weekend", "the weekend before 10 May 2023"),
        ("this past weekend", "the weekend before 10 May 2023"),
        ("this weekend", "the weekend of 10 May 2023"),
        ("this coming weekend", "the weekend after 10 May 2023"),
        # months, years and seasons
        ("last month", "April 2023"),
        ("this month", "May 2023"),
        ("next month", "June 2023"),
        ("last year", "2022"),
        ("this year", "2023"),
        ("next year", "2024"),
        ("this summer", "summer 2023"),
        ("this fall", "fall 2023"),
        # counted back
        ("a day ago", "9 May 2023"),
        ("2 days ago", "8 May 2023"),
        ("ten days ago", "30 April 2023"),
        ("99 days ago", "31 January 2023"),
        ("a couple of days ago", "8 May 2023"),
        ("a week ago", "the week before 10 May 2023"),
        ("three weeks ago", "3 weeks before 10 May 2023"),
        ("two weekends ago", "2 weekends before 10 May 2023"),
        ("a month ago", "April 2023"),
        ("five months ago", "December 2022"),
        ("a year ago", "2022"),
        ("twelve years ago", "2011"),
        # counted ahead
    ],
)
def test_a_phrase_keeps_its_words_and_gets_its_date(phrase: str, date: str) -> None:
    assert absolute_dates(f"We go {phrase}, I think.", WEDNESDAY) == f"We go {phrase} ({date}), I think."
    assert absolute_dates(phrase.upper(), WEDNESDAY) == f"{phrase.upper()} ({date})"


@pytest.mark.parametrize(
    ("at", "phrase", "date"),
    [
        (datetime(2024, 3, 1), "yesterday", "29 February 2024"),
        (datetime(2023, 12, 31), "tomorrow", "1 January 2024"),
        (datetime(2024, 3, 31), "last month", "February 2024"),
        (datetime(2024, 2, 29), "a year ago", "2023"),
        (datetime(2024, 1, 1), "last Monday", "25 December 2023"),  # itself a Monday
        (datetime(2024, 1, 1), "last week", "the week before 1 January 2024"),
    ],
)
def test_months_and_years_are_crossed(at: datetime, phrase: str, date: str) -> None:
    assert absolute_dates(phrase, at) == f"{phrase} ({date})"


def test_every_phrase_of_a_text_gets_its_own_date() -> None:
    assert absolute_dates("Yesterday we met, tomorrow we leave; see you next month!", WEDNESDAY) == (
        "Yesterday (9 May 2023) we met, tomorrow (11 May 2023) we leave; see you next month (June 2023)!"
    )


@pytest.mark.parametrize(
    "text",
    [
        "yesterday's news",
        "I read it in two days",
        "once in a week",
        "yesterday’s news",
        "last week's party",
        "two days' work",
        "yesterday (a Tuesday)",
        "last year  (2022)",
        "yesterdays",
        "pre-yesterday",
        "last-minute",
        "on Friday",
        "the other day",
        "a few days ago",
        "some years ago",
        "last summer",  # in November it may be this year's
        "next spring",
        "100 days ago",
        "1.5 years ago",
        "1,5 years ago",
        "1/2 year ago",
        "half a year ago",
        "two years",
        "gestern",
        "last frıday",  # Unicode folds the dotless i to i
        "ſix days ago",
        "laſt week",
    ],
)
def test_what_is_vague_or_another_phrase_or_dated_already_stays_as_it_is(text: str) -> None:
    assert absolute_dates(text, WEDNESDAY) == text


def test_an_ellipsis_or_a_full_stop_may_stand_before_a_phrase() -> None:
    assert absolute_dates("well...yesterday", WEDNESDAY) == "well...yesterday (9 May 2023)"


@pytest.mark.parametrize("text", ["yesterday", "last year", "in 2 weeks", ""])
def test_without_a_time_nothing_changes(text: str) -> None:
    assert absolute_dates(text, None) == text


@pytest.mark.parametrize(
    ("at", "phrase"),
    [
        (datetime(1, 1, 1), "yesterday"),
        (datetime(1, 1, 1), "last Friday"),
        (datetime(1, 1, 1), "last month"),
        (datetime(1, 1, 1), "last year"),
        (datetime(1, 1, 1), "99 years ago"),
        (datetime(9999, 12, 31), "tomorrow"),
        (datetime(9999, 12, 31), "next Friday"),
        (datetime(9999, 12, 31), "next month"),
        (datetime(9999, 12, 31), "next year"),
        (datetime(9999, 12, 31), "in 5 years"),
    ],
)
def test_a_date_outside_the_calendar_is_not_written(at: datetime, phrase: str) -> None:
    assert absolute_dates(phrase, at) == phrase


def test_the_calendars_ends_themselves_can_be_written() -> None:
    assert absolute_dates("today", datetime(1, 1, 1)) == "today (1 January 1)"
    assert absolute_dates("tomorrow", datetime(9999, 12, 30)) == "tomorrow (31 December 9999)"


WORDS = """the day before after yesterday tomorrow today tonight last next this past coming in ago a an two couple of
half 12 3 days week weeks weekend month year summer friday monday night morning ( ) ' ’ - . , é ſ ı"""
PIECES = st.sampled_from(["\n", *WORDS.split()])


@settings(max_examples=400, deadline=None)
@given(
    words=st.lists(PIECES | st.text(max_size=4), max_size=14),
    gap=st.sampled_from([" ", "", "  "]),
    at=st.datetimes(),
)
@example(words=["yesterday", "before", "yesterday"], gap=" ", at=datetime(2000, 1, 1))
def test_writing_dates_twice_changes_nothing_and_no_word_is_lost(words: list[str], gap: str, at: datetime) -> None:
    text = gap.join(words)
    once = absolute_dates(text, at)
    assert absolute_dates(once, at) == once
    rest = iter(once)
    assert all(character in rest for character in text)  # the text is left in order, with dates put in between


@pytest.mark.parametrize(
    "piece",
    [
        "last ",
        "the day before ",
        "a couple of ",
        "in in ",
        "1 ",
        "yesterday ",
        "this past ",
        "yesterday" + 90 * " ",
        "(",
    ],
)
def test_a_long_hostile_text_takes_time_in_proportion(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    dated = absolute_dates(text, WEDNESDAY)
    assert len(dated) >= len(text)
    assert time.process_time() - began < 2  # a few hundredths here; a quadratic pattern would need minutes


def test_whitespace_without_end_behind_a_phrase_is_looked_through_once() -> None:
    text = "yesterday" + " " * 200_000 + "("
    began = time.process_time()
    assert absolute_dates(text, WEDNESDAY) == text
    assert time.process_time() - began < 2


def test_a_day_is_written_as_people_write_it() -> None:
    assert day(datetime(2023, 5, 7, 23, 59)) == "7 May 2023"
