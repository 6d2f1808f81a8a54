"""A policy that is two small tables, for expectations by enumeration: five tokens, completions of two.

It stands where a Learner stands, so that the real update runs on it: every completion there is, weighted by its
probability, gives the exact expectation of what the update does. Left out: sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from memory_r1.policy.base import Completion
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.model.parallel import World
from memory_r1.rl.types import Group, Reward, Rollout

V = 5
COMPLETIONS = [(a, b) for a in range(V) for b in range(V)]
PROMPT = (0,)


class Table:
    """log pi of the first token, and of the second given the first; a frozen reference; a critic of fixed values."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.logits = [normal(V).requires_grad_(), normal(V, V).requires_grad_()]
        self.ref_logits = [normal(V), normal(V, V)]
        self.rewards = torch.rand(V * V, generator=generator, dtype=torch.float64)
        self.start_value, self.values = 0.37, normal(V)
        self.critic = SimpleNamespace(values=self.expected)
        self.version = 0
        self.world = World()

    def sharing(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        return nullcontext()

    def logprobs(self, prompt: Sequence[int], completions: Sequence[Sequence[int]], temperature: float) -> list[Tensor]:
        return self._score(self.logits, completions)

    def ref_logprobs(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], temperature: float
    ) -> list[Tensor]:
        return self._score(self.ref_logits, completions)

    def expected(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Tensor]:
        """Values before the first token, before the second, and before whatever was appended."""
        return [torch.tensor([self.start_value, float(self.values[one[0]]), 0.0]) for one in completions]

    def step(self, lr: float) -> float:
        return 0.0  # the gradient stays, for `gradient` to take

    def as_learner(self) -> Learner:
        return cast(Learner, self)

    def gradient(self) -> Tensor:
        """What the last update gathered, (V + V * V,), forgotten afterwards."""
        gathered = [torch.zeros_like(one) if one.grad is None else one.grad for one in self.logits]
        for one in self.logits:
            one.grad = None
        return torch.cat([one.flatten() for one in gathered])

    def log_chances(self, ref: bool = False) -> Tensor:
        """(V * V,) log-probability of every completion."""
        scored = self._score(self.ref_logits if ref else self.logits, COMPLETIONS)
        return torch.stack([one.sum() for one in scored])

    def gradient_of(self, number: Tensor) -> Tensor:
        """Its exact gradient by the logits, (V + V * V,)."""
        return torch.cat([one.flatten() for one in torch.autograd.grad(number, self.logits)])

    def group(self, *places: int) -> Group:
        """A group of these completions, by their place in COMPLETIONS."""
        episode: Any = None  # no update asks for it
        rollouts = [
            Rollout(Completion("", tokens=COMPLETIONS[i], logprobs=(0.0, 0.0)), Reward(self.rewards[i].item()))
            for i in places
        ]
        return Group(episode, PROMPT, tuple(rollouts))

    @staticmethod
    def _score(logits: Sequence[Tensor], completions: Sequence[Sequence[int]]) -> list[Tensor]:
        first, second = torch.log_softmax(logits[0], -1), torch.log_softmax(logits[1], -1)
        return [torch.stack([first[one[0]], second[one[0], one[1]]]) for one in completions]
