"""Rollouts: sample G completions of each episode and collect what they earn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from memory_r1.policy.base import Completion, Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.types import Episode, Group, Reward, Rollout

Scorer = Callable[[Sequence[tuple[Any, Completion]]], list[Reward]]
"""What completions of episodes earn, in order. Where a model has to be asked, it is asked for all of them at once."""


def one_by_one(pairs: Sequence[tuple[Episode, Completion]]) -> list[Reward]:
    """The scorer of episodes that ask nobody."""
    return [episode.reward(completion) for episode, completion in pairs]


def sample_rollouts(
    policy: LocalPolicy,
    episodes: Sequence[Episode],
    *,
    n: int,
    sampling: Sampling,
    score: Scorer = one_by_one,
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[Group]:
    """One group of n rollouts per episode, in order, sampled with the policy's weights as they are now.

    `precision` is the policy's own: the models that are asked for rewards run outside of it.
    """
    with precision():
        sampled = policy.sample([episode.prompt for episode in episodes], sampling, n=n)
    pairs = [(episode, one) for episode, group in zip(episodes, sampled, strict=True) for one in group]
    earned = iter(score(pairs))
    return [
        Group(
            episode,
            tuple(policy.encode(episode.prompt)),
            tuple(Rollout(completion, next(earned)) for completion in completions),
        )
        for episode, completions in zip(episodes, sampled, strict=True)
    ]
