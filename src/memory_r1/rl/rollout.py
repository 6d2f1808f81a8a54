"""Rollouts: sample G completions of each episode and collect what they earn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from memory_r1.errors import TrainingError
from memory_r1.policy.base import Completion, Prompt, Sampling
from memory_r1.rl.types import Episode, Group, Reward, Rollout

Scorer = Callable[[Sequence[tuple[Any, Completion]]], list[Reward]]
"""What completions of episodes earn, in order. Where a model has to be asked, it is asked for all of them at once."""


class Sampler(Protocol):
    """Who writes rollouts: the trained policy itself (policy/local.py), or an engine that follows it (policy/vllm.py).

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


def sample_rollouts(
    sampler: Sampler, episodes: Sequence[Episode], *, n: int, sampling: Sampling, score: Scorer = one_by_one
) -> list[Group]:
    """One group of n rollouts per episode, in order, sampled with the weights as they are now."""
    sampled = sampler.sample([episode.prompt for episode in episodes], sampling, n=n)
    version = sampler.version
    pairs = [(episode, one) for episode, group in zip(episodes, sampled, strict=True) for one in group]
    earned = iter(score(pairs))
    return [
        Group(
            episode,
            tuple(sampler.encode(episode.prompt)),
            tuple(Rollout(completion, next(earned)) for completion in completions),
            version,
        )
        for episode, completions in zip(episodes, sampled, strict=True)
    ]


def refuse_stale(groups: Iterable[Group], version: int, max_staleness: int) -> None:
    """Raise TrainingError for rollouts whose weights are more than `max_staleness` versions from the learner's."""
    for group in groups:
        if group.version is None or 0 <= version - group.version <= max_staleness:
            continue
        raise TrainingError(
            f"the rollouts of {group.episode.id!r} are of the weights' version {group.version}, expected {version} or "
            f"at most {max_staleness} before: sample again with the weights as they are, or allow it (max_staleness)"
        )
