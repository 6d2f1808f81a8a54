"""The traps of policy-gradient training that no other file springs, a sentence each.

Others have their own: ratios, masks and packing in test_packed.py and test_grpo.py, credit in test_advantage.py, the KL
in test_kl.py, the critic in test_critic.py and test_ppo.py, resuming in test_loop.py and test_ppo.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Letters, new_learner
from memory_r1.errors import InputError
from memory_r1.policy.base import Completion
from memory_r1.rl.algorithms.advantage import gae, token_rewards, whiten
from memory_r1.rl.algorithms.grpo import GRPOSettings, update
from memory_r1.rl.algorithms.loss import clipped_policy_loss, clipped_value_loss, policy_ratio, token_weights
from memory_r1.rl.algorithms.ppo import PPOSettings, judge, update_actor
from memory_r1.rl.algorithms.update import UpdateSettings
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.types import Group, Reward, Rollout
from rollouts import MAX_TOKENS, random_groups
from tables import COMPLETIONS, Table

SETTINGS = GRPOSettings(prompts=3, group=4, kl_coef=0.0)
REWARDS = [[1.0, 0.0, 0.25, 1.0, 0.5, 0.0, 1.0, 0.0], [0.0, 0.5], [0.3, 0.9, 0.1]]


def groups_of(rewards: list[list[float]] = REWARDS, finish: Any = "stop") -> list[Group]:
    return random_groups(rewards, finish, logprob=-1.0)


def unclipped(folder: Path) -> Learner:
    """A learner whose gradients are never shortened, so that they add up."""
    return new_learner(folder, max_grad_norm=1e9)


def gradient(learner: Learner, groups: list[Group], settings: GRPOSettings) -> tuple[Tensor, dict[str, float]]:
    """Of one step that moves nothing, with the update's metrics."""
    kept: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        kept.extend(torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten().clone() for w in weights)

    handle = learner.optimizer.register_step_pre_hook(keep)
    metrics = update(learner, groups, settings, MAX_TOKENS, 0.0)
    handle.remove()
    return torch.cat(kept), metrics


# Expectations: the estimator, averaged over everything that could be sampled, is the gradient


def test_grpos_expected_gradient_over_five_tokens_is_the_enumerated_policy_gradient() -> None:
    """All pairs of completions. A rollout is part of the mean it is compared with: (G - 1) / G of the gradient."""
    table = Table()
    settings = GRPOSettings(prompts=1, group=2, kl_coef=0.0, aggregation="constant", scale_rewards="none")
    chances = table.log_chances().exp()
    wanted = table.gradient_of(chances @ table.rewards)
    chance, total = chances.tolist(), torch.zeros(30, dtype=torch.float64)
    for i in range(len(COMPLETIONS)):
        for j in range(i):  # a pair of equals credits nothing, and the order of a pair does not matter
            update(table.as_learner(), [table.group(i, j)], settings, 1, 0.0)
            total += 2 * chance[i] * chance[j] * table.gradient()
    assert (-2 * total).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert wanted.norm() > 0.05


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_ppos_expected_gradient_over_five_tokens_is_the_enumerated_policy_gradient(gamma: float) -> None:
    """Whatever the critic believes: with lambda 1 a value is a baseline, which no expectation sees."""
    table = Table()
    settings = PPOSettings(prompts=1, group=1, minibatches=1, kl_coef=0.0, aggregation="constant", whiten=False)
    settings = replace(settings, gamma=gamma)
    first, chances = torch.log_softmax(table.logits[0], 0), table.log_chances().exp()
    # the first token's reward comes one token later
    earned = (chances.detach() * table.rewards).view(5, 5)
    second = torch.log_softmax(table.logits[1], 1)
    wanted = table.gradient_of((earned * (gamma * first.unsqueeze(1) + second)).sum())
    if gamma == 1:
        plain = table.gradient_of(chances @ table.rewards)
        assert wanted.tolist() == pytest.approx(plain.tolist())
    total = torch.zeros(30, dtype=torch.float64)
    for i, chance in enumerate(chances.tolist()):
        batch = judge(table.as_learner(), [table.group(i)], settings)
        update_actor(table.as_learner(), batch, settings, 1, 0.0)
        total += chance * table.gradient()
    assert (-total).tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_a_lambda_under_one_trades_the_exact_gradient_for_what_the_critic_believes() -> None:
    table = Table()
    settings = PPOSettings(prompts=1, group=1, minibatches=1, kl_coef=0.0, aggregation="constant", whiten=False)
    wanted = table.gradient_of(table.log_chances().exp() @ table.rewards)

    def bias(table: Table) -> float:
        total = torch.zeros(30, dtype=torch.float64)
        for i, chance in enumerate(table.log_chances().exp().tolist()):
            batch = judge(table.as_learner(), [table.group(i)], replace(settings, gae_lambda=0.0))
            update_actor(table.as_learner(), batch, settings, 1, 0.0)
            total += chance * table.gradient()
        return float((-total - wanted).norm() / wanted.norm())

    assert bias(table) > 0.5
    following = torch.softmax(table.logits[1].detach(), 1)
    table.values = (following * table.rewards.view(5, 5)).sum(1)
    assert bias(table) < 1e-6  # a critic that knows the expected reward of a state biases nothing


# Loss aggregation


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_the_gradient_and_the_metrics_do_not_depend_on_the_micro_batch(
    tiny_folder: Path, aggregation: Any, kl_coef: float
) -> None:
    """Ragged completions in ragged groups, 1, 3 or 8 at a time, or a whole group: the denominators are the batch's."""
    learner, settings = unclipped(tiny_folder), replace(SETTINGS, aggregation=aggregation, kl_coef=kl_coef)
    learner.freeze_reference()
    with torch.no_grad():
        for weight in learner.optimizer.param_groups[0]["params"]:
            weight += 0.02
    whole, metrics = gradient(learner, groups_of(), settings)
    assert whole.norm() > 0.05
    for micro_batch in (1, 3, 8):
        cut, same = gradient(learner, groups_of(), replace(settings, micro_batch=micro_batch))
        torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-3)
        assert same == pytest.approx(metrics, abs=1e-4)


def test_metrics_do_not_change_when_a_longer_completion_or_prompt_stands_beside(tiny_folder: Path) -> None:
    """The same group alone, and beside one that is long and credited nothing."""
    learner = unclipped(tiny_folder)
    groups = groups_of()[:1]
    drawn = Completion("", tokens=(7,) * 200, logprobs=(-1.0,) * 200)
    silent = Group(Letters("x"), (9,) * 300, (Rollout(drawn, Reward(0.5)),) * 2)
    alone, beside = (gradient(learner, batch, SETTINGS)[1] for batch in (groups, [*groups, silent]))
    for name in ("clip_fraction", "sampler_gap", "sampler_gap_max", "entropy_estimate"):
        assert beside[name] == pytest.approx(alone[name], abs=1e-6)


def test_what_was_cut_off_is_kept_or_masked_as_was_chosen(tiny_folder: Path) -> None:
    """Masked, it has no gradient and no place in a denominator; its group still knows that it failed."""
    learner = unclipped(tiny_folder)
    (group,) = groups_of([[1.0, 0.0, 0.25]])
    cut_off = replace(group.rollouts[1], completion=replace(group.rollouts[1].completion, finish="length"))
    mixed = replace(group, rollouts=(group.rollouts[0], cut_off, group.rollouts[2]))
    kept, _ = gradient(learner, [mixed], SETTINGS)
    whole, _ = gradient(learner, [group], SETTINGS)
    masked, metrics = gradient(learner, [mixed], replace(SETTINGS, truncated="mask"))
    torch.testing.assert_close(kept, whole)
    assert (masked - whole).norm() > 0.1 * whole.norm()
    assert metrics["frac_no_signal"] == 0
    nothing, metrics = gradient(learner, groups_of(finish="length"), replace(SETTINGS, truncated="mask"))
    assert nothing.abs().max() == 0
    assert metrics["frac_no_signal"] == 1


# Groups


def test_groups_of_different_sizes_are_credited_and_weighed_each_by_itself(tiny_folder: Path) -> None:
    """A batch of groups of 8, 2 and 3 is the sum of the three, each with the batch's denominator."""
    learner, groups = unclipped(tiny_folder), groups_of()
    together, _ = gradient(learner, groups, SETTINGS)
    sizes = [len(group.rollouts) for group in groups]
    apart = [
        gradient(learner, [group], SETTINGS)[0] * size / sum(sizes) for group, size in zip(groups, sizes, strict=True)
    ]
    torch.testing.assert_close(torch.stack(apart).sum(0), together, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_equal_rewards_move_nothing_whatever_the_scale(tiny_folder: Path, scale: Any) -> None:
    settings = replace(SETTINGS, scale_rewards=scale)
    found, metrics = gradient(unclipped(tiny_folder), groups_of([[0.35] * 3, [1 / 3] * 2]), settings)
    assert found.abs().max() == 0
    assert metrics["frac_no_signal"] == 1


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_flipping_a_reward_turns_the_gradient_round_whatever_the_scale(tiny_folder: Path, scale: Any) -> None:
    learner, settings = unclipped(tiny_folder), replace(SETTINGS, scale_rewards=scale)
    upright, _ = gradient(learner, groups_of(), settings)
    flipped, _ = gradient(learner, groups_of([[-reward for reward in row] for row in REWARDS]), settings)
    assert upright.norm() > 0.05
    torch.testing.assert_close(flipped, -upright, atol=1e-6, rtol=1e-4)


# Padded tensors, as trainers of the field write them: the same numbers, and nothing from masked places


def padded(rows: list[Tensor], filler: float) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.stack([torch.cat([row, torch.full((longest - len(row),), filler).double()]) for row in rows])


def test_ppos_parts_equal_a_masked_implementation_whatever_stands_in_masked_places() -> None:
    """Random numbers of five lengths; every masked place of the other implementation holds a million."""
    torch.manual_seed(0)
    lengths, gamma, gae_lambda, clip, value_clip, c = [1, 7, 3, 5, 2], 0.97, 0.8, 0.2, 0.3, 3.0
    new, old, values, new_values, kl = (
        [torch.randn(length, dtype=torch.float64) for length in lengths] for _ in range(5)
    )
    earned = torch.randn(5, dtype=torch.float64).tolist()

    credited, returns = [], []
    for i, length in enumerate(lengths):
        rewards = token_rewards(earned[i], length, kl[i], 0.1)
        credited.append(gae(rewards, values[i], gamma=gamma, gae_lambda=gae_lambda))
        returns.append(credited[-1] + values[i])
    white = whiten(credited)
    (weight, *_) = token_weights(lengths, "token", 10)
    clips: dict[str, float] = {"clip_range_low": clip, "clip_range_high": clip, "dual_clip": c}
    policy = [clipped_policy_loss(policy_ratio(new[i], old[i]), white[i], **clips).sum() for i in range(5)]
    value = [clipped_value_loss(new_values[i], values[i], returns[i], value_clip).sum() for i in range(5)]

    garbage = 1e6
    mask = padded([torch.ones(length).double() for length in lengths], 0.0)
    v, k, n, o, w = (padded(rows, garbage) for rows in (values, kl, new, old, new_values))
    last = mask.sum(1).long() - 1
    r = torch.where(mask > 0, -0.1 * k, torch.tensor(garbage).double())
    r[range(5), last] += torch.tensor(earned, dtype=torch.float64)
    advantages, running = torch.zeros_like(v), torch.zeros(5).double()
    for t in range(v.shape[1] - 1, -1, -1):
        following = torch.where(t < last, v[:, min(t + 1, v.shape[1] - 1)], 0.0)
        running = torch.where(mask[:, t] > 0, r[:, t] + gamma * following - v[:, t] + gamma * gae_lambda * running, 0.0)
        advantages[:, t] = running
    ret, count = advantages + v, mask.sum()
    mean = (advantages * mask).sum() / count
    variance = ((advantages - mean).square() * mask).sum() / (count - 1)
    a = (advantages - mean) * variance.rsqrt()
    ratio = (torch.where(mask > 0, n - o, 0.0)).exp()
    worst = torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))
    theirs = torch.where(a < 0, torch.minimum(worst, -a * c), worst)
    near = v + (w - v).clamp(-value_clip, value_clip)
    errors = 0.5 * torch.maximum((w - ret).square(), (near - ret).square())

    for i, length in enumerate(lengths):
        assert white[i].tolist() == pytest.approx(a[i, :length].tolist(), abs=1e-9)
        assert returns[i].tolist() == pytest.approx(ret[i, :length].tolist(), abs=1e-9)
    assert float(weight * sum(policy)) == pytest.approx(float((theirs * mask).sum() / count), abs=1e-9)
    assert float(weight * sum(value)) == pytest.approx(float((errors * mask).sum() / count), abs=1e-9)
    assert (a < 0).any()
    assert (ratio > c).any()


# Settings that would train something else than they say


@pytest.mark.parametrize(
    "settings",
    [
        {"clip_range_low": 1.0},
        {"clip_range_low": -0.1},
        {"clip_range_high": -0.1},
        {"dual_clip": 1.1},
        {"dual_clip": -3.0},
        {"kl_coef": -0.1},
        {"minibatches": 0},
        {"update_epochs": 0},
        {"prompts": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"^{name} is {value}, expected"):
        UpdateSettings(**settings)


def test_what_was_there_before_the_options_is_what_the_defaults_are() -> None:
    settings = GRPOSettings()
    assert (settings.clip_range_low, settings.clip_range_high, settings.dual_clip) == (0.2, 0.2, 0.0)
    assert (settings.ratio, settings.kl, settings.scale_rewards) == ("token", "k3", "group")
    assert (settings.minibatches, settings.micro_batch, settings.truncated) == (1, 0, "keep")
