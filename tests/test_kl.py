"""The KL to the reference: the value and the gradient of each estimator by exact enumeration, and where it acts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from conftest import Letters, new_learner
from memory_r1.errors import TrainingError
from memory_r1.policy.base import Sampling
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings
from memory_r1.rl.algorithms.loss import KLEstimator, kl_k1, kl_k3, kl_term
from memory_r1.rl.algorithms.ppo import PPOSettings, judge, update_actor
from memory_r1.rl.rollout import sample_rollouts
from tables import COMPLETIONS, Table

POLICY, REFERENCE, OLDER = [0.3, -1.2, 2.0, 0.0, -0.5], [1.0, 0.4, -0.3, 0.2, -2.0], [-0.4, 0.9, 1.1, 0.0, 0.3]


def five_tokens() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of a 5-token policy, its log-probabilities, a reference's, and those of an older policy."""
    logits = torch.tensor(POLICY, dtype=torch.float64, requires_grad=True)
    reference, older = (torch.log_softmax(torch.tensor(one, dtype=torch.float64), 0) for one in (REFERENCE, OLDER))
    return logits, torch.log_softmax(logits, 0), reference, older


def exact_kl(policy: Tensor, reference: Tensor) -> Tensor:
    return (policy.exp() * (policy - reference)).sum()


def as_loss(estimator: KLEstimator | Literal["k1"], *, drawn_from_older: bool = False) -> tuple[float, Tensor]:
    """Expected value and expected gradient of the term, over every token there is."""
    logits, policy, reference, older = five_tokens()
    sampler = (older if drawn_from_older else policy).detach()
    term = kl_k1(policy, reference) if estimator == "k1" else kl_term(estimator, policy, reference, sampler)
    expected = (sampler.exp() * term).sum()
    return expected.item(), torch.autograd.grad(expected, logits)[0]


def exact(*, other_way_round: bool = False) -> tuple[float, Tensor]:
    logits, policy, reference, _ = five_tokens()
    kl = exact_kl(reference, policy) if other_way_round else exact_kl(policy, reference)
    return kl.item(), torch.autograd.grad(kl, logits)[0]


# Values


@pytest.mark.parametrize("estimator", ["k1", "k3", "k3_ratio"])
def test_k1_and_k3_expected_under_the_policy_are_the_exact_kl(estimator: Any) -> None:
    assert as_loss(estimator)[0] == pytest.approx(exact()[0])
    assert exact()[0] > 0.5


def test_k2_is_biased_as_a_value() -> None:
    assert abs(as_loss("k2")[0] - exact()[0]) > 0.1


# Gradients as a loss


def test_k1_in_the_loss_holds_nothing_back() -> None:
    assert as_loss("k1")[1].abs().max().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("estimator", ["k2", "k3_ratio"])
def test_k2_and_k3_times_the_ratio_have_the_exact_gradient(estimator: KLEstimator) -> None:
    assert as_loss(estimator)[1].tolist() == pytest.approx(exact()[1].tolist(), abs=1e-12)


def test_k3_in_the_loss_has_the_gradient_of_the_kl_the_other_way_round() -> None:
    ours, wanted = as_loss("k3")[1], exact()[1]
    assert ours.tolist() == pytest.approx(exact(other_way_round=True)[1].tolist(), abs=1e-12)
    assert (ours @ wanted).item() > 0  # on the side of the KL's own gradient, but another vector
    assert (ours - wanted).norm() > 0.2 * wanted.norm()


def test_k3_times_the_ratio_stays_exact_when_an_older_policy_drew_the_tokens() -> None:
    value, gradient = as_loss("k3_ratio", drawn_from_older=True)
    assert value == pytest.approx(exact()[0])
    assert gradient.tolist() == pytest.approx(exact()[1].tolist(), abs=1e-12)
    assert (as_loss("k2", drawn_from_older=True)[1] - exact()[1]).norm() > 0.1  # the others do not


def test_every_estimator_is_exactly_zero_with_its_gradient_at_the_reference() -> None:
    logits, policy, _, _ = five_tokens()
    estimators: tuple[KLEstimator, ...] = ("k2", "k3", "k3_ratio")
    for estimator in estimators:
        terms = kl_term(estimator, policy, policy.detach(), policy.detach())
        assert terms.tolist() == [0.0] * 5
        (gradient,) = torch.autograd.grad((policy.detach().exp() * terms).sum(), logits, retain_graph=True)
        assert gradient.abs().max().item() == pytest.approx(0, abs=1e-12)


# In the reward, over completions of two tokens


def expected_gradient(table: Table, settings: PPOSettings) -> Tensor:
    """What one rollout moves, averaged over every completion there is."""
    total = torch.zeros_like(table.gradient())
    for i, chance in enumerate(table.log_chances().exp().tolist()):
        batch = judge(table.as_learner(), [table.group(i)], settings)
        update_actor(table.as_learner(), batch, settings, 1, 0.0)
        total += chance * table.gradient()
    return total


KL_ALONE = PPOSettings(prompts=1, group=1, minibatches=1, aggregation="constant", whiten=False, kl_coef=1.0)


def test_k1_in_the_reward_has_the_exact_gradient_of_the_kl_of_whole_completions() -> None:
    table = Table()
    table.rewards.zero_()
    policy, reference = table.log_chances(), table.log_chances(ref=True)
    wanted = table.gradient_of(exact_kl(policy, reference))
    ours = expected_gradient(table, replace(KL_ALONE, kl_in="reward"))
    assert ours.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    assert wanted.norm() > 0.3


@pytest.mark.parametrize("estimator", ["k2", "k3_ratio"])
def test_in_the_loss_the_exact_gradient_is_that_at_the_states_visited(estimator: KLEstimator) -> None:
    """Each token is held to the reference where it stands; that an early token leads to later states is not seen."""
    table = Table()
    table.rewards.zero_()
    table.start_value = 0.0
    table.values.zero_()
    first, second = (torch.log_softmax(one, -1) for one in table.logits)
    ref_first, ref_second = (torch.log_softmax(one, -1) for one in table.ref_logits)
    visited = first.detach().exp() @ (second.exp() * (second - ref_second)).sum(1)
    wanted = table.gradient_of(exact_kl(first, ref_first) + visited)
    ours = expected_gradient(table, replace(KL_ALONE, kl=estimator))
    assert ours.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)
    whole = table.gradient_of(exact_kl(table.log_chances(), table.log_chances(ref=True)))
    assert (ours - whole).norm() > 0.05 * whole.norm()


def test_a_kl_in_the_reward_is_not_taken_off_in_the_loss_again() -> None:
    table = Table()
    metrics = []
    for kl_in in ("loss", "reward"):
        settings = replace(KL_ALONE, kl_in=kl_in)
        batch = judge(table.as_learner(), [table.group(3)], settings)
        metrics.append(update_actor(table.as_learner(), batch, settings, 1, 0.0))
    advantages = [table.rewards[3].item() - value for value in (table.start_value, table.values[0].item())]
    scored, refs = (one[3] for one in (table.logprobs((), COMPLETIONS, 1.0), table.ref_logprobs((), COMPLETIONS, 1.0)))
    k1, k3 = scored - refs, kl_k3(scored, refs)
    assert metrics[0]["loss"] == pytest.approx(-sum(advantages) + k3.sum().item(), abs=1e-6)
    # the first token answers for both tokens' k1, the second for its own
    assert metrics[1]["loss"] == pytest.approx(-sum(advantages) + k1[0].item() + 2 * k1[1].item(), abs=1e-6)
    assert metrics[0]["kl"] == metrics[1]["kl"] == pytest.approx(k3.mean().item())


# On a model


@pytest.mark.parametrize("lora_rank", [0, 4], ids=["full", "lora"])
def test_the_kl_is_exactly_zero_before_the_first_step_and_the_reference_does_not_move(
    ragged_folder: Path, lora_rank: int
) -> None:
    learner = new_learner(ragged_folder, lora_rank)
    grpo = GRPO([Letters("one"), Letters("two")], GRPOSettings(prompts=2, group=4, kl_coef=0.1, lr=1e-2), 5)
    grpo.prepare(learner)
    prompt, completions = [5, 9, 40], [[3, 1, 4], [15, 92]]
    before = torch.cat(learner.ref_logprobs(prompt, completions))
    kls = [grpo.iterate(learner, iteration)["kl"] for iteration in range(3)]
    assert kls[0] == 0
    assert min(kls[1:]) > 1e-4
    assert torch.cat(learner.ref_logprobs(prompt, completions)).equal(before)
    assert (torch.cat(learner.logprobs(prompt, completions)) - before).abs().max() > 0.01


def test_without_a_kl_no_reference_is_kept_and_none_is_reported(ragged_folder: Path) -> None:
    learner = new_learner(ragged_folder)
    grpo = GRPO([Letters("one")], GRPOSettings(prompts=1, group=4, kl_coef=0.0), 5)
    grpo.prepare(learner)
    assert "kl" not in grpo.iterate(learner, 0)
    assert "reference" not in learner.model.peft_config
    with pytest.raises(TrainingError, match="no reference yet"):
        learner.ref_logprobs([1], [[2]])


def test_a_stronger_kl_holds_the_policy_nearer_to_the_reference(ragged_folder: Path) -> None:
    def strayed(kl_coef: float, kl: KLEstimator = "k3") -> float:
        learner = new_learner(ragged_folder)
        settings = GRPOSettings(prompts=1, group=8, kl_coef=kl_coef, kl=kl, lr=5e-3, warmup=0)
        grpo = GRPO([Letters("hi")], settings, 4)
        grpo.prepare(learner)
        for iteration in range(12):
            grpo.iterate(learner, iteration)
        groups = sample_rollouts(learner.policy, [Letters("hi")], n=64, sampling=Sampling(4, 1.0, seed=99))
        tokens = [one.completion.tokens for one in groups[0].rollouts]
        scored, refs = (score(groups[0].prompt_tokens, tokens) for score in (learner.logprobs, learner.ref_logprobs))
        return float(kl_k3(torch.cat(scored).detach(), torch.cat(refs)).mean())

    free = strayed(1e-6)
    assert free > 0.5
    for estimator in ("k2", "k3", "k3_ratio"):
        assert strayed(1.0, estimator) < free / 3
