"""Rollouts: sample G completions of each episode and collect what they earn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from memory_r1.errors import TrainingError
from memory_r1.policy.base import Completion, Prompt, Sampling
from memory_r1.rl.course import Course, Draw, courses
from memory_r1.rl.types import Episode, Group, Reward, Rollout, Step

Scorer = Callable[[Sequence[tuple[Any, Completion]]], list[Reward]]
"""What completions of episodes earn, in order. Where a model has to be asked, it is asked for all of them at once.

Of an episode of several decisions it gets the last one, in the state that those before it left.
"""


class Sampler(Protocol):
    """Who writes rollouts: the learner itself, in its precision, or an engine that follows it (policy/vllm.py).

    Tokens in, tokens out: `encode` says what the prompt's tokens are, completions carry the sampled ids with their
    log-probabilities at the sampling temperature, the end token included.
    """

    @property
    def version(self) -> int:
        """Of the weights that the last `sample` was drawn with."""
        ...

    def encode(self, prompt: Prompt) -> list[int]: ...

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, n: int) -> list[list[Completion]]:
        """n completions of each prompt; raises PolicyError."""
        ...


def one_by_one(pairs: Sequence[tuple[Episode, Completion]]) -> list[Reward]:
    """The scorer of episodes that ask nobody."""
    return [episode.reward(completion) for episode, completion in pairs]


def draw_of(sampler: Sampler) -> Draw:
    """Sampling as courses need it (course.py)."""
    return lambda prompts, sampling, n: sampler.sample(prompts, sampling, n=n)


def sample_rollouts(
    sampler: Sampler,
    episodes: Sequence[Episode],
    *,
    n: int,
    sampling: Sampling,
    score: Scorer = one_by_one,
) -> list[Group]:
    """One group of n rollouts per episode, in order, sampled with the weights as they are now."""
    played = courses(draw_of(sampler), episodes, n=n, sampling=sampling)
    version = sampler.version
    earned = iter(score([course.last for group in played for course in group]))
    return [
        Group(
            episode,
            tuple(sampler.encode(episode.prompt)),
            tuple(_rollout(sampler, course, next(earned)) for course in group),
            version,
        )
        for episode, group in zip(episodes, played, strict=True)
    ]


def _rollout(sampler: Sampler, course: Course, reward: Reward) -> Rollout:
    (_, first), *later = course.written
    return Rollout(first, reward, tuple(Step(tuple(sampler.encode(prompt)), one) for prompt, one in later))


def refuse_stale(groups: Iterable[Group], version: int, max_staleness: int) -> None:
    """Raise TrainingError for rollouts whose weights are more than `max_staleness` versions from the learner's."""
    for group in groups:
        if group.version is None or 0 <= version - group.version <= max_staleness:
            continue
        raise TrainingError(
            f"the rollouts of {group.episode.id!r} are of the weights' version {group.version}, expected {version} or "
            f"at most {max_staleness} before: sample again with the weights as they are, or allow it (max_staleness)"
        )
