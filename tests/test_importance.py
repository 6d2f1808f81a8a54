"""Rollouts of another engine or of older weights: corrected for, counted, refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from conftest import Letters, new_learner
from memory_r1.errors import InputError, TrainingError
from memory_r1.policy.base import Completion, Prompt, Sampling
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings, update
from memory_r1.rl.algorithms.loss import importance_weight
from memory_r1.rl.algorithms.ppo import CriticSettings, PPOSettings, judge, update_actor
from memory_r1.rl.algorithms.update import Credited, CreditedGroup, UpdateSettings, sample_iteration, update_policy
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.model.parallel import World
from memory_r1.rl.rollout import Sampler, sample_rollouts
from memory_r1.rl.types import Group, Rollout

MAX_TOKENS = 6
SETTINGS = GRPOSettings(prompts=2, group=4, kl_coef=0.0)
EPISODES = [Letters("hi"), Letters("what is it?")]
HUGE = 1e9

Train = Callable[[Learner, Sequence[Group], int], Any]


def grouped(learner: Learner, temperature: float = 1.0) -> list[Group]:
    return sample_rollouts(learner.policy, EPISODES, n=4, sampling=Sampling(MAX_TOKENS, temperature, seed=0))


# The weight


def test_the_weight_is_the_ratio_of_the_probabilities_cut_at_the_cap() -> None:
    old, sampled = torch.tensor([0.5, 0.2, 0.9]).log(), torch.tensor([0.25, 0.4, 0.1]).log()
    assert importance_weight(old, sampled, 2.0).tolist() == pytest.approx([2, 0.5, 2])
    assert importance_weight(old, sampled, 3.0).tolist() == pytest.approx([2, 0.5, 3])
    assert importance_weight(old, sampled, HUGE).tolist() == pytest.approx([2, 0.5, 9])


def test_the_weight_is_exactly_1_where_the_engines_agree_and_has_no_gradient() -> None:
    old = torch.randn(50).requires_grad_()
    weight = importance_weight(old, old.detach().clone(), 2.0)
    assert weight.tolist() == [1.0] * 50
    assert not weight.requires_grad


class Dial:
    """A policy over four tokens that stands where a learner stands; completions are one token long."""

    def __init__(self) -> None:
        self.logits = torch.tensor([0.3, -0.5, 1.1, 0.0], dtype=torch.float64).requires_grad_()
        self.rewards = torch.tensor([1.0, 0.2, -0.3, 0.6], dtype=torch.float64)
        self.others = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64)  # probabilities of another engine's
        self.world = World()

    def sharing(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        return nullcontext()

    def logprobs(self, prompt: Sequence[int], completions: Sequence[Sequence[int]], temperature: float) -> list[Tensor]:
        chances = torch.log_softmax(self.logits, 0)
        return [chances[list(one)] for one in completions]

    def step(self, lr: float) -> float:
        return 0.0

    def gradient(self, settings: UpdateSettings) -> Tensor:
        """The update's, expected over what the other engine samples."""
        total = torch.zeros(4, dtype=torch.float64)
        for token, chance in enumerate(self.others.tolist()):
            self.logits.grad = None
            row = Credited((token,), self.others[[token]].log(), self.rewards[[token]])
            update_policy(cast(Learner, self), [CreditedGroup((0,), [row])], settings, 1, 0.0)
            assert self.logits.grad is not None
            total -= chance * self.logits.grad
        return total


def test_the_weighted_gradient_of_another_engines_samples_is_the_policys_own() -> None:
    """Expected over all tokens that the other engine may draw; unweighted it is another, cut it lies between."""
    dial, settings = Dial(), UpdateSettings(kl_coef=0.0, importance_cap=HUGE)
    (wanted,) = torch.autograd.grad(torch.softmax(dial.logits, 0) @ dial.rewards, [dial.logits])
    assert dial.gradient(settings).tolist() == pytest.approx(wanted.tolist(), abs=1e-9)

    def bias(cap: float) -> float:
        return float((dial.gradient(replace(settings, importance_cap=cap)) - wanted).norm() / wanted.norm())

    assert 0.1 < bias(1.5) < bias(0)


def test_a_cut_weight_counts_as_much_as_the_cap() -> None:
    """Weights by hand: softmax(0.3, -0.5, 1.1, 0.0) / (0.1, 0.4, 0.2, 0.3) = 2.26, 0.25, 2.52, 0.56."""
    dial = Dial()
    cut = torch.tensor([1.5, 0.2544, 1.5, 0.5592], dtype=torch.float64)
    scaled = Dial()
    scaled.rewards = dial.rewards * cut  # of one token, a weight on the loss is a weight on the reward
    capped = dial.gradient(UpdateSettings(kl_coef=0.0, importance_cap=1.5))
    assert capped.tolist() == pytest.approx(scaled.gradient(UpdateSettings(kl_coef=0.0)).tolist(), abs=1e-4)


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (1, 2), (2, 2)])
def test_on_the_policys_own_samples_the_correction_changes_nothing(
    tiny_folder: Path, minibatches: int, epochs: int
) -> None:
    """On the first epoch the old log-probabilities are the learner's own, and on later ones they stay."""
    settings = replace(SETTINGS, minibatches=minibatches, update_epochs=epochs)
    plain, weighted = new_learner(tiny_folder), new_learner(tiny_folder)
    losses = [
        update(learner, grouped(learner), replace(settings, importance_cap=cap), MAX_TOKENS, 0.05)
        for learner, cap in ((plain, None), (weighted, 2.0))
    ]
    assert "importance_weight" not in losses[0]
    assert losses[1]["importance_weight"] == pytest.approx(1, abs=1e-5)
    assert losses[1]["loss"] == pytest.approx(losses[0]["loss"], abs=1e-5)
    for mine, other in zip(plain.model.parameters(), weighted.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-3, rtol=0)


def test_the_gap_and_the_mean_weight_of_another_engine_are_logged(tiny_folder: Path) -> None:
    def shifted(rollout: Rollout) -> Rollout:
        logprobs = tuple(logprob - 0.2 for logprob in rollout.completion.logprobs)
        return replace(rollout, completion=replace(rollout.completion, logprobs=logprobs))

    learner = new_learner(tiny_folder)
    groups = [replace(group, rollouts=tuple(map(shifted, group.rollouts))) for group in grouped(learner)]
    metrics = update(learner, groups, replace(SETTINGS, importance_cap=2.0), MAX_TOKENS, 0.0)
    assert metrics["importance_weight"] == pytest.approx(1.2214, abs=1e-3)  # exp(0.2)
    assert metrics["sampler_gap"] == pytest.approx(0.2, abs=1e-3)
    assert metrics["sampler_gap_max"] == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("settings", [{"importance_cap": -1.0}, {"max_staleness": -1}])
def test_a_cap_or_a_staleness_below_0_is_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"^{name} is {value}, expected 0 or above"):
        UpdateSettings(**settings)


def test_another_engine_samples_outside_of_the_learners_precision_and_the_learner_within(tiny_folder: Path) -> None:
    learner, autocast = new_learner(tiny_folder, precision="bfloat16"), list[bool]()

    class Watched:
        version = learner.version
        encode = staticmethod(learner.encode)

        def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, n: int) -> list[list[Completion]]:
            autocast.append(torch.is_autocast_enabled("cpu"))
            return learner.policy.sample(prompts, sampling, n=n)

    def logprobs(sampler: Sampler | None) -> list[float]:
        groups = sample_iteration(learner, GRPO(EPISODES, SETTINGS, MAX_TOKENS, sampler=sampler), 0)
        return [logprob for group in groups for one in group.rollouts for logprob in one.completion.logprobs]

    assert logprobs(Watched()) != logprobs(None)  # bfloat16 products
    assert autocast == [False]


# Stale weights


def by_grpo(learner: Learner, groups: Sequence[Group], max_staleness: int) -> None:
    update(learner, groups, replace(SETTINGS, max_staleness=max_staleness), MAX_TOKENS, 1e-3)


def by_ppo(learner: Learner, groups: Sequence[Group], max_staleness: int) -> None:
    settings = PPOSettings(kl_coef=0.0, max_staleness=max_staleness, minibatches=1, critic=CriticSettings(warmup=0))
    if learner.critic is None:
        learner.add_critic()
    update_actor(learner, judge(learner, groups, settings), settings, MAX_TOKENS, 1e-3)


def test_rollouts_carry_the_version_of_the_weights_that_sampled_them(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder)
    grpo = GRPO(EPISODES, SETTINGS, MAX_TOKENS)
    for iteration in range(3):
        assert {group.version for group in sample_iteration(learner, grpo, iteration)} == {learner.version}
        before = learner.version
        grpo.iterate(learner, iteration)
        assert learner.version == before + 1


def test_the_version_grows_with_every_step_and_with_weights_taken_up(tiny_folder: Path, tmp_path: Path) -> None:
    learner = new_learner(tiny_folder)
    learner.save(tmp_path)
    seen = [learner.version]
    for change in (
        lambda: learner.step(0.1),
        lambda: learner.step(0.1),
        lambda: learner.load_weights(tmp_path),
        lambda: learner.load_state(learner.state()),
    ):
        change()
        seen.append(learner.version)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("train", [by_grpo, by_ppo])
def test_an_update_on_rollouts_of_older_weights_is_refused_and_moves_nothing(tiny_folder: Path, train: Train) -> None:
    learner = new_learner(tiny_folder)
    stale = grouped(learner)
    train(learner, stale, 0)
    before = {name: weight.detach().clone() for name, weight in learner.model.named_parameters()}
    with pytest.raises(TrainingError, match=r"^the rollouts of 'hi' are of the weights' version 0, expected 1 or at"):
        train(learner, stale, 0)
    assert all(weight.equal(before[name]) for name, weight in learner.model.named_parameters())
    train(learner, grouped(learner), 0)


@pytest.mark.parametrize("train", [by_grpo, by_ppo])
def test_rollouts_of_weights_as_old_as_allowed_are_trained_on(tiny_folder: Path, train: Train) -> None:
    learner = new_learner(tiny_folder)
    stale = grouped(learner)
    train(learner, stale, 1)
    train(learner, stale, 1)
    with pytest.raises(TrainingError, match="version 0, expected 2 or at most 1 before"):
        train(learner, stale, 1)


def test_rollouts_of_weights_that_the_learner_never_had_are_refused_however_much_is_allowed(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder)
    ahead = [replace(group, version=learner.version + 1) for group in grouped(learner)]
    with pytest.raises(TrainingError, match="version 1, expected 0"):
        by_grpo(learner, ahead, 9)
