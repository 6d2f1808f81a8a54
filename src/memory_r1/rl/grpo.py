"""GRPO on one page: sample a group per prompt, credit each rollout against its group, take clipped steps.

    loss = sum over tokens of weight * ( -min(rho A, clip(rho) A) + kl_coef * k3(policy, reference) )

A is the group advantage (advantage.py), rho the ratio to the policy that sampled, the weights hold the batch's
denominators (loss.py). On the first epoch of an iteration the old log-probabilities are the trained policy's own,
detached: rho is exactly 1, and no second forward is needed. Source: DeepSeekMath, arXiv 2402.03300; Memory-R1,
section 3.4. Left out: a critic (PPO), dual clip, sequence-level ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memory_r1.errors import InputError
from memory_r1.policy.base import Sampling
from memory_r1.rl.advantage import group_advantages
from memory_r1.rl.learner import Learner
from memory_r1.rl.loss import Aggregation, clipped_policy_loss, kl_k3, token_weights
from memory_r1.rl.order import iteration_batch, sampling_seed, warmed_up
from memory_r1.rl.rollout import sample_rollouts
from memory_r1.rl.types import Episode, Group

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GRPOSettings:
    """GRPO's numbers; defaults follow Memory-R1 and its trainer where they say, see docs/training.md.

    epochs_over_data  passes over the episodes; an iteration takes `prompts` of them
    prompts, group    P prompts an iteration and G rollouts of each
    update_epochs     optimizer steps on one iteration's rollouts
    lr, warmup        learning rate, reached linearly over the first `warmup` steps, constant after
    clip_range        eps of the ratio clip
    kl_coef           weight of the k3 KL to the reference; 0 saves the reference's forward
    temperature       of sampling, and of every log-probability
    aggregation       what is averaged: sequence, token or constant (loss.py)
    scale_rewards     divide advantages by the group's deviation; off is Dr. GRPO
    """

    epochs_over_data: float = 1.0
    prompts: int = 8
    group: int = 8
    update_epochs: int = 1
    lr: float = 1e-4
    warmup: int = 3
    clip_range: float = 0.2
    kl_coef: float = 0.001
    temperature: float = 1.0
    aggregation: Aggregation = "sequence"
    scale_rewards: bool = True

    def __post_init__(self) -> None:
        for name in ("prompts", "update_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.group < 2:
            raise InputError(f"group is {self.group}, expected at least 2: a group of one has nothing to compare with")
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}, expected above 0: greedy rollouts are all the same")


@dataclass(frozen=True)
class GRPO:
    """The algorithm over fixed episodes; the loop (train.py) calls `iterate` until `iterations` are done."""

    episodes: Sequence[Episode]
    settings: GRPOSettings
    max_tokens: int
    seed: int = 0
    name: str = "grpo"
    needs_reference: bool = True

    @property
    def iterations(self) -> int:
        """How many times `iterate` is called."""
        return max(1, round(self.settings.epochs_over_data * len(self.episodes) / self.settings.prompts))

    def iterate(self, learner: Learner, iteration: int) -> dict[str, float]:
        """Sample, credit, update; returns the iteration's metrics. Randomness depends on seed and iteration alone."""
        settings = self.settings
        episodes = iteration_batch(self.episodes, settings.prompts, iteration, self.seed)
        sampling = Sampling(self.max_tokens, settings.temperature, seed=sampling_seed(self.seed, iteration))
        with learner.precision():
            groups = sample_rollouts(learner.policy, episodes, n=settings.group, sampling=sampling)
        metrics = rollout_metrics(groups)
        lr = warmed_up(settings.lr, iteration, settings.warmup)
        return {**metrics, **update(learner, groups, settings, self.max_tokens, lr), "lr": lr}


def update(
    learner: Learner, groups: Sequence[Group], settings: GRPOSettings, max_tokens: int, lr: float
) -> dict[str, float]:
    """`update_epochs` optimizer steps on these groups; gradients gather over the groups before each step."""
    import torch

    rewards = torch.tensor([[rollout.reward.value for rollout in group.rollouts] for group in groups])  # (P, G)
    advantages = group_advantages(rewards, scale=settings.scale_rewards).tolist()
    lengths = [len(rollout.completion.tokens) for group in groups for rollout in group.rollouts]
    weights = token_weights(lengths, settings.aggregation, max_tokens)
    batch = [_Credited(group, advantages[p], weights[p * settings.group :]) for p, group in enumerate(groups)]
    steps = []
    for epoch in range(settings.update_epochs):
        gathered = [one.backward(learner, settings, first=epoch == 0) for one in batch]
        norm = learner.step(lr)
        steps.append({key: sum(part[key] for part in gathered) for key in gathered[0]} | {"grad_norm": norm})
    last, first = steps[-1], steps[0]
    tokens = max(1.0, first["tokens"])  # those that were scored: groups with nothing to learn from are not
    return {
        "loss": last["loss"],
        "kl": last["kl"] / tokens,
        "clip_fraction": last["clipped"] / tokens,
        "sampler_gap": first["gap"] / tokens,
        "entropy_estimate": first["surprise"] / tokens,
        "grad_norm": last["grad_norm"],
        "frac_no_signal": statistics.mean(not any(row) for row in advantages),
    }


@dataclass
class _Credited:
    """A group with its advantages, the weights of its tokens, and, from the second epoch on, its old log-probs."""

    group: Group
    advantages: Sequence[float]
    weights: Sequence[float]
    old: Sequence[Tensor] | None = None

    def backward(self, learner: Learner, settings: GRPOSettings, *, first: bool) -> dict[str, float]:
        """Add this group's gradient; returns its loss and per-token sums."""
        import torch

        completions = [rollout.completion.tokens for rollout in self.group.rollouts]
        sums = dict.fromkeys(("loss", "kl", "clipped", "gap", "surprise", "tokens"), 0.0)
        if settings.kl_coef == 0 and not any(self.advantages):
            return sums  # nothing to learn from, and nothing to hold back from
        prompt, temperature = self.group.prompt_tokens, settings.temperature
        refs = learner.ref_logprobs(prompt, completions, temperature) if settings.kl_coef else None
        logprobs = learner.logprobs(prompt, completions, temperature)
        if first:
            self.old = [one.detach() for one in logprobs]
        assert self.old is not None
        total = torch.zeros((), device=logprobs[0].device)
        for i, (new, old) in enumerate(zip(logprobs, self.old, strict=True)):
            loss = clipped_policy_loss(new, old, self.advantages[i], settings.clip_range)
            if refs is not None:
                kl = kl_k3(new, refs[i])
                loss = loss + settings.kl_coef * kl
                sums["kl"] += float(kl.detach().sum())
            total = total + self.weights[i] * loss.sum()
            sampled = torch.tensor(self.group.rollouts[i].completion.logprobs, device=new.device)
            sums["clipped"] += float((((new.detach() - old).exp() - 1).abs() > settings.clip_range).sum())
            sums["gap"] += float((new.detach() - sampled).abs().sum())
            sums["surprise"] -= float(new.detach().sum())
            sums["tokens"] += len(new)
        total.backward()  # type: ignore[no-untyped-call]
        sums["loss"] = float(total.detach())
        return sums


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Means over all rollouts: reward, its parts, completion length, share cut at the token limit."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    parts = sorted({name for rollout in rollouts for name in rollout.reward.parts})
    means = {name: statistics.mean(rollout.reward.parts.get(name, 0.0) for rollout in rollouts) for name in parts}
    return {
        "reward": statistics.mean(rollout.reward.value for rollout in rollouts),
        **{f"reward/{name}": value for name, value in means.items()},
        "completion_tokens": statistics.mean(len(rollout.completion.tokens) for rollout in rollouts),
        "truncated": statistics.mean(rollout.completion.finish == "length" for rollout in rollouts),
    }
