"""Rollouts: sample G completions of each episode and collect what they earn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from memory_r1.policy.base import Completion, Prompt, Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.course import Course, Draw, courses
from memory_r1.rl.types import Episode, Group, Reward, Rollout, Step

Scorer = Callable[[Sequence[tuple[Any, Completion]]], list[Reward]]
"""What completions of episodes earn, in order. Where a model has to be asked, it is asked for all of them at once.

Of an episode of several decisions it gets the last one, in the state that those before it left.
"""


def one_by_one(pairs: Sequence[tuple[Episode, Completion]]) -> list[Reward]:
    """The scorer of episodes that ask nobody."""
    return [episode.reward(completion) for episode, completion in pairs]


def local_draw(policy: LocalPolicy, precision: Callable[[], AbstractContextManager[object]]) -> Draw:
    """Sampling by a policy that runs here, in its precision."""

    def draw(prompts: Sequence[Prompt], sampling: Sampling, n: int) -> list[list[Completion]]:
        with precision():
            return policy.sample(prompts, sampling, n=n)

    return draw


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

    `precision` is the policy's own: what follows from a decision, and what it earns, is found out outside of it.
    """
    played = courses(local_draw(policy, precision), episodes, n=n, sampling=sampling)
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
