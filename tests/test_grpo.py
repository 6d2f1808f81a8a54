"""GRPO: the update against an implementation written out in plain loops, its options, its rollouts."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from conftest import Letters, Naive, new_learner
from memory_r1.errors import InputError, TrainingError
from memory_r1.policy.base import Completion, Sampling
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings, update
from memory_r1.rl.algorithms.loss import Aggregation
from memory_r1.rl.algorithms.update import rollout_metrics, sample_iteration
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.rollout import sample_rollouts
from memory_r1.rl.types import Group, Reward, Rollout
from rollouts import MAX_TOKENS, random_groups

SETTINGS = GRPOSettings(prompts=3, group=4, kl_coef=0.0)
REWARDS = [[1.0, 0.0, 0.25, 1.0], [0.0, 0.0, 0.5, 0.0], [0.3, 0.9, 0.1, 0.2]]


def groups_of(rewards: Sequence[Sequence[float]] = REWARDS) -> list[Group]:
    return random_groups(rewards)


class Watched(Learner):
    """A learner that keeps the gradient of its last step."""

    gradient: Tensor

    def step(self, lr: float) -> float:
        self.gradient = gradient_of(self.model)
        return super().step(lr)


def gradient_of(model: Any) -> Tensor:
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights])


def watched(folder: Path, lora_rank: int = 0) -> Watched:
    learner = new_learner(folder, lora_rank)
    learner.__class__ = Watched
    return cast(Watched, learner)


# The update


def written_out(
    model: Any, reference: Any, naive: Naive, groups: list[Group], settings: GRPOSettings, lr: float
) -> list[float]:
    """GRPO in plain loops on one sequence at a time, with gradient descent; returns the loss of each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    total_tokens = sum(len(rollout.completion.tokens) for rollout in rollouts)
    old: dict[int, list[float]] = {}
    losses = []
    for _ in range(settings.update_epochs):
        loss = torch.zeros((), dtype=torch.float64)
        for group in groups:
            earned = [rollout.reward.value for rollout in group.rollouts]
            for rollout in group.rollouts:
                tokens, prompt = rollout.completion.tokens, group.prompt_tokens
                advantage = (rollout.reward.value - statistics.mean(earned)) / (statistics.stdev(earned) + 1e-4)
                logprobs = naive(model, prompt, tokens, settings.temperature)
                with torch.no_grad():
                    refs = naive(reference, prompt, tokens, settings.temperature).tolist()
                before = old.setdefault(id(rollout), logprobs.tolist())
                divisor = {
                    "sequence": len(rollouts) * len(tokens),
                    "token": total_tokens,
                    "constant": len(rollouts) * MAX_TOKENS,
                }[settings.aggregation]
                for t in range(len(tokens)):
                    ratio = torch.exp(logprobs[t] - before[t])
                    clipped = torch.clamp(ratio, 1 - settings.clip_range_low, 1 + settings.clip_range_high)
                    gain = torch.min(ratio * advantage, clipped * advantage)
                    penalty = torch.exp(refs[t] - logprobs[t]) - (refs[t] - logprobs[t]) - 1
                    loss = loss - (gain - settings.kl_coef * penalty) / divisor
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_an_update_equals_one_written_out(
    tiny_folder: Path, naive_logprobs: Naive, aggregation: Aggregation, epochs: int
) -> None:
    settings = replace(SETTINGS, kl_coef=0.1, temperature=0.8, aggregation=aggregation, update_epochs=epochs)
    learner, groups, lr = new_learner(tiny_folder, 0), groups_of(), 0.05
    learner.model.double()
    learner.freeze_reference()
    reference, other = copy.deepcopy(learner.model), copy.deepcopy(learner.model)
    with torch.no_grad():  # away from the reference, so that the KL term counts
        for ours, theirs in zip(learner.model.parameters(), other.parameters(), strict=True):
            ours += 0.02 * torch.sin(torch.arange(ours.numel(), dtype=ours.dtype)).view_as(ours)
            theirs.copy_(ours)
    learner.optimizer = torch.optim.SGD(learner.model.parameters())
    metrics = update(learner, groups, settings, MAX_TOKENS, lr)
    losses = written_out(other, reference, naive_logprobs, groups, settings, lr)
    assert metrics["loss"] == pytest.approx(losses[-1], abs=1e-5)
    assert metrics["kl"] > 1e-3
    assert (metrics["clip_fraction"] > 0) == (epochs == 2)  # on the second epoch the clip binds somewhere
    for ours, theirs, start in zip(learner.model.parameters(), other.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        assert not ours.equal(start)


@pytest.mark.parametrize("lora_rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_the_first_epochs_ratio_is_one_and_the_sampler_agrees(
    ragged_folder: Path, lora_rank: int, temperature: float
) -> None:
    """Sampling and scoring are two programs; ragged lengths, padding and packing must not come between them."""
    learner, settings = new_learner(ragged_folder, lora_rank), replace(SETTINGS, temperature=temperature, kl_coef=0.1)
    learner.freeze_reference()
    episodes = [Letters(text) for text in ("a rather long question", "hi", "why?")]
    groups = sample_rollouts(learner.policy, episodes, n=4, sampling=Sampling(MAX_TOKENS, temperature, seed=0))
    assert len({len(rollout.completion.tokens) for group in groups for rollout in group.rollouts}) > 2
    metrics = update(learner, groups, settings, MAX_TOKENS, 1e-3)
    assert metrics["clip_fraction"] == 0
    assert metrics["sampler_gap"] < 1e-4
    assert metrics["kl"] == 0


def test_where_the_ratio_is_one_the_loss_is_the_weighted_mean_of_the_advantages(tiny_folder: Path) -> None:
    groups = groups_of([[1.0, 0.0]])
    lengths = [len(rollout.completion.tokens) for rollout in groups[0].rollouts]
    assert lengths[0] != lengths[1]
    size = 0.5 / (0.5**0.5 + 1e-4)
    settings = replace(SETTINGS, group=2, aggregation="token")
    metrics = update(new_learner(tiny_folder), groups, settings, MAX_TOKENS, 0.0)
    assert metrics["loss"] == pytest.approx(-size * (lengths[0] - lengths[1]) / sum(lengths), abs=1e-6)


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_the_gradient_does_not_depend_on_how_rollouts_are_ordered_or_cut(
    tiny_folder: Path, aggregation: Aggregation
) -> None:
    """Three groups at once, in another order, and one at a time with the batch's own denominator restored."""
    settings, groups = replace(SETTINGS, aggregation=aggregation), groups_of()
    learner = watched(tiny_folder)
    update(learner, groups, settings, MAX_TOKENS, 0.0)
    together = learner.gradient
    update(learner, groups[::-1], settings, MAX_TOKENS, 0.0)
    torch.testing.assert_close(learner.gradient, together, atol=1e-6, rtol=1e-4)
    apart = torch.zeros_like(together)
    sizes = [sum(len(rollout.completion.tokens) for rollout in group.rollouts) for group in groups]
    for group, size in zip(groups, sizes, strict=True):
        update(learner, [group], settings, MAX_TOKENS, 0.0)
        apart += learner.gradient * (size / sum(sizes) if aggregation == "token" else 1 / len(groups))
    torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-4)


def test_flipping_the_rewards_flips_the_gradient(tiny_folder: Path) -> None:
    learner = watched(tiny_folder)
    update(learner, groups_of(), SETTINGS, MAX_TOKENS, 0.0)
    upright = learner.gradient
    update(learner, groups_of([[-reward for reward in row] for row in REWARDS]), SETTINGS, MAX_TOKENS, 0.0)
    assert upright.norm() > 0.1
    torch.testing.assert_close(learner.gradient, -upright, atol=1e-6, rtol=1e-4)


def test_an_update_makes_the_rewarded_completion_more_probable(tiny_folder: Path) -> None:
    for rewards in ([1.0, 0.0], [0.0, 1.0]):
        learner, groups = new_learner(tiny_folder), groups_of([rewards])
        completions = [rollout.completion.tokens for rollout in groups[0].rollouts]
        before = learner.logprobs(groups[0].prompt_tokens, completions)
        update(learner, groups, replace(SETTINGS, group=2), MAX_TOKENS, 1e-2)
        after = learner.logprobs(groups[0].prompt_tokens, completions)
        risen = [(new - old).sum().item() > 0 for new, old in zip(after, before, strict=True)]
        assert risen == [reward == 1 for reward in rewards]


def test_groups_of_equal_rewards_are_counted_and_move_nothing(tiny_folder: Path) -> None:
    learner = watched(tiny_folder)
    mixed = update(learner, groups_of([[1, 0], [1, 1], [0, 0]]), replace(SETTINGS, group=2), MAX_TOKENS, 0.0)
    assert mixed["frac_no_signal"] == pytest.approx(2 / 3)
    before = [weight.detach().clone() for weight in learner.model.parameters()]
    nothing = update(learner, groups_of([[1, 1], [0, 0]]), replace(SETTINGS, group=2), MAX_TOKENS, 1e-2)
    assert nothing["frac_no_signal"] == 1
    assert nothing["grad_norm"] == nothing["loss"] == 0
    assert all(new.equal(old) for new, old in zip(learner.model.parameters(), before, strict=True))


def test_a_group_without_signal_is_still_held_to_the_reference(tiny_folder: Path) -> None:
    learner = watched(tiny_folder)
    learner.freeze_reference()
    with torch.no_grad():
        learner.model.lm_head.weight.mul_(1.1)
    metrics = update(learner, groups_of([[1, 1]]), replace(SETTINGS, group=2, kl_coef=0.1), MAX_TOKENS, 0.0)
    assert metrics["kl"] > 0
    assert learner.gradient.norm() > 0


def test_a_kl_term_without_a_reference_is_a_training_error(tiny_folder: Path) -> None:
    with pytest.raises(TrainingError, match="no reference yet"):
        update(new_learner(tiny_folder), groups_of(), replace(SETTINGS, kl_coef=0.1), MAX_TOKENS, 1e-3)


def test_the_sampler_gap_shows_rollouts_of_other_weights(tiny_folder: Path) -> None:
    learner, settings = new_learner(tiny_folder, 0), replace(SETTINGS, group=8, max_staleness=1)
    groups = sample_rollouts(learner.policy, [Letters("hi")], n=8, sampling=Sampling(MAX_TOKENS, 1.0, seed=0))
    fresh = update(learner, groups, settings, MAX_TOKENS, 0.0)
    with torch.no_grad():
        learner.model.lm_head.weight.mul_(0.8)
    stale = update(learner, groups, settings, MAX_TOKENS, 0.0)
    assert fresh["sampler_gap"] < 1e-4
    assert stale["sampler_gap"] > 0.01


def test_rewards_are_asked_for_outside_of_the_policys_precision(tiny_folder: Path) -> None:
    learner, seen = new_learner(tiny_folder, precision="bfloat16"), []

    def score(pairs: Sequence[tuple[Letters, Completion]]) -> list[Reward]:
        seen.append(torch.is_autocast_enabled("cpu"))  # a frozen agent or an embedder must run as it runs in use
        return [episode.reward(completion) for episode, completion in pairs]

    sample_iteration(learner, GRPO([Letters("hi")], replace(SETTINGS, prompts=1), MAX_TOKENS, score=score), 0)
    assert seen == [False]


def test_means_over_tokens_leave_out_the_groups_that_were_not_scored(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder)
    (signal, silent), settings = groups_of([[1, 0], [1, 1]]), replace(SETTINGS, group=2)
    alone, mixed = (update(learner, groups, settings, MAX_TOKENS, 0.0) for groups in ([signal], [signal, silent]))
    assert mixed["entropy_estimate"] == pytest.approx(alone["entropy_estimate"])
    assert alone["entropy_estimate"] > 1


# Rollouts


def test_rollouts_hold_the_sampled_tokens_the_prompt_as_sampled_and_the_reward_of_the_text(ragged_folder: Path) -> None:
    policy = new_learner(ragged_folder).policy
    episodes = [Letters("one"), Letters("another one")]
    groups = sample_rollouts(policy, episodes, n=3, sampling=Sampling(MAX_TOKENS, 1.0, seed=0))
    assert [group.episode for group in groups] == episodes
    for group in groups:
        assert len(group.rollouts) == 3
        assert list(group.prompt_tokens) == policy.encode(group.episode.prompt)
        for rollout in group.rollouts:
            assert rollout.reward == group.episode.reward(rollout.completion)
            assert len(rollout.completion.tokens) == len(rollout.completion.logprobs)


def test_rollout_metrics_are_means_over_all_rollouts() -> None:
    def rollout(value: float, length: int, finish: Any, parts: dict[str, float]) -> Rollout:
        return Rollout(Completion("", finish=finish, tokens=(1,) * length), Reward(value, parts))

    groups = [
        Group(Letters("a"), (1,), (rollout(1.0, 2, "stop", {"right": 1.0}), rollout(0.0, 4, "length", {"right": 0.0}))),
        Group(Letters("b"), (1,), (rollout(0.5, 3, "stop", {"right": 0.0}), rollout(0.5, 3, "stop", {"right": 1.0}))),
    ]
    wanted = {"reward": 0.5, "reward/right": 0.5, "completion_tokens": 3.0, "truncated": 0.25, "frac_no_signal": 0.5}
    assert rollout_metrics(groups) == wanted


# The algorithm


def test_an_iteration_depends_on_seed_and_iteration_alone(ragged_folder: Path) -> None:
    episodes = [Letters(text) for text in ("one", "two", "three", "four")]
    settings = replace(SETTINGS, prompts=2)

    def metrics(seed: int, iteration: int) -> dict[str, float]:
        return GRPO(episodes, settings, MAX_TOKENS, seed).iterate(new_learner(ragged_folder), iteration)

    assert metrics(0, 1) == metrics(0, 1)
    assert metrics(0, 1) != metrics(0, 2)
    assert metrics(0, 1) != metrics(1, 1)


def test_every_iteration_draws_anew_from_the_same_prompt(ragged_folder: Path) -> None:
    grpo = GRPO([Letters("hi")], replace(SETTINGS, prompts=1, group=8), MAX_TOKENS)
    surprises = [grpo.iterate(new_learner(ragged_folder), iteration)["entropy_estimate"] for iteration in range(3)]
    assert len(set(surprises)) == 3


def test_iterations_follow_from_passes_over_the_episodes(ragged_folder: Path) -> None:
    episodes = [Letters(str(i)) for i in range(10)]
    for epochs, prompts, iterations in ((1, 5, 2), (2.5, 5, 5), (0.1, 8, 1)):
        settings = GRPOSettings(epochs_over_data=epochs, prompts=prompts)
        assert GRPO(episodes, settings, MAX_TOKENS).iterations == iterations


def test_the_learning_rate_is_warmed_up(ragged_folder: Path) -> None:
    grpo = GRPO([Letters("hi")], replace(SETTINGS, prompts=1, lr=0.3, warmup=3), MAX_TOKENS)
    learner = new_learner(ragged_folder)
    assert [grpo.iterate(learner, i)["lr"] for i in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.3])


@pytest.mark.parametrize("settings", [{"group": 1}, {"temperature": 0.0}])
def test_settings_that_could_not_learn_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"^{name} is {value}, expected"):
        GRPOSettings(**settings)
