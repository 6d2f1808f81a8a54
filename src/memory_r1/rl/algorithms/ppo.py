"""PPO on one page: sample, let a critic say what was expected before each token, credit the difference, step both.

    rewards        the outcome on a completion's last token, less kl_coef * k1 on each where the KL is in the reward
    advantages     GAE over one rollout (advantage.py), whitened over all tokens of the batch
    critic loss    mean over tokens of the clipped squared error to the returns, A + V before whitening (loss.py)
    policy loss    the clipped one that all algorithms share (update.py)

Where a rollout makes several decisions, GAE runs through all their tokens as one sequence, and the outcome stands on
the last token of the last. With gamma = lambda = 1 that equals crediting each decision alone with the outcome; with
lambda < 1 it credits the decision after which the critic expects more, which is what a critic is for where the outcome
is decisions away. The prompts between them are the environment's: no reward, no step of gamma. A decision that is
masked is the environment's too.

A prompt may be sampled once or G times: the rollouts of a prompt are not compared, but they share its computation, in
the policy and in the critic. Source: PPO, arXiv 1707.06347; Memory-R1, section 3.4; critic warm-up and a lambda of its
own for the critic, VC-PPO, arXiv 2503.01491. Left out: an entropy bonus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Literal

from memory_r1.errors import InputError, TrainingError
from memory_r1.rl.algorithms.advantage import explained_variance, gae, token_rewards, whiten
from memory_r1.rl.algorithms.loss import Aggregation, clipped_value_loss, kl_k1
from memory_r1.rl.algorithms.update import (
    Credited,
    CreditedGroup,
    Metrics,
    OnEpisodes,
    UpdateSettings,
    by_prompt,
    by_row,
    credited,
    cut,
    deal,
    remember_old,
    remember_ref,
    rollout_metrics,
    sample_iteration,
    update_policy,
)
from memory_r1.rl.model.critic import Critic
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.order import sampling_seed, warmed_up
from memory_r1.rl.rollout import refuse_stale
from memory_r1.rl.types import Group, Rollout, Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CriticSettings:
    """How the critic learns.

    lr          of the critic's adapter and head. One Adam step moves a value by up to lr times the sum of a hidden
                state's absolute numbers, which is about 700 in SmolLM2-135M: 1e-4 moves it by 0.07, of rewards from 0
                to 1. Memory-R1's 1e-5 at 7B does about the same
    warmup      iterations at the start in which the critic learns alone
    epochs      passes of the critic over one iteration's rollouts, each of `minibatches` steps
    value_clip  how far from its old value a value may move before its gradient ends; 0 for no such bound
    gae_lambda  of the returns it learns; 1 is what was earned in the end
    start       what it expects at first: nothing, or the mean reward of the first iteration
    """

    lr: float = 1e-4
    warmup: int = 2
    epochs: int = 1
    value_clip: float = 0.5
    gae_lambda: float = 1.0
    start: Literal["zero", "mean"] = "mean"

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"critic.epochs is {self.epochs}, expected at least 1")
        for name in ("warmup", "value_clip"):
            if getattr(self, name) < 0:
                raise InputError(f"critic.{name} is {getattr(self, name)}, expected 0 or above")
        if not 0 <= self.gae_lambda <= 1:
            raise InputError(f"critic.gae_lambda is {self.gae_lambda}, expected 0 to 1")


@dataclass(frozen=True)
class PPOSettings(UpdateSettings):
    """PPO's numbers beside the shared ones (update.py), see docs/training.md.

    minibatches  as everywhere in the field a few steps are taken on an iteration's rollouts, so the learning rate is
                 lower than GRPO's: an iteration moves the policy about as far
    gamma        worth of a reward one token later; 1, since only the outcome counts
    gae_lambda   of the policy's advantages: 1 trusts the outcome, 0 the critic
    whiten       bring the advantages of a batch to mean 0 and deviation 1
    kl_in        where the KL to the reference counts: in the loss (by the estimator `kl`), or in the reward (k1)
    bootstrap    a completion cut at the token limit is worth what the critic expects after its last token, in place
                 of the reward that the cut text earned; off, the limit is part of the task
    """

    minibatches: int = 4
    lr: float = 3e-5
    aggregation: Aggregation = "token"
    gamma: float = 1.0
    gae_lambda: float = 1.0
    whiten: bool = True
    kl_in: Literal["loss", "reward"] = "loss"
    bootstrap: bool = False
    critic: CriticSettings = field(default_factory=CriticSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 to 1")


@dataclass(frozen=True)
class PPO(OnEpisodes[PPOSettings]):
    """The algorithm over fixed episodes; see GRPO for the calls."""

    name: str = "ppo"

    def prepare(self, learner: Learner) -> None:
        """Freeze the reference, if the KL to it counts, and add a critic; both begin as the policy is now."""
        super().prepare(learner)
        learner.add_critic()

    def iterate(self, learner: Learner, iteration: int) -> Metrics:
        """Sample, judge, update; returns the iteration's metrics. Randomness depends on seed and iteration alone."""
        settings = self.settings
        groups = sample_iteration(learner, self, iteration)
        metrics = rollout_metrics(groups)
        if iteration == 0 and settings.critic.start == "mean":
            _critic(learner).begin_at(metrics["reward"])
        batch, seed = judge(learner, groups, settings), sampling_seed(self.seed, iteration)
        critic_lr = warmed_up(settings.critic.lr, iteration, settings.warmup)
        metrics |= {**update_critic(learner, batch, settings, critic_lr, seed), "critic_lr": critic_lr}
        since = iteration - settings.critic.warmup
        if since < 0:
            return metrics
        lr = warmed_up(settings.lr, since, settings.warmup)
        return {**metrics, **update_actor(learner, batch, settings, self.max_tokens, lr, seed), "lr": lr}


@dataclass(frozen=True)
class Judged:
    """The completions of a prompt, as the policy (`group`) and as the critic learn from them.

    values   G tensors (T_i,), what the critic expected before each token; on the CPU
    returns  G tensors (T_i,), what it should have expected; on the CPU
    """

    group: CreditedGroup
    values: Sequence[Tensor]
    returns: Sequence[Tensor]


def judge(learner: Learner, groups: Sequence[Group], settings: PPOSettings) -> list[Judged]:
    """Credit every token of these groups by GAE, whitened over all of them; raises TrainingError for stale ones."""
    refuse_stale(groups, learner.version, settings.max_staleness)
    critic = _critic(learner)
    trained = [_trained(group, settings) for group in groups]
    unjudged = [
        part
        for group, rollouts in zip(groups, trained, strict=True)
        for part in by_prompt(group, chain.from_iterable(rollouts))
    ]
    with learner.sharing([part.prompt for part in unjudged]):
        if settings.kl_coef and settings.kl_in == "reward":
            remember_old(learner, unjudged, settings)
            remember_ref(learner, unjudged, settings)
        foreseen = learner.world.map(lambda part: _expected(critic, part, settings), unjudged)
    expected = dict(by_row(unjudged, foreseen))
    returns: dict[Credited, Tensor] = {}
    for group, own in zip(groups, trained, strict=True):
        for rollout, steps in zip(group.rollouts, own, strict=True):
            if steps:
                returns |= _credit(rollout, steps, [expected[row] for _, row in steps], settings)
    batch = [
        Judged(part, [expected[row][:-1] for row in part.rows], [returns[row] for row in part.rows])
        for part in unjudged
    ]
    rows = [row for judged in batch for row in judged.group.rows]
    if settings.whiten and rows:
        for row, advantages in zip(rows, whiten([row.advantages for row in rows]), strict=True):
            row.advantages = advantages.float()
    return batch


def update_critic(
    learner: Learner, batch: Sequence[Judged], settings: PPOSettings, lr: float, seed: int = 0
) -> Metrics:
    """The critic's passes over a batch. Its metrics: the explained variance is that before the first step."""
    critic = _critic(learner)
    for epoch in range(settings.critic.epochs):
        parts = deal(batch, settings.minibatches, f"{seed}/{epoch}")
        steps = [(_value_loss(learner, critic, part, settings), critic.step(lr)) for part in parts]
    values = [one for judged in batch for one in judged.values]
    returns = [one for judged in batch for one in judged.returns]
    return {
        "value_loss": sum(loss for loss, _ in steps) / len(steps),
        "critic_grad_norm": sum(norm for _, norm in steps) / len(steps),
        "explained_variance": explained_variance(values, returns),
    }


def update_actor(
    learner: Learner, batch: Sequence[Judged], settings: PPOSettings, max_tokens: int, lr: float, seed: int = 0
) -> Metrics:
    """The policy's passes over a batch; a KL that was taken off the rewards is not taken off again."""
    shared = replace(settings, kl_coef=0.0) if settings.kl_in == "reward" else settings
    return update_policy(learner, [judged.group for judged in batch], shared, max_tokens, lr, seed)


def _trained(group: Group, settings: PPOSettings) -> list[list[tuple[Step, Credited]]]:
    """The decisions of each rollout that have a place in the loss."""
    return [
        [(step, credited(step.completion, 0.0)) for step in group.steps(rollout) if settings.trains_on(step)]
        for rollout in group.rollouts
    ]


def _expected(critic: Critic, group: CreditedGroup, settings: PPOSettings) -> list[Tensor]:
    """(T + 1,) for each completion, on the CPU: what is expected before each of its tokens, and after the last."""
    import torch

    values: list[Tensor] = []
    with torch.no_grad():
        for rows in cut(group.rows, settings.micro_batch):
            found = critic.values(group.prompt, [[*row.tokens, row.tokens[-1]] for row in rows])
            values += [one.cpu() for one in found]
    return values


def _credit(
    rollout: Rollout, rows: Sequence[tuple[Step, Credited]], expected: Sequence[Tensor], settings: PPOSettings
) -> dict[Credited, Tensor]:
    """Set the advantages of the tokens of a rollout's decisions, which follow one another; gives their returns.

    Args:
        rows: the decisions in order, at least one.
        expected: (T_i + 1,) for each of them, see `_expected`.

    Returns:
        (T_i,) for each of them.
    """
    import torch

    cut_off = settings.bootstrap and rows[-1][0].completion.finish == "length"
    reward, end_value = (0.0, float(expected[-1][-1])) if cut_off else (rollout.reward.value, 0.0)
    lengths = [len(row.tokens) for _, row in rows]
    kls = [kl_k1(row.old, row.ref) for _, row in rows if row.old is not None and row.ref is not None]
    rewards = token_rewards(reward, sum(lengths), torch.cat(kls) if kls else None, settings.kl_coef)
    known = torch.cat([values[:-1] for values in expected])
    advantages, ahead = (
        gae(rewards, known, gamma=settings.gamma, gae_lambda=gae_lambda, end_value=end_value).float()
        for gae_lambda in (settings.gae_lambda, settings.critic.gae_lambda)
    )
    for (_, row), own in zip(rows, torch.split(advantages, lengths), strict=True):
        row.advantages = own
    returns = torch.split(ahead + known, lengths)
    return {row: own for (_, row), own in zip(rows, returns, strict=True)}


def _value_loss(learner: Learner, critic: Critic, part: Sequence[Judged], settings: PPOSettings) -> float:
    """Add the gradient of the mean over the tokens of these groups; returns that mean."""
    tokens = sum(len(one) for judged in part for one in judged.values)
    with learner.sharing([judged.group.prompt for judged in part]):
        return sum(critic.world.map(lambda judged: _learn_values(critic, judged, tokens, settings), part))


def _learn_values(critic: Critic, judged: Judged, tokens: int, settings: PPOSettings) -> float:
    """Forward and backward over the completions of a prompt; returns their sum of losses by so many tokens."""
    total, learned = 0.0, zip(judged.group.rows, judged.values, judged.returns, strict=True)
    for rows in cut(list(learned), settings.micro_batch):
        values = critic.values(judged.group.prompt, [row.tokens for row, _, _ in rows])
        losses = [
            clipped_value_loss(new, old.to(new.device), wanted.to(new.device), settings.critic.value_clip).sum()
            / tokens
            for new, (_, old, wanted) in zip(values, rows, strict=True)
        ]
        loss = sum(losses[1:], losses[0])
        critic.backward(loss)
        total += float(loss.detach())
    return total


def _critic(learner: Learner) -> Critic:
    if learner.critic is None:
        raise TrainingError("there is no critic yet: call prepare before training with PPO")
    return learner.critic
