"""Rollouts: sample G completions of each episode and collect what they earn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memory_r1.policy.base import Completion, Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.course import Course, courses
from memory_r1.rl.types import Episode, Group, Reward, Rollout, Step

Scorer = Callable[[Sequence[tuple[Any, Completion]]], list[Reward]]
"""What completions of episodes earn, in order. Where a model has to be asked, it is asked for all of them at once.

Of an episode of several decisions it gets the last one, in the state that those before it left.
"""


def one_by_one(pairs: Sequence[tuple[Episode, Completion]]) -> list[Reward]:
    """The scorer of episodes that ask nobody."""
    return [episode.reward(completion) for episode, completion in pairs]


def sample_rollouts(
    policy: LocalPolicy, episodes: Sequence[Episode], *, n: int, sampling: Sampling, score: Scorer = one_by_one
) -> list[Group]:
    """One group of n rollouts per episode, in order, sampled with the policy's weights as they are now."""
    played = courses(lambda prompts, how, n: policy.sample(prompts, how, n=n), episodes, n=n, sampling=sampling)
    earned = iter(score([course.last for group in played for course in group]))
    return [
        Group(
            episode,
            tuple(policy.encode(episode.prompt)),
            tuple(_rollout(policy, course, next(earned)) for course in group),
        )
        for episode, group in zip(episodes, played, strict=True)
    ]


def _rollout(policy: LocalPolicy, course: Course, reward: Reward) -> Rollout:
    (_, first), *later = course.written
    return Rollout(first, reward, tuple(Step(tuple(policy.encode(prompt)), one) for prompt, one in later))
