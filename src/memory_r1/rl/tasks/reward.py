"""What an answer earns, and a bank: small pure functions, and a judge where one is asked for.

Token F1 alone is not a good teacher for a small model: it pays a third for any date of the right year, and the policy
learns to print dates (docs/training.md). `typed` pays dates, numbers, yes/no and lists by equality.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

from memory_r1.bench import metrics
from memory_r1.bench.judge import Answered, Judge
from memory_r1.errors import InputError

RewardName = Literal["typed", "f1", "em", "mix", "judge"]

Earn = Callable[[Sequence[Answered]], list[float]]
"""What answers earn, each in [0, 1], in order; a reward that asks a model asks it for all of them at once."""


def em(answer: str, gold: str) -> float:
    """1 where the normalised strings are equal (Memory-R1's reward), else 0."""
    return metrics.exact_match(answer, gold)


def f1(answer: str, gold: str) -> float:
    """Token F1, stemmed, articles dropped."""
    return metrics.f1_locomo(answer, gold)


def typed(answer: str, gold: str) -> float:
    """Dates, numbers, yes/no and lists by equality, the rest by token F1."""
    return metrics.typed(answer, gold)


def mix(answer: str, gold: str) -> float:
    """The mean of typed and em: graded, with a bonus for getting it exactly."""
    return (typed(answer, gold) + em(answer, gold)) / 2


def retention(evidence: Collection[str], learnt_from: Iterable[Iterable[str]]) -> float:
    """The share of evidence turns that a live entry was learnt from, 1 where there is none.

    1 less Memory-R2's M-Fail (arXiv 2605.21768).

    Args:
        evidence: turn ids.
        learnt_from: the turn ids of each live entry.
    """
    kept = {turn_id for turn_ids in learnt_from for turn_id in turn_ids}
    return len(kept.intersection(evidence)) / len(evidence) if evidence else 1.0


def surplus(bank_words: int, dialogue_words: int, free: float = 0.7) -> float:
    """What a bank holds beyond `free` times the dialogue it was made from, as a share of the dialogue; 0 for less.

    max(0, c - 0.7 C) / C: Memory-R2, arXiv 2605.21768.
    """
    return max(0.0, bank_words - free * dialogue_words) / dialogue_words if dialogue_words else 0.0


def each(reward: Callable[[str, str], float]) -> Earn:
    """A pure function of (answer, gold) as the reward of many."""
    return lambda answered: [reward(one.answer, one.gold) for one in answered]


def judged(judge: Judge) -> Earn:
    """1 where the judge finds the answer correct, else 0; raises PolicyError where it gives no verdict."""
    return lambda answered: [float(correct) for correct in judge.verdicts(answered)]


def earned(earn: Earn, answered: Sequence[Answered]) -> list[float]:
    """What answers earn, of which an empty one earns 0, and nobody is asked about it."""
    of_written = iter(earn([one for one in answered if one.answer]))
    return [next(of_written) if one.answer else 0.0 for one in answered]


def answer_reward(name: RewardName, judge: Judge | None = None) -> Earn:
    """The reward of this name; raises InputError for "judge" without one."""
    if name == "judge":
        if judge is None:
            raise InputError("the reward is judge, and there is none: name its model (--judge-model)")
        return judged(judge)
    rewards: dict[RewardName, Callable[[str, str], float]] = {"typed": typed, "f1": f1, "em": em, "mix": mix}
    return each(rewards[name])
