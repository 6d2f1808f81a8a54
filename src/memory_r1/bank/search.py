"""Ranking live versions for a question: BM25, exact cosine, and the two merged (fusion.py has how).

The score of a row depends on the visible rows alone, never on what was closed, on other scopes or on forks: which
rows may be seen is settled first (Log.live_rows), and every statistic is taken over those. Of equals, the older leads.
Left out: an index of nearest neighbours; an exact scan of 100,000 rows takes milliseconds, and for many more there is
a first pass over signs (signs.py), off unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from memory_r1.bank.column import Bools, Floats, Rows
from memory_r1.bank.fusion import LEADERS, Ranking, fuse
from memory_r1.bank.log import Log, Segment
from memory_r1.bank.operation import Entry
from memory_r1.bank.signs import nearest
from memory_r1.bank.words import Words

# Chosen on LoCoMo conv-26 and conv-30 by evidence recall of their raw turns. k1 from 0.6 to 1.2 and b from 0.2 to 0.6
# do about as well.
BM25_K1 = 0.9
BM25_B = 0.4

# Below, the exact scan is about as fast. Of the exact best 100 for a LoCoMo question among 300,000 to a million
# entries, the 10,000 nearest by signs hold 99.5 to 99.8 % (benchmarks/first_pass.py).
FIRST_PASS_ROWS = 200_000
FIRST_PASS_WANTED = 10_000


class SearchMode(StrEnum):
    """How entries are ranked."""

    HYBRID = "hybrid"
    DENSE = "dense"
    BM25 = "bm25"


@dataclass(frozen=True)
class Hit:
    """An entry found: `score` is BM25, cosine or the fused score, by the mode asked for; higher is better."""

    entry: Entry
    score: float


def searchable(text: str, speaker: str | None) -> str:
    """What is indexed and embedded for an entry: its speaker's name is a strong cue in questions about people."""
    return f"{speaker}: {text}" if speaker else text


def index_words(segments: Sequence[Segment], words: Words) -> None:
    """Bring the inverted index of every segment up to the rows that are seen."""
    for segment in segments:
        postings = segment.log.postings
        openings = segment.log.openings(segment.start + len(postings), segment.stop)
        postings.extend(words.terms(searchable(said.text, said.speaker)) for said in openings)


def bm25_scores(segments: Sequence[Segment], terms: Sequence[str], visible: Bools) -> Floats:
    """Score every row, (rows,); 0 where no term occurs or the row is not visible.

    sum over the distinct query terms of idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean length)),
    idf = ln(1 + (N - n + 0.5) / (n + 0.5)): Robertson and Zaragoza 2009, with the never-negative idf of Lucene.
    """
    scores = np.zeros(len(visible), dtype=np.float32)
    total = int(visible.sum())
    mean_length = _mean_length(segments, visible, total)
    for term in dict.fromkeys(terms):
        found = [_occurrences(segment, term, visible) for segment in segments]
        documents = sum(len(rows) for rows, _, _ in found)
        idf = np.float32(np.log(1 + (total - documents + 0.5) / (documents + 0.5)))
        for rows, counts, lengths in found:
            damping = BM25_K1 * (1 - BM25_B + BM25_B * lengths / mean_length)
            scores[rows] += idf * counts * (BM25_K1 + 1) / (counts + damping)
    return scores


def _mean_length(segments: Sequence[Segment], visible: Bools, total: int) -> float:
    lengths = sum(
        float(segment.log.postings.lengths[: segment.rows] @ visible[segment.start : segment.stop])
        for segment in segments
    )
    return lengths / total if lengths else 1.0


def _occurrences(segment: Segment, term: str, visible: Bools) -> tuple[Rows, Floats, Floats]:
    """The visible rows of a segment that hold the term, its count in each, and their lengths."""
    documents, counts = segment.log.postings.of(term, segment.rows)
    seen = visible[segment.start + documents]
    documents, counts = documents[seen], counts[seen]
    return segment.start + documents.astype(np.int64), counts, segment.log.postings.lengths[documents]


def bm25_ranking(segments: Sequence[Segment], terms: Sequence[str], visible: Bools, depth: int) -> Ranking:
    """The best `depth` visible rows that hold any of the terms."""
    scores = bm25_scores(segments, terms, visible)
    rows = np.flatnonzero(scores > 0)
    rows = rows[_leading(scores[rows], depth)]
    return _best(rows, scores[rows], depth)


def dense_ranking(
    segments: Sequence[Segment], query: Floats, visible: Bools, depth: int, approximate: bool = False
) -> Ranking:
    """The best `depth` visible rows by the cosine of their vectors (unit length) with the query's (D,).

    With `approximate`, of very many rows only those are scored whose signs are near the query's; see signs.py.
    """
    rows = np.flatnonzero(visible)
    if approximate and len(rows) >= FIRST_PASS_ROWS:
        distances = np.concatenate([segment.log.signs.distances(query, segment.rows) for segment in segments])
        rows = nearest(distances, rows, max(FIRST_PASS_WANTED, len(rows) // 100, 20 * depth))
        scores = _vectors_of(segments, rows) @ query
    else:
        scores = np.concatenate([segment.vectors @ query for segment in segments])[rows]
    # A matrix product may round equal vectors differently by their place: leaders are scored again, each by itself.
    rows = rows[_leading(scores, depth, slack=1e-5)]
    return _best(rows, (_vectors_of(segments, rows) * query).sum(axis=1), depth)


def _vectors_of(segments: Sequence[Segment], rows: Rows) -> Floats:
    """The vectors of these ascending rows, (N, D)."""
    return np.concatenate([segment.vectors[segment.places(rows)] for segment in segments])


def _leading(scores: Floats, depth: int, slack: float = 0.0) -> Rows:
    """The places of all scores that reach the depth-th best one, less `slack`, ascending."""
    if len(scores) <= depth:
        return np.arange(len(scores))
    threshold = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    return np.flatnonzero(scores >= threshold - slack)


def _best(rows: Rows, scores: Floats, depth: int) -> Ranking:
    """Best first; `rows` ascend, so that a stable sort puts the older of equals first."""
    order = np.argsort(-scores, kind="stable")[:depth]
    return rows[order], scores[order]


class Searcher:
    """Ranks the rows of a log; keeps the stems it learnt, for the log and all its branches. Not thread-safe."""

    def __init__(self, approximate: bool = False) -> None:
        """`approximate`: whether a dense search of very many rows looks at their signs first; see signs.py."""
        self._words = Words()
        self._approximate = approximate

    def ranked(
        self, log: Log, text: str, query: Floats | None, k: int, speaker: str | None, mode: SearchMode
    ) -> list[Hit]:
        """The k best rows as hits; `query` is the text's vector (D,), None in mode bm25."""
        visible = log.live_rows(speaker)
        if not visible.any():
            return []
        rows, scores = self._ranking(log, text, query, visible, k, mode)
        return [Hit(log.entry(row), score) for row, score in zip(rows[:k].tolist(), scores[:k].tolist(), strict=True)]

    def _ranking(self, log: Log, text: str, query: Floats | None, visible: Bools, k: int, mode: SearchMode) -> Ranking:
        segments = [segment for segment in log.segments if segment.rows]
        if mode is SearchMode.BM25:
            return self._lexical(segments, text, visible, k)
        assert query is not None
        if mode is SearchMode.DENSE:
            return dense_ranking(segments, query, visible, k, self._approximate)
        depth = max(LEADERS, k)
        lexical = self._lexical(segments, text, visible, depth)
        dense = dense_ranking(segments, query, visible, depth, self._approximate)
        return fuse(log, np.flatnonzero(visible), lexical, dense, self._names(text))

    def _lexical(self, segments: Sequence[Segment], text: str, visible: Bools, depth: int) -> Ranking:
        index_words(segments, self._words)
        return bm25_ranking(segments, self._words.terms(text), visible, depth)

    def _names(self, text: str) -> Callable[[str], bool]:
        """Whether a text names a speaker: by one word of the name, stop words such as "will" apart."""
        terms = set(self._words.terms(text))
        return lambda speaker: not terms.isdisjoint(self._words.terms(speaker))
