"""The loss's parts: hand-worked numbers with their signs, and the KL by enumeration of a 5-token policy."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memory_r1.rl.advantage import group_advantages
from memory_r1.rl.loss import Aggregation, clipped_policy_loss, kl_k3, token_weights


def loss_and_gradient(ratio: float, advantage: float, clip_range: float = 0.2) -> tuple[float, float]:
    """The loss of one token, and its derivative by the token's log-probability."""
    old = torch.tensor([-2.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    loss = clipped_policy_loss(new, old, advantage, clip_range)
    (gradient,) = torch.autograd.grad(loss.sum(), new)
    return loss.item(), gradient.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy: the plain policy gradient
        (1.1, 2.0, -2.2, -2.2),  # inside the range: -rho A, whose derivative by log pi is itself
        (1.5, 2.0, -2.4, 0.0),  # more probable than the range allows and good: clipped at 1.2, no push further
        (0.5, 2.0, -1.0, -1.0),  # less probable and good: not clipped, pushed back up
        (1.0, -2.0, 2.0, 2.0),
        (0.9, -2.0, 1.8, 1.8),
        (1.5, -2.0, 3.0, 3.0),  # more probable and bad: not clipped, pushed down
        (0.5, -2.0, 1.6, 0.0),  # less probable than the range allows and bad: clipped at 0.8, no push further
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_clip_binds_where_it_must(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert loss_and_gradient(ratio, advantage) == pytest.approx((loss, gradient))


@given(st.floats(-5, 5), st.floats(0.85, 1.15))
def test_flipping_the_advantage_flips_the_gradient(advantage: float, ratio: float) -> None:
    assert loss_and_gradient(ratio, -advantage)[1] == pytest.approx(-loss_and_gradient(ratio, advantage)[1])


def test_a_step_down_the_loss_makes_a_good_token_more_probable_and_a_bad_one_less() -> None:
    for advantage in (1.0, -1.0):
        logits = torch.zeros(5, requires_grad=True)
        logprobs = torch.log_softmax(logits, 0)[2:3]
        (gradient,) = torch.autograd.grad(
            clipped_policy_loss(logprobs, logprobs.detach(), advantage, 0.2).sum(), logits
        )
        moved = torch.log_softmax(logits.detach() - 0.1 * gradient, 0)[2:3]
        assert ((moved - logprobs) * advantage).item() > 0


def test_k3_gives_the_number_worked_by_hand() -> None:
    # reference twice as probable: d = ln 2, so 2 - ln 2 - 1; half as probable: d = -ln 2, so 1/2 + ln 2 - 1
    policy, reference = torch.tensor([0.2, 0.2]).double().log(), torch.tensor([0.4, 0.1]).double().log()
    assert kl_k3(policy, reference).tolist() == pytest.approx([1 - math.log(2), math.log(2) - 0.5])


def test_k3_is_exactly_zero_where_both_agree() -> None:
    logprobs = torch.tensor([-0.1, -3.7, -40.0])
    assert kl_k3(logprobs, logprobs.clone()).tolist() == [0.0, 0.0, 0.0]


@given(st.floats(-15, 0), st.floats(-15, 0))
def test_k3_is_never_negative(policy: float, reference: float) -> None:
    pair = torch.tensor([policy, reference], dtype=torch.float64)
    assert kl_k3(pair[:1], pair[1:]).item() >= -1e-12


POLICY, REFERENCE = [0.3, -1.2, 2.0, 0.0, -0.5], [1.0, 0.4, -0.3, 0.2, -2.0]


def five_tokens() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a 5-token policy, its log-probabilities, and a reference's."""
    logits = torch.tensor(POLICY, dtype=torch.float64, requires_grad=True)
    return logits, torch.log_softmax(logits, 0), torch.log_softmax(torch.tensor(REFERENCE, dtype=torch.float64), 0)


def test_k3_expected_under_the_policy_is_the_exact_kl() -> None:
    _, policy, reference = five_tokens()
    exact = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * kl_k3(policy, reference)).sum().item() == pytest.approx(exact.item())
    assert exact.item() > 0.5


def test_the_gradient_of_k3_in_the_loss_is_that_of_the_kl_the_other_way_round() -> None:
    logits, policy, reference = five_tokens()
    (of_k3,) = torch.autograd.grad((policy.detach().exp() * kl_k3(policy, reference)).sum(), logits, retain_graph=True)
    (of_reverse,) = torch.autograd.grad((reference.exp() * (reference - policy)).sum(), logits, retain_graph=True)
    (of_kl,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    assert of_k3.tolist() == pytest.approx(of_reverse.tolist())
    assert (of_k3 @ of_kl).item() > 0  # another vector than the KL's own gradient, but on its side
    assert (of_k3 - of_kl).norm() > 0.1 * of_kl.norm()


@pytest.mark.parametrize(
    ("aggregation", "total"),
    [
        ("sequence", (6 / 1 + (1 + 2 + 3) / 3) / 2),  # 4: the short completion counts as much as the long one
        ("token", (6 + 1 + 2 + 3) / 4),  # 3: every token counts the same
        ("constant", (6 + 1 + 2 + 3) / (2 * 10)),  # 0.6: the same, and the divisor does not move
    ],
)
def test_each_aggregation_gives_the_number_worked_by_hand(aggregation: Aggregation, total: float) -> None:
    losses = [[6.0], [1.0, 2.0, 3.0]]
    weights = token_weights([1, 3], aggregation, max_tokens=10)
    assert sum(w * sum(row) for w, row in zip(weights, losses, strict=True)) == pytest.approx(total)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_equal_losses_weigh_to_themselves_in_the_two_means(lengths: list[int]) -> None:
    means: list[Aggregation] = ["sequence", "token"]
    for aggregation in means:
        weights = token_weights(lengths, aggregation, max_tokens=10)
        assert sum(w * length * 0.7 for w, length in zip(weights, lengths, strict=True)) == pytest.approx(0.7)


def test_the_expected_gradient_of_a_group_is_the_enumerated_policy_gradient() -> None:
    """All groups of two completions of two tokens over a vocabulary of three, weighted by their probability.

    A rollout is compared with a mean that it is part of, so the expectation is (G - 1) / G of the gradient.
    """
    torch.manual_seed(0)
    first, second = torch.randn(3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    logits = [first.requires_grad_(), second.requires_grad_()]
    opening, following = torch.log_softmax(first, 0), torch.log_softmax(second, 1)
    completions = [torch.stack([opening[a], following[a, b]]) for a in range(3) for b in range(3)]
    rewards = torch.rand(9, dtype=torch.float64)
    chance = torch.stack([one.sum().exp() for one in completions])
    exact = torch.autograd.grad((chance * rewards).sum(), logits, retain_graph=True)

    weights = token_weights([2, 2], "constant", max_tokens=1)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(9):
        for j in range(9):
            credits = group_advantages(rewards[[i, j]][None], scale=False)[0].tolist()
            losses = [
                weight * clipped_policy_loss(completions[k], completions[k].detach(), credit, 0.2).sum()
                for k, credit, weight in zip((i, j), credits, weights, strict=True)
            ]
            expected = expected + (chance[i] * chance[j]).detach() * (losses[0] + losses[1])
    estimated = torch.autograd.grad(expected, logits)
    for ours, wanted in zip(estimated, exact, strict=True):
        assert (-2 * ours).flatten().tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-12)
