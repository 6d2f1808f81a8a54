"""Merging the lexical and the dense ranking of a hybrid search, with what neither of them sees.

    own    = 0.6 * lexical share + 0.4 * dense share       how well a row itself fits the question
    lent   = the best of 0.7^distance * own over the rows at most 3 places away in the same session
    score  = (own + lent) * 1.5 where the question names the row's speaker, else own + lent

A share is a score's place between nothing (0) and the ranking's best (1): unlike a rank it keeps how far the first is
ahead of the second. A row borrows from its neighbours because what is asked in one turn is answered in the next, often
without a word in common with the question. Who speaks matters because a dialogue is full of the other one's name
("Thanks, Ann!"). Left out, since they did not raise recall (docs/log.md): dates, kinds of answers, word pairs,
feedback from the first results.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from memory_r1.bank.column import Floats, Rows
from memory_r1.bank.log import Log

Ranking = tuple[Rows, Floats]
"""Rows, best first, and their scores, (N,) each."""

# Chosen on LoCoMo conv-26 and conv-30 by evidence recall of their raw turns, mean over @5, 10, 20, 30 and 60, and no
# other conversation was looked at. Within 0.6 points of the best: weight 0.6 to 0.7, nearness 0.6 to 0.8, reach 2 and
# more, 1.4 to 2 for the speaker, 150 leaders and more.
LEADERS = 200  # how deep both rankings go, at least
LEXICAL_WEIGHT = 0.6
NEARNESS = 0.7
REACH = 3
NAMED = 1.5
SESSION_GAP_S = 3600  # entries said further apart than this are not of one session


def fuse(log: Log, visible: Rows, lexical: Ranking, dense: Ranking, named: Callable[[str], bool]) -> Ranking:
    """Rank the rows of both rankings, and those near them, by the formula above; of equals, the older leads.

    Args:
        visible: all rows that may be seen, ascending; a row's neighbours are those before and after it here.
        lexical, dense: ranked visible rows; the dense one has at least one.
        named: whether the question names this speaker.
    """
    places, joined = _candidates(log, visible, np.concatenate([lexical[0], dense[0]]))
    rows = visible[places]
    own = LEXICAL_WEIGHT * _placed(rows, lexical, floor=0.0)
    own += (1 - LEXICAL_WEIGHT) * _placed(rows, dense, floor=float(dense[1][-1]))
    lent = np.maximum(_carried(own, joined), _carried(own[::-1], joined[::-1])[::-1])
    scores = (own + lent) * _speaker_factor(log.speakers(rows), named)
    order = np.argsort(-scores, kind="stable")
    return rows[order], scores[order]


def _candidates(log: Log, visible: Rows, leaders: Rows) -> tuple[Rows, Floats]:
    """Where in `visible` the leaders and their neighbours stand, (N,), and 1 where one is joined to the next, (N - 1,).

    Two are joined if nothing visible lies between them and they are of one session; entries without a date never are.
    """
    around = np.searchsorted(visible, leaders)[:, None] + np.arange(-REACH, REACH + 1)
    near = np.zeros(len(visible), dtype=np.bool_)
    near[np.clip(around, 0, len(visible) - 1)] = True
    places = np.flatnonzero(near)
    said_at = log.said_at(visible[places])  # NaN is near nothing
    joined = (np.diff(places) == 1) & (np.abs(np.diff(said_at)) <= SESSION_GAP_S)
    return places, joined.astype(np.float32)


def _placed(rows: Rows, ranking: Ranking, floor: float) -> Floats:
    """The shares of a ranking at these ascending rows, (N,); 0 for rows that it does not have."""
    placed = np.zeros(len(rows), dtype=np.float32)
    placed[np.searchsorted(rows, ranking[0])] = shares(ranking[1], floor)
    return placed


def shares(scores: Floats, floor: float) -> Floats:
    """Where descending scores stand between `floor` and the first of them, in [0, 1], (N,); all 1 if none is above."""
    if not len(scores) or scores[0] <= floor:
        return np.ones_like(scores)
    placed: Floats = (scores - np.float32(floor)) / (scores[0] - np.float32(floor))
    return placed


def _carried(own: Floats, joined: Floats) -> Floats:
    """The most that rows at most REACH places before it lend to each row, (N,)."""
    carried = np.zeros_like(own)
    for _ in range(REACH):
        carried[1:] = NEARNESS * joined * np.maximum(own, carried)[:-1]
    return carried


def _speaker_factor(speakers: list[str | None], named: Callable[[str], bool]) -> Floats:
    factors = {speaker: NAMED if speaker and named(speaker) else 1.0 for speaker in set(speakers)}
    return np.array([factors[speaker] for speaker in speakers], dtype=np.float32)
