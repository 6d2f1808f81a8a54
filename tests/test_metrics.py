"""The published measures against numbers worked by hand and against their own libraries."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.bench.metrics import (
    bleu1,
    exact_match,
    exact_match_strip,
    f1_locomo,
    f1_mem0,
    groundedness,
    typed,
)

Metric = Callable[[str, str], float]
METRICS: list[Metric] = [exact_match, exact_match_strip, f1_mem0, f1_locomo, bleu1, typed]

words = st.text(st.sampled_from("abcde .,!'-"), max_size=40)
vocabulary = ["the", "a", "dog", "dogs", "ran", "May", "7", "2023", "yes", "no", "Luna,", "Max", "and", "4 years"]
phrases = st.lists(st.sampled_from(vocabulary), max_size=10).map(" ".join)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prediction", ["", "  \n"])
def test_an_empty_prediction_scores_zero(metric: Metric, prediction: str) -> None:
    for gold in ("7 May 2023", "4 years", "No", "Luna, Max", "art", ""):
        assert metric(prediction, gold) == 0.0


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None)  # the first BLEU imports nltk
@given(prediction=phrases, gold=phrases)
def test_every_score_lies_between_zero_and_one(metric: Metric, prediction: str, gold: str) -> None:
    assert 0.0 <= metric(prediction, gold) <= 1.0


def test_exact_match_forgives_case_articles_and_punctuation() -> None:
    assert exact_match("The  Dog!", "a dog") == 1.0
    assert exact_match("dogs", "dog") == 0.0


def test_exact_match_strip_forgives_only_case_and_outer_spaces() -> None:
    assert exact_match_strip(" The Dog\n", "the dog") == 1.0
    assert exact_match_strip("The Dog!", "the dog") == 0.0


def test_f1_mem0_compares_sets_of_words() -> None:
    # {29, june, 2023} and {28, january, 2023} share the year: P = R = 1/3
    assert f1_mem0("29 June, 2023", "28 January 2023") == pytest.approx(1 / 3)
    # a repeated word counts once: {dog, cat} and {dog}: P = 1/2, R = 1
    assert f1_mem0("dog dog cat", "dog") == pytest.approx(2 / 3)
    # only . , ! ? are read as spaces
    assert f1_mem0("(dog)", "dog") == 0.0


def test_f1_locomo_compares_multisets_of_stems() -> None:
    # [dog, dog, cat] and [dog]: P = 1/3, R = 1
    assert f1_locomo("dogs, dog, and the cat", "a dog") == pytest.approx(1 / 2)
    assert f1_locomo("running", "runs") == 1.0
    # commas vanish without a space, as in the official code
    assert f1_locomo("red,blue", "redblue") == 1.0


def test_f1_locomo_of_category_1_averages_over_the_golds_parts() -> None:
    # "pottery" finds its part (1), "camping trip" is met half: P = 1, R = 1/2, so 2/3
    assert f1_locomo("camping, pottery", "pottery, camping trip", "1") == pytest.approx((1 + 2 / 3) / 2)
    # unsplit: [camp, potteri] and [potteri, camp, trip]: P = 1, R = 2/3
    assert f1_locomo("camping, pottery", "pottery, camping trip") == pytest.approx(4 / 5)


def test_f1_locomo_of_category_3_keeps_the_gold_before_the_semicolon() -> None:
    assert f1_locomo("Likely no", "Likely no; since this one went badly", "3") == 1.0
    assert f1_locomo("Likely no", "Likely no; since this one went badly", "4") < 1.0


def test_f1_locomo_of_category_5_asks_for_the_official_phrases() -> None:
    assert f1_locomo("It is not mentioned.", "whatever", "5") == 1.0
    assert f1_locomo("No information available", "whatever", "5") == 1.0
    assert f1_locomo("self-care", "whatever", "5") == 0.0


@pytest.mark.parametrize("metric", [f1_mem0, f1_locomo])
@settings(deadline=None)  # the first BLEU imports nltk
@given(a=words, b=words)
def test_f1_is_symmetric(metric: Metric, a: str, b: str) -> None:
    assert metric(a, b) == pytest.approx(metric(b, a))


@pytest.mark.parametrize("metric", [f1_mem0, f1_locomo, bleu1])
def test_nothing_in_common_scores_zero(metric: Metric) -> None:
    assert metric("green tea", "a red bicycle") == 0.0


def test_bleu1_clips_repeats_and_punishes_brevity() -> None:
    # "the" is credited once of three times; no brevity penalty
    assert bleu1("the the the", "the cat") == pytest.approx(1 / 3)
    # precision 1, penalty exp(1 - 4/2)
    assert bleu1("red bicycle", "a red bicycle bell") == pytest.approx(math.exp(-1))
    # 2 of 3 tokens, equal length
    assert bleu1("7 May 2022", "7 May 2023") == pytest.approx(2 / 3)


@settings(deadline=None)  # the first BLEU imports nltk
@given(words, words)
def test_bleu1_equals_nltks(prediction: str, gold: str) -> None:
    from nltk.tokenize import word_tokenize
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    ours, golds = (word_tokenize(text.lower(), preserve_line=True) for text in (prediction, gold))
    expected = sentence_bleu([golds], ours, weights=(1, 0, 0, 0), smoothing_function=SmoothingFunction().method1)
    assert bleu1(prediction, gold) == pytest.approx(float(expected))


def test_groundedness_is_the_share_of_content_words_found() -> None:
    # content words: pottery, camping, lake; stems of the first two occur
    assert groundedness("pottery and camping at the lake", ["She camped.", "Melanie's pottery"]) == pytest.approx(2 / 3)
    assert groundedness("7 May 2023", ["7 May 2023: she went to a support group"]) == 1.0


def test_groundedness_is_zero_without_content_words_or_without_texts() -> None:
    assert groundedness("yes, she was", ["she was"]) == 0.0
    assert groundedness("pottery", []) == 0.0
