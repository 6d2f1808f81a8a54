"""What an answer earns: small pure functions of the answer and the gold, nothing else.

Token F1 alone is not a good teacher for a small model: it pays a third for any date of the right year, and the policy
learns to print dates (docs/training.md). `typed` pays dates, numbers, yes/no and lists by equality.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from memory_r1.bench import metrics

RewardName = Literal["typed", "f1", "em", "mix"]


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


def answer_reward(name: RewardName) -> Callable[[str, str], float]:
    """The reward function of this name: (answer, gold) -> [0, 1]."""
    rewards: dict[RewardName, Callable[[str, str], float]] = {"typed": typed, "f1": f1, "em": em, "mix": mix}
    return rewards[name]
