"""From predictions to a table: the measures of each, their means with bootstrap intervals, and paired differences.

All means are micro averages: over questions, never over categories or conversations. A failed prediction scores 0 and
is also counted. Left out: running the agents (bench/run.py) and the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from memory_r1.bank.operation import Entry
from memory_r1.bench import metrics
from memory_r1.bench.locomo import CATEGORY_NAMES
from memory_r1.dialogue import Question
from memory_r1.errors import InputError
from memory_r1.memory.dates import day

Floats = NDArray[np.float64]

ANSWER_METRICS = ("exact_match", "typed", "f1_mem0", "f1_locomo", "bleu1", "groundedness")
EVIDENCE_METRICS = ("evidence_recall", "distilled_recall", "distilled_precision")


@dataclass(frozen=True)
class Prediction:
    """What a system answered, and what it cost.

    answer          "" when it failed
    retrieved       entries found for the question, best first
    distilled       those of them that the answer agent kept
    context_tokens  prompt tokens of the answer
    model_calls     language model calls for this question
    latency_s       seconds from question to answer
    failure         why there is no answer, or None
    reply           the raw completion
    well_formed     whether the reply kept the format; one that did not is taken whole as the answer
    """

    question: Question
    answer: str
    retrieved: tuple[Entry, ...]
    distilled: tuple[Entry, ...]
    context_tokens: int
    model_calls: int
    latency_s: float
    failure: str | None
    reply: str = ""
    well_formed: bool = True


def score(prediction: Prediction) -> dict[str, float]:
    """Every measure of one prediction, in [0, 1].

    The answer metrics are 0 for a failure. `groundedness` looks at the distilled entries, each with its date written
    out. `evidence_recall` and `distilled_recall` are the shares of the question's evidence turns that some retrieved
    (distilled) entry was learnt from; `distilled_precision` is the share of distilled entries that were learnt from an
    evidence turn, 0 if none was distilled. These three are left out for questions without evidence.
    """
    scores = dict.fromkeys(ANSWER_METRICS, 0.0) if prediction.failure else _answer_scores(prediction)
    evidence = prediction.question.evidence
    if not evidence:
        return scores
    grounded = [entry for entry in prediction.distilled if set(evidence).intersection(entry.turn_ids)]
    return {
        **scores,
        "evidence_recall": _recall(evidence, prediction.retrieved),
        "distilled_recall": _recall(evidence, prediction.distilled),
        "distilled_precision": len(grounded) / len(prediction.distilled) if prediction.distilled else 0.0,
    }


def _answer_scores(prediction: Prediction) -> dict[str, float]:
    answer, gold = prediction.answer, prediction.question.answer
    category = prediction.question.category if prediction.question.rules == "locomo" else None
    return {
        "exact_match": metrics.exact_match(answer, gold),
        "typed": metrics.typed(answer, gold),
        "f1_mem0": metrics.f1_mem0(answer, gold),
        "f1_locomo": metrics.f1_locomo(answer, gold, category),
        "bleu1": metrics.bleu1(answer, gold),
        "groundedness": metrics.groundedness(answer, map(_dated, prediction.distilled)),
    }


def _dated(entry: Entry) -> str:
    return f"{day(entry.said_at)}: {entry.text}" if entry.said_at else entry.text


def _recall(evidence: Sequence[str], entries: Sequence[Entry]) -> float:
    wanted = set(evidence)
    found = {turn_id for entry in entries for turn_id in entry.turn_ids}
    return len(wanted & found) / len(wanted)


# ---- many predictions


@dataclass(frozen=True)
class Estimate:
    """A mean over n questions with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class CategorySummary:
    """The predictions of one category, or all of them.

    failures   questions without an answer, which score 0; malformed: replies that left the format
    metrics    by name; a metric that no question of the category has is not there
    means of context_tokens and model_calls; latency_p50_s and latency_p95_s in seconds
    """

    category: str
    name: str
    n: int
    failures: int
    malformed: int
    metrics: Mapping[str, Estimate]
    context_tokens: float
    model_calls: float
    latency_p50_s: float
    latency_p95_s: float


@dataclass(frozen=True)
class Summary:
    """A run: all its predictions, and each category, by id."""

    overall: CategorySummary
    categories: tuple[CategorySummary, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return {"overall": asdict(self.overall), "categories": [asdict(group) for group in self.categories]}


def summarise(
    predictions: Sequence[Prediction],
    *,
    seed: int = 0,
    resamples: int = 2000,
    names: Mapping[str, str] = CATEGORY_NAMES,
) -> Summary:
    """Means and 95 % percentile-bootstrap intervals of every metric, overall and by category id.

    The intervals say how much the choice of questions matters, not how much a run differs from the next.

    Args:
        seed, resamples: of the bootstrap; questions are drawn with replacement within each group.
        names: category names by id; an id that is not there is its own name.

    Raises:
        InputError: there are no predictions.
    """
    if not predictions:
        raise InputError("no predictions to summarise, expected at least one")
    scored = [(prediction, score(prediction)) for prediction in predictions]
    categories = sorted({prediction.question.category for prediction in predictions})
    groups = [
        _group(category, names.get(category, category), [s for s in scored if s[0].question.category == category],
               seed, resamples)
        for category in categories
    ]  # fmt: skip
    return Summary(_group("all", "overall", scored, seed, resamples), tuple(groups))


def _group(
    category: str, name: str, scored: Sequence[tuple[Prediction, Mapping[str, float]]], seed: int, resamples: int
) -> CategorySummary:
    predictions = [prediction for prediction, _ in scored]
    latencies = [prediction.latency_s for prediction in predictions]
    return CategorySummary(
        category=category,
        name=name,
        n=len(predictions),
        failures=sum(prediction.failure is not None for prediction in predictions),
        malformed=sum(not prediction.well_formed for prediction in predictions),
        metrics=_estimates([scores for _, scores in scored], seed, resamples),
        context_tokens=float(np.mean([prediction.context_tokens for prediction in predictions])),
        model_calls=float(np.mean([prediction.model_calls for prediction in predictions])),
        latency_p50_s=float(np.percentile(latencies, 50)),
        latency_p95_s=float(np.percentile(latencies, 95)),
    )


def _estimates(scores: Sequence[Mapping[str, float]], seed: int, resamples: int) -> dict[str, Estimate]:
    estimates = {}
    for metric in (*ANSWER_METRICS, *EVIDENCE_METRICS):
        values = [of_one[metric] for of_one in scores if metric in of_one]
        if values:
            estimates[metric] = bootstrap(values, seed=seed, resamples=resamples)
    return estimates


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """The mean of `values` and the 2.5 and 97.5 percentiles of the means of `resamples` draws with replacement.

    Source: Efron, Bootstrap methods: another look at the jackknife, 1979; the percentile interval.

    Raises:
        InputError: there are no values.
    """
    if not values:
        raise InputError("no values to average, expected at least one")
    sample: Floats = np.asarray(values, dtype=np.float64)  # (N,)
    drawn = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.percentile(sample[drawn].mean(axis=1), (2.5, 97.5))
    return Estimate(float(sample.mean()), float(low), float(high), len(sample))


def paired_difference(
    a: Sequence[Prediction], b: Sequence[Prediction], metric: str, *, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """The mean of a's score minus b's on the same question, with its interval; above 0 throughout, a is better.

    Questions that do not have the metric (no evidence) are left out.

    Raises:
        InputError: the two are not about the same questions, or the metric is unknown or on none of them.
    """
    if metric not in (*ANSWER_METRICS, *EVIDENCE_METRICS):
        known = ", ".join((*ANSWER_METRICS, *EVIDENCE_METRICS))
        raise InputError(f"unknown metric {metric!r}, expected one of: {known}")
    ours, theirs = ({prediction.question.id: score(prediction) for prediction in side} for side in (a, b))
    if ours.keys() != theirs.keys() or not len(a) == len(b) == len(ours):
        odd = sorted(ours.keys() ^ theirs.keys())
        raise InputError(
            f"got {len(a)} and {len(b)} predictions, {len(odd)} of their questions in one list only {odd[:3]}, "
            "expected both to answer each of the same questions once"
        )
    pairs = [(ours[name], theirs[name]) for name in ours if metric in ours[name]]
    return bootstrap([one[metric] - other[metric] for one, other in pairs], seed=seed, resamples=resamples)


def evidence_recall_at(
    bank_search: Callable[[Question, int], list[Entry]],
    questions: Sequence[Question],
    ks: Sequence[int] = (5, 10, 20, 30, 60),
) -> dict[int, float]:
    """The mean evidence recall of retrieval alone, for each k, over the questions that have evidence.

    `bank_search(question, k)` is called for every k: a search per speaker is no prefix of a longer one.

    Raises:
        InputError: no question has evidence.
    """
    asked = [question for question in questions if question.evidence]
    if not asked:
        raise InputError(f"none of the {len(questions)} questions has evidence, so there is no recall to measure")
    return {k: float(np.mean([_recall(q.evidence, bank_search(q, k)) for q in asked])) for k in ks}


def render(summary: Summary, title: str) -> Table:
    """A table of the summary, a column per category id and one overall; scores x100 with [low, high]."""
    table = Table(title=title, caption="x100, with 95 % bootstrap intervals over questions; failures score 0")
    table.add_column("")
    groups = [summary.overall, *summary.categories]
    for group in groups:
        table.add_column(f"{_label(group)}\nn={group.n}", justify="right")
    for metric in (*ANSWER_METRICS, *EVIDENCE_METRICS):
        if metric in summary.overall.metrics:
            table.add_row(metric, *(_cell(group.metrics.get(metric)) for group in groups))
    table.add_section()
    table.add_row("failures / malformed", *(f"{group.failures} / {group.malformed}" for group in groups))
    table.add_row("context tokens", *(f"{group.context_tokens:.0f}" for group in groups))
    table.add_row("model calls", *(f"{group.model_calls:.1f}" for group in groups))
    table.add_row("latency p50/p95 s", *(f"{group.latency_p50_s:.2f}/{group.latency_p95_s:.2f}" for group in groups))
    return table


def _label(group: CategorySummary) -> str:
    return group.name if group.category in (group.name, "all") else f"{group.category} {group.name}"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    return f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
