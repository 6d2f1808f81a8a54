"""Typed scoring: the right form alone earns nothing."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import real_data
from memory_r1.bench.dates import Span, find_spans, is_date
from memory_r1.bench.locomo import load_locomo
from memory_r1.bench.metrics import AnswerType, answer_type, typed

DAY = "7 May 2023"


def span(first: str, last: str) -> list[Span]:
    return [Span(date.fromisoformat(first), date.fromisoformat(last))]


@pytest.mark.parametrize("text", [DAY, "May 7, 2023", "2023-05-07", "7May, 2023.", "on Sunday, the 7th of May 2023"])
def test_a_day_is_read_in_every_usual_form(text: str) -> None:
    assert find_spans(text) == span("2023-05-07", "2023-05-07")
    assert is_date(text)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2022", "2022-01-01", "2022-12-31"),
        ("May, 2023", "2023-05-01", "2023-05-31"),
        ("Januarty 2024", "2024-01-01", "2024-01-31"),
        ("the summer of 2022", "2022-06-01", "2022-08-31"),
        ("early August, 2023", "2023-08-01", "2023-08-10"),
        ("end of October 2023", "2023-10-21", "2023-10-31"),
        ("first week of May 2023", "2023-05-01", "2023-05-07"),
        ("last week of August 2023", "2023-08-25", "2023-08-31"),
        ("first weekend of August 2023", "2023-08-05", "2023-08-06"),
        ("The week before 3 July 2023", "2023-06-26", "2023-07-02"),
        ("Two weeks before 11 August 2023", "2023-07-28", "2023-08-03"),
        ("The week of 23 August 2023", "2023-08-21", "2023-08-27"),
        ("The Friday before 22 October 2023", "2023-10-20", "2023-10-20"),
        ("Saturday after 27 January, 2023", "2023-01-28", "2023-01-28"),
        ("two weekends before 17 July 2023", "2023-07-08", "2023-07-09"),
        ("The weekend of 24 June, 2022", "2022-06-25", "2022-06-26"),
        ("a few days before November 22, 2023", "2023-11-16", "2023-11-20"),
        ("between October 19 and 24, 2023", "2023-10-19", "2023-10-24"),
        ("between 26 March and 20 April 2023", "2023-03-26", "2023-04-20"),
        ("November 5-6, 2022", "2022-11-05", "2022-11-06"),
        ("the month before June 2023", "2023-05-01", "2023-05-31"),
        ("the year after 2022", "2023-01-01", "2023-12-31"),
    ],
)
def test_a_phrase_becomes_its_interval_of_days(text: str, first: str, last: str) -> None:
    assert find_spans(text) == span(first, last)
    assert is_date(text)


@pytest.mark.parametrize("text", ["31 June 2023", "yesterday", "she may march", "1968 Kustom guitar", "5/7/2023"])
def test_what_is_no_date_is_not_one(text: str) -> None:
    assert not is_date(text)


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        (DAY, AnswerType.DATE),
        ("Since 2016", AnswerType.DATE),
        ("13 August", AnswerType.DATE),
        ("1968 Kustom K-200A vintage guitar", AnswerType.TEXT),
        ("4 years", AnswerType.NUMBER),
        ("twice", AnswerType.NUMBER),
        ("when she was 10", AnswerType.NUMBER),
        ("Two cats and a dog", AnswerType.LIST),
        ("Likely no; since this one went badly", AnswerType.YES_NO),
        ("likely no more than 30; since she's in school", AnswerType.TEXT),
        ("Not tough; keep their area clean", AnswerType.TEXT),
        ("Yesterday", AnswerType.TEXT),
        ('"Nothing is Impossible", "Charlotte\'s Web"', AnswerType.LIST),
        ("Oliver, Luna, Bailey", AnswerType.LIST),
        ("finished her screenplay and printed it", AnswerType.TEXT),
        ("mental health", AnswerType.TEXT),
    ],
)
def test_the_type_follows_the_form_of_the_gold_answer(gold: str, kind: AnswerType) -> None:
    assert answer_type(gold) is kind
    assert typed(gold, gold) == 1.0


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("She went on May 7, 2023.", DAY),
        ("14 July 2023", "The Friday before 15 July 2023"),
        ("the week before 9 June 2023", "The week before 9 June 2023"),
        ("5 June 2023", "June 2023"),
        ("13 August 2023", "13 August"),
        ("four years", "4 years"),
        ("about 4 years", "4 years"),
        ("2", "two times"),
        ("She has three of them", "3"),
        ("Three", "Three dogs."),
        ("10 years old", "when she was 10"),
        ("$10", "ten dollars"),
        ("no", "Likely no; since this one went badly"),
        ("Probably not, she said", "No"),
        ("Luna, Bailey and Oliver", "Oliver, Luna, Bailey"),
        ("purple and red lights", "red and purple lighting"),
        ("Charlotte's Web, Nothing is Impossible", '"Nothing is Impossible", "Charlotte\'s Web"'),
    ],
)
def test_the_same_thing_said_otherwise_scores_one(prediction: str, gold: str) -> None:
    assert typed(prediction, gold) == 1.0


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        ("8 May 2023", DAY),  # some other date of the right form
        ("7 May 2022", DAY),
        ("2023", DAY),  # coarser than the gold
        ("May 2023", DAY),
        ("7 May", DAY),
        ("7 May 2023 or 8 May 2023", DAY),
        (", ".join(f"{day} May 2023" for day in range(1, 32)), DAY),
        ("1 January 2023 to 31 December 2023", DAY),
        ("31-1 May 2023", DAY),  # an empty run of days lies within anything
        ("31 December 2023 to 1 January 2023", DAY),
        ("15 July 2023", "The Friday before 15 July 2023"),
        ("before 20 July 2023", "The Tuesday before 20 July 2023"),
        ("3 years", "4 years"),
        ("4 months", "4 years"),
        ("4", "4 years"),  # four of what
        ("1, 2, 3, 4 years", "4 years"),
        ("1-100", "2"),
        (" ".join(map(str, range(100))), "2"),
        ("2 years", "2"),
        ("3 cats", "Three dogs."),
        ("three times", "Three times a week"),
        ("yes", "No"),
        ("no", "Yes, since she collects classic children's books"),
        ("yes or no", "No"),
        ("yes no", "Yes"),
        ("No information available", "No"),
        ("She does", "Yes"),
    ],
)
def test_a_wrong_date_number_or_side_scores_zero(prediction: str, gold: str) -> None:
    assert typed(prediction, gold) == 0.0


def test_several_dates_must_all_be_the_golds() -> None:
    gold = "7 May 2023 and 9 June 2023"
    assert typed("9 June 2023, 7 May 2023", gold) == 1.0
    assert typed("7 May 2023", gold) == 0.0
    assert typed("7 May 2023, 9 June 2023, 1 July 2023", gold) == 0.0


def test_a_list_is_scored_by_f1_over_its_items() -> None:
    # one of three named, and one that is not there: P = 1/2, R = 1/3
    assert typed("Luna, Max", "Oliver, Luna, Bailey") == pytest.approx(0.4)
    assert typed("Luna Oliver Bailey", "Oliver, Luna, Bailey") == 0.0


def test_text_is_scored_by_token_f1() -> None:
    assert typed("mental illness", "mental health") == pytest.approx(0.5)


days = st.dates(date(1990, 1, 1), date(2030, 12, 31))


@settings(deadline=None)
@given(days, days)
def test_a_day_scores_one_exactly_when_it_is_the_golds(ours: date, gold: date) -> None:
    written = f"{ours:%B} {ours.day}, {ours.year}"
    assert typed(written, f"{gold.day} {gold:%B} {gold.year}") == float(ours == gold)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_as_gold_is_graded_without_an_error(gold: str) -> None:
    assert 0.0 <= typed("7 May 2023, yes, 4 dogs", gold) <= 1.0


def test_every_gold_of_locomo_scores_one_against_itself() -> None:
    golds = {question.answer for question in load_locomo(real_data("locomo10.json")).questions}
    assert [gold for gold in golds if typed(gold, gold) != 1.0] == []
