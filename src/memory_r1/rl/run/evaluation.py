"""A look at the policy during training: the reward of greedy replies to val, and a few replies to read over time.

The replies shown are always those to the same few episodes. Left out: when to look (loop.py), and the page on which
they are read (report/page.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from memory_r1.policy.base import Completion, Sampling
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.rollout import Sampler, Scorer, sample_rollouts
from memory_r1.rl.types import Episode, Reward

Item = TypeVar("Item")

TAIL = 600  # characters: of a prompt, its question and the nearest entries


@dataclass(frozen=True)
class Sample:
    """A reply to read: what was asked, what was written, and what it earned. All texts are untrusted.

    prompt  the end of the (first) prompt's last message
    reply   where there were several decisions, all of them, a blank line between
    finish  "length" where one was cut at the token limit, else "stop"
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
    learner: Learner,
    val: Sequence[Episode],
    train: Sequence[Episode],
    *,
    shown: int,
    max_tokens: int,
    score: Scorer,
    sampler: Sampler | None = None,
) -> Evaluation:
    """Greedy rollouts of val, or without val of a few training episodes, which are shown and not counted.

    Several processes share the episodes, and all of them get the whole evaluation.

    Args:
        shown: rollouts kept to read, of episodes spread evenly over val or train.
        max_tokens: longest reply.
        score: what rollouts earn (rollout.py).
        sampler: who writes them; None is the learner itself.
    """
    asked, world = val or spread(train, shown), learner.world
    groups = sample_rollouts(sampler or learner, world.share(asked), n=1, sampling=Sampling(max_tokens), score=score)
    written = [
        ([step.completion for step in group.steps(rollout)], rollout.reward)
        for group in groups
        for rollout in group.rollouts
    ]
    found = [(episode, *one) for episode, one in zip(asked, world.gather(written), strict=True)]
    means = _means([reward for _, _, reward in found]) if val else {}
    return Evaluation(means, [_sample(*one) for one in spread(found, shown)])


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most so many of the items, evenly spaced, the first among them."""
    return [items[i * len(items) // count] for i in range(count)] if count < len(items) else list(items)


def _means(rewards: Sequence[Reward]) -> dict[str, float]:
    parts = sorted({name for reward in rewards for name in reward.parts})
    means = {f"val/{name}": sum(reward.parts[name] for reward in rewards) / len(rewards) for name in parts}
    return {"val/reward": sum(reward.value for reward in rewards) / len(rewards), **means}


def _sample(episode: Episode, written: Sequence[Completion], reward: Reward) -> Sample:
    asked = episode.prompt[-1]["content"]
    tail = asked if len(asked) <= TAIL else f"... {asked[-TAIL:]}"
    finish = "length" if any(one.finish == "length" for one in written) else "stop"
    return Sample(episode.id, tail, "\n\n".join(one.text for one in written), reward.value, finish)
