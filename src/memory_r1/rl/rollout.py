"""Rollouts: sample G completions of each episode and collect what they earn."""

from __future__ import annotations

from collections.abc import Sequence

from memory_r1.policy.base import Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.types import Episode, Group, Rollout


def sample_rollouts(policy: LocalPolicy, episodes: Sequence[Episode], *, n: int, sampling: Sampling) -> list[Group]:
    """One group of n rollouts per episode, in order, sampled with the policy's weights as they are now."""
    groups = policy.sample([episode.prompt for episode in episodes], sampling, n=n)
    return [
        Group(
            episode,
            tuple(policy.encode(episode.prompt)),
            tuple(Rollout(completion, episode.reward(completion)) for completion in completions),
        )
        for episode, completions in zip(episodes, groups, strict=True)
    ]
