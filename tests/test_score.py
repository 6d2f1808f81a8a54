"""Scores of predictions, their means with intervals, and paired differences."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from typing import Literal

import numpy as np
import pytest
from rich.console import Console

from memory_r1.bank.operation import Entry
from memory_r1.bench.score import (
    ANSWER_METRICS,
    Prediction,
    bootstrap,
    evidence_recall_at,
    paired_difference,
    render,
    score,
    summarise,
)
from memory_r1.dialogue import Question
from memory_r1.errors import InputError

KITE = Entry("e1", "Ada flew a red kite", said_at=datetime(2023, 5, 7), turn_ids=("D1:1",))
CATS = Entry("e2", "Ben has two cats", turn_ids=("D1:2", "D1:3"))
ROME = Entry("e3", "Ada was in Rome", turn_ids=("D9:9",))


def predicted(
    answer: str,
    gold: str = "7 May 2023",
    *,
    name: str = "q1",
    category: str = "2",
    evidence: tuple[str, ...] = ("D1:1", "D1:2"),
    failure: str | None = None,
    rules: Literal["plain", "locomo"] = "locomo",
) -> Prediction:
    question = Question(name, "conv-1", "When?", gold, category, evidence, rules=rules)
    return Prediction(question, answer, (KITE, CATS, ROME), (KITE, ROME), 100, 1, 0.5, failure)


def test_a_right_answer_scores_one_throughout() -> None:
    scores = score(predicted("7 May 2023"))
    assert {name: scores[name] for name in ANSWER_METRICS} == dict.fromkeys(ANSWER_METRICS, 1.0)


def test_groundedness_sees_the_date_of_a_distilled_entry() -> None:
    assert score(predicted("red kite, 7 May 2023"))["groundedness"] == 1.0
    assert score(predicted("two cats"))["groundedness"] == 0.0  # retrieved, but not distilled


def test_evidence_scores_count_turns_and_distilled_entries() -> None:
    scores = score(predicted("7 May 2023"))
    assert scores["evidence_recall"] == 1.0
    assert scores["distilled_recall"] == 0.5
    assert scores["distilled_precision"] == 0.5
    assert score(replace(predicted("x"), distilled=()))["distilled_precision"] == 0.0


def test_a_question_without_evidence_has_no_evidence_scores() -> None:
    assert set(score(predicted("7 May 2023", evidence=()))) == set(ANSWER_METRICS)


def test_a_failure_scores_zero_and_is_counted() -> None:
    failed = predicted("7 May 2023", failure="the reply did not parse")
    assert {score(failed)[name] for name in ANSWER_METRICS} == {0.0}
    summary = summarise([failed, predicted("7 May 2023", name="q2")])
    assert summary.overall.failures == 1
    assert summary.overall.metrics["exact_match"].mean == 0.5


def test_the_category_of_a_question_chooses_its_locomo_f1() -> None:
    assert score(predicted("no", "no; she moved", category="3"))["f1_locomo"] == 1.0
    assert score(predicted("no", "no; she moved", category="4"))["f1_locomo"] == 0.5


def test_a_users_own_category_named_like_locomos_has_no_rules() -> None:
    assert score(predicted("Paris", "Paris", category="5", rules="plain"))["f1_locomo"] == 1.0
    assert score(predicted("no", "no; she moved", category="3", rules="plain"))["f1_locomo"] == 0.5


def test_means_are_over_questions_and_by_category() -> None:
    summary = summarise(
        [
            predicted("7 May 2023", name="q1", category="2"),
            predicted("8 May 2023", name="q2", category="2"),
            predicted("8 May 2023", name="q3", category="2", evidence=()),
            predicted("7 May 2023", name="q4", category="house"),
        ]
    )
    assert [(group.category, group.name, group.n) for group in summary.categories] == [
        ("2", "temporal", 3),
        ("house", "house", 1),
    ]
    assert summary.categories[0].metrics["typed"].mean == pytest.approx(1 / 3)
    assert summary.overall.metrics["typed"].mean == 0.5
    assert summary.overall.metrics["evidence_recall"].n == 3


def test_costs_and_latencies_are_summarised() -> None:
    base = predicted("7 May 2023")
    runs = [replace(base, context_tokens=tokens, model_calls=2, latency_s=tokens / 100) for tokens in (100, 200, 300)]
    overall = summarise(runs).overall
    assert (overall.context_tokens, overall.model_calls, overall.latency_p50_s) == (200.0, 2.0, 2.0)
    assert overall.latency_p95_s == pytest.approx(2.9)


def test_a_summary_is_ready_for_json() -> None:
    summary = summarise([predicted("7 May 2023")], resamples=10)
    read = json.loads(json.dumps(summary.as_dict(), allow_nan=False))
    assert read["overall"]["metrics"]["typed"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 1}


def test_the_same_seed_gives_the_same_intervals() -> None:
    runs = [predicted(answer, name=str(n)) for n, answer in enumerate(["7 May 2023", "2023", "May 2023"] * 5)]
    assert summarise(runs, seed=3) == summarise(runs, seed=3)


def test_the_interval_of_a_constant_sample_has_no_width() -> None:
    estimate = bootstrap([0.25] * 40)
    assert estimate.low == estimate.mean == estimate.high == 0.25


def test_the_interval_covers_a_known_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        estimate = bootstrap(list(rng.uniform(size=60)), seed=seed, resamples=400)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 180 <= covered <= 198  # 95 % of 200 is 190


def test_nothing_to_summarise_is_refused() -> None:
    with pytest.raises(InputError, match="no predictions"):
        summarise([])


def test_a_paired_difference_is_a_minus_b_on_the_same_question() -> None:
    right = [predicted("7 May 2023", name=f"q{n}") for n in range(4)]
    wrong = [predicted("8 May 2023", name=f"q{n}") for n in reversed(range(4))]
    ahead = paired_difference(right, wrong, "typed")
    assert (ahead.mean, ahead.low, ahead.high, ahead.n) == (1.0, 1.0, 1.0, 4)
    assert paired_difference(wrong, right, "typed").mean == -1.0


def test_a_paired_difference_needs_the_same_questions_and_a_known_metric() -> None:
    one, other = [predicted("x", name="q1")], [predicted("x", name="q2")]
    with pytest.raises(InputError, match=r"\['q1', 'q2'\]"):
        paired_difference(one, other, "typed")
    with pytest.raises(InputError, match="once"):
        paired_difference(one * 2, one, "typed")
    with pytest.raises(InputError, match=r"unknown metric 'f1'.*f1_locomo"):
        paired_difference(one, one, "f1")


def test_evidence_recall_at_k_searches_once_for_every_k() -> None:
    asked: list[int] = []

    def search(question: Question, k: int) -> list[Entry]:
        asked.append(k)
        return [ROME, KITE, CATS][:k]

    questions = [predicted("x").question, predicted("x", evidence=()).question]
    assert evidence_recall_at(search, questions, ks=(1, 2, 3)) == {1: 0.0, 2: 0.5, 3: 1.0}
    assert asked == [1, 2, 3]
    with pytest.raises(InputError, match="none of the 1 questions has evidence"):
        evidence_recall_at(search, questions[1:])


def test_the_table_names_category_id_and_n_and_shows_intervals() -> None:
    summary = summarise([predicted("7 May 2023", category="1"), predicted("7 May 2023", name="q2", category="house")])
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(render(summary, "LoCoMo val"))
    text = console.export_text()
    assert "LoCoMo val" in text
    assert "1 multi-hop" in text
    assert "house house" not in text
    assert "100.0 [100.0, 100.0]" in text


def test_scoring_does_not_load_a_model_library() -> None:
    code = "import sys, memory_r1.bench.score; print(sorted({'torch', 'transformers', 'nltk'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
