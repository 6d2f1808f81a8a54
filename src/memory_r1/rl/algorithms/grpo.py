"""GRPO on one page: sample a group per prompt, credit each rollout against its group, take clipped steps.

The advantage of a rollout is that of each of its tokens (advantage.py, `group_advantages`), in all of its decisions
where it made several: it is settled before they become rows, and does not depend on how many there are. Sampling and
the steps are what all algorithms share (update.py). Source: DeepSeekMath, arXiv 2402.03300; Memory-R1, section 3.4. The
settings also span its descendants: Dr. GRPO (aggregation constant, scale_rewards none), DAPO's loss (aggregation token,
clip_range_high 0.28, truncated mask), GSPO (ratio sequence, clip ranges 3e-4 and 4e-4).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from memory_r1.errors import InputError
from memory_r1.rl.algorithms.advantage import Scaling, group_advantages
from memory_r1.rl.algorithms.update import (
    CreditedGroup,
    Metrics,
    OnEpisodes,
    UpdateSettings,
    by_prompt,
    credited,
    rollout_metrics,
    sample_iteration,
    update_policy,
)
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.order import sampling_seed, warmed_up
from memory_r1.rl.rollout import refuse_stale
from memory_r1.rl.types import Group


@dataclass(frozen=True)
class GRPOSettings(UpdateSettings):
    """GRPO's numbers beside the shared ones (update.py), see docs/training.md.

    scale_rewards  what centred rewards are divided by: the deviation of the group, of the whole batch, or nothing
    """

    scale_rewards: Scaling = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2:
            raise InputError(f"group is {self.group}, expected at least 2: a group of one has nothing to compare with")


@dataclass(frozen=True)
class GRPO(OnEpisodes[GRPOSettings]):
    """The algorithm over fixed episodes; the loop (loop.py) calls `iterate` until `iterations` are done."""

    name: str = "grpo"

    def iterate(self, learner: Learner, iteration: int) -> Metrics:
        """Sample, credit, update; returns the iteration's metrics. Randomness depends on seed and iteration alone."""
        settings = self.settings
        groups = sample_iteration(learner, self, iteration)
        lr = warmed_up(settings.lr, iteration, settings.warmup)
        metrics = update(learner, groups, settings, self.max_tokens, lr, sampling_seed(self.seed, iteration))
        return {**rollout_metrics(groups), **metrics, "lr": lr}


def update(
    learner: Learner, groups: Sequence[Group], settings: GRPOSettings, max_tokens: int, lr: float, seed: int = 0
) -> Metrics:
    """Credit these groups and take the policy's steps on them; raises TrainingError where they are stale."""
    refuse_stale(groups, learner.version, settings.max_staleness)
    episodes = credit(groups, settings)
    silent = statistics.mean(not any(row.advantages.any() for part in parts for row in part.rows) for parts in episodes)
    batch = [part for parts in episodes for part in parts]
    return {**update_policy(learner, batch, settings, max_tokens, lr, seed), "frac_no_signal": silent}


def credit(groups: Sequence[Group], settings: GRPOSettings) -> list[list[CreditedGroup]]:
    """Every rollout against the others of its group, those among them that are masked included.

    Returns:
        for each group its completions by prompt; several where an episode has several decisions.
    """
    import torch

    rewards = torch.tensor([one.reward.value for group in groups for one in group.rollouts], dtype=torch.float64)
    numbers = torch.tensor([number for number, group in enumerate(groups) for _ in group.rollouts])
    advantages = iter(group_advantages(rewards, numbers, scale=settings.scale_rewards).tolist())
    paired = [(group, [(rollout, next(advantages)) for rollout in group.rollouts]) for group in groups]
    return [
        by_prompt(
            group,
            (
                (step, credited(step.completion, advantage))
                for rollout, advantage in pairs
                for step in group.steps(rollout)
                if settings.trains_on(step)
            ),
        )
        for group, pairs in paired
    ]
