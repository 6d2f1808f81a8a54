"""What the tests of training share: random rollouts, an answerer that counts, an algorithm that is stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from conftest import Letters
from memory_r1.policy import Prompt, ScriptedPolicy
from memory_r1.policy.base import Completion, Sampling
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.run.loop import Algorithm, Metrics
from memory_r1.rl.types import Group, Reward, Rollout

MAX_TOKENS = 6


def random_groups(rewards: Sequence[Sequence[float]], finish: Any = "stop", logprob: float = 0.0) -> list[Group]:
    """Groups of random completions of ragged lengths, up to MAX_TOKENS, that earned these rewards."""
    generator = torch.Generator().manual_seed(0)

    def tokens(longest: int) -> tuple[int, ...]:
        length = int(torch.randint(1, longest + 1, (1,), generator=generator))
        return tuple(torch.randint(0, 263, (length,), generator=generator).tolist())

    def rollout(reward: float) -> Rollout:
        drawn = tokens(MAX_TOKENS)
        return Rollout(Completion("", finish=finish, tokens=drawn, logprobs=(logprob,) * len(drawn)), Reward(reward))

    return [Group(Letters(str(p)), tokens(9), tuple(rollout(r) for r in row)) for p, row in enumerate(rewards)]


class Answerer(ScriptedPolicy):
    """Counts how many prompts it was given at a time."""

    def __init__(self, replies: Callable[[Prompt], str]) -> None:
        super().__init__(replies)
        self.batches: list[int] = []

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        self.batches.append(len(prompts))
        return super().complete(prompts, sampling)


@dataclass(frozen=True)
class Stopped:
    """An algorithm during whose iteration of this number somebody presses Ctrl-C."""

    inner: Algorithm
    at: int

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def iterations(self) -> int:
        return self.inner.iterations

    def prepare(self, learner: Learner) -> None:
        self.inner.prepare(learner)

    def iterate(self, learner: Learner, iteration: int) -> Metrics:
        if iteration == self.at:
            raise KeyboardInterrupt
        return self.inner.iterate(learner, iteration)
