"""A look at the policy during training: the reward of greedy replies to val, and a few replies to read over time.

The replies shown are always those to the same few episodes. Left out: when to look (loop.py), and the page on which
they are read (report.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from memory_r1.policy.base import Completion, Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.rollout import Scorer
from memory_r1.rl.types import Episode, Reward

Item = TypeVar("Item")

TAIL = 600  # characters: of a prompt, its question and the nearest entries


@dataclass(frozen=True)
class Sample:
    """A reply to read: what was asked, what was written, and what it earned. All texts are untrusted.

    prompt  the end of the prompt's last message
    """

    episode: str
    prompt: str
    reply: str
    reward: float
    finish: str


@dataclass(frozen=True)
class Evaluation:
    """What a look found: the metrics, under val/ names and empty without val, and the replies to read."""

    metrics: dict[str, float]
    samples: Sequence[Sample] = ()


def evaluate(
    policy: LocalPolicy,
    val: Sequence[Episode],
    train: Sequence[Episode],
    *,
    shown: int,
    max_tokens: int,
    score: Scorer,
) -> Evaluation:
    """Greedy replies to val, or without val to a few training episodes, which are shown and not counted.

    Args:
        shown: replies kept to read, to episodes spread evenly over val or train.
        max_tokens: longest reply.
        score: what replies earn (rollout.py).
    """
    asked = val or spread(train, shown)
    completions = policy.complete([episode.prompt for episode in asked], Sampling(max_tokens))
    rewards = score(list(zip(asked, completions, strict=True)))
    earned = spread(list(zip(asked, completions, rewards, strict=True)), shown)
    return Evaluation(_means(rewards) if val else {}, [_sample(*one) for one in earned])


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most so many of the items, evenly spaced, the first among them."""
    return [items[i * len(items) // count] for i in range(count)] if count < len(items) else list(items)


def _means(rewards: Sequence[Reward]) -> dict[str, float]:
    parts = sorted({name for reward in rewards for name in reward.parts})
    means = {f"val/{name}": sum(reward.parts[name] for reward in rewards) / len(rewards) for name in parts}
    return {"val/reward": sum(reward.value for reward in rewards) / len(rewards), **means}


def _sample(episode: Episode, completion: Completion, reward: Reward) -> Sample:
    asked = episode.prompt[-1]["content"]
    tail = asked if len(asked) <= TAIL else f"... {asked[-TAIL:]}"
    return Sample(episode.id, tail, completion.text, reward.value, completion.finish)
