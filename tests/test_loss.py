"""The loss's parts: hand-worked numbers with their signs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.rl.algorithms.loss import (
    Aggregation,
    RatioLevel,
    clipped_policy_loss,
    clipped_value_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    policy_ratio,
    token_weights,
)


def loss_and_gradient(
    ratio: float, advantage: float, low: float = 0.2, high: float = 0.2, dual_clip: float = 0.0
) -> tuple[float, float]:
    """The loss of one token, and its derivative by the token's log-probability."""
    old = torch.tensor([-2.0], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    loss = clipped_policy_loss(
        policy_ratio(new, old),
        torch.tensor([advantage], dtype=torch.float64),
        clip_range_low=low,
        clip_range_high=high,
        dual_clip=dual_clip,
    )
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
        ratio = policy_ratio(logprobs, logprobs.detach())
        loss = clipped_policy_loss(ratio, torch.tensor([advantage]), clip_range_low=0.2, clip_range_high=0.2)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        moved = torch.log_softmax(logits.detach() - 0.1 * gradient, 0)[2:3]
        assert ((moved - logprobs) * advantage).item() > 0


def test_ranges_of_different_width_bind_where_each_must() -> None:
    assert loss_and_gradient(1.25, 1.0, low=0.2, high=0.28) == pytest.approx((-1.25, -1.25))  # within DAPO's range
    assert loss_and_gradient(1.25, 1.0, low=0.2, high=0.2) == pytest.approx((-1.2, 0.0))
    assert loss_and_gradient(0.75, -1.0, low=0.3, high=0.2) == pytest.approx((0.75, 0.75))
    assert loss_and_gradient(0.75, -1.0, low=0.2, high=0.3) == pytest.approx((0.8, 0.0))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (5.0, -2.0, 6.0, 0.0),  # a bad token whose ratio ran away counts 3 times, and is pushed no further
        (2.9, -2.0, 5.8, 5.8),  # below the bound nothing changes
        (0.5, -2.0, 1.6, 0.0),
        (5.0, 2.0, -2.4, 0.0),  # good tokens have the ordinary clip alone
    ],
)
def test_a_dual_clip_bounds_what_a_bad_token_counts(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    assert loss_and_gradient(ratio, advantage, dual_clip=3.0) == pytest.approx((loss, gradient))


def test_without_a_dual_clip_a_bad_tokens_loss_grows_without_bound() -> None:
    assert loss_and_gradient(50.0, -2.0) == pytest.approx((100.0, 100.0))


# The ratio of a sequence


def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens() -> None:
    old = torch.tensor([0.5, 0.1, 0.2], dtype=torch.float64).log()
    new = torch.tensor([0.25, 0.4, 0.2], dtype=torch.float64).log()  # ratios 1/2, 4, 1: product 2
    assert policy_ratio(new, old).tolist() == pytest.approx([0.5, 4.0, 1.0])
    assert policy_ratio(new, old, "sequence").tolist() == pytest.approx([2 ** (1 / 3)] * 3)


@pytest.mark.parametrize("advantage", [1.5, -0.7])
@pytest.mark.parametrize("low", [0.01, 0.5], ids=["clipped", "unclipped"])
def test_the_sequence_ratio_averaged_by_sequence_is_gspos_objective(advantage: float, low: float) -> None:
    """min(s A, clip(s) A) of a completion, s differentiated as it stands, in value and in gradient."""
    torch.manual_seed(0)
    old, new = (torch.log_softmax(torch.randn(6, dtype=torch.float64), 0) for _ in range(2))
    new.requires_grad_()
    s = (new - old).mean().exp()
    theirs = -torch.minimum(s * advantage, s.clamp(1 - low, 1 + low) * advantage)
    spread = torch.full((6,), advantage, dtype=torch.float64)
    losses = clipped_policy_loss(policy_ratio(new, old, "sequence"), spread, clip_range_low=low, clip_range_high=low)
    (weight,) = token_weights([6], "sequence", max_tokens=10)
    assert (weight * losses).sum().item() == pytest.approx(theirs.item())
    (ours,) = torch.autograd.grad((weight * losses).sum(), new)
    (wanted,) = torch.autograd.grad(theirs, new)
    assert ours.tolist() == pytest.approx(wanted.tolist())


def test_under_the_sequence_ratio_a_token_keeps_its_own_advantage() -> None:
    """GSPO-token: the gradient of token t is weighted by s and by its own advantage."""
    old = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    new = torch.tensor([-0.9, -2.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -3.0], dtype=torch.float64)
    losses = clipped_policy_loss(
        policy_ratio(new, old, "sequence"), advantages, clip_range_low=0.2, clip_range_high=0.2
    )
    (gradient,) = torch.autograd.grad(losses.sum(), new)
    s = math.exp(0.05)
    assert gradient.tolist() == pytest.approx([-s, 3 * s])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_both_ratios_are_exactly_one_where_nothing_has_moved(level: RatioLevel) -> None:
    logprobs = torch.tensor([-0.1, -3.7, -40.0])
    assert policy_ratio(logprobs, logprobs.clone(), level).tolist() == [1.0, 1.0, 1.0]


# The critic's loss


@pytest.mark.parametrize(
    ("value", "loss", "gradient"),
    [
        (0.5, 0.125, -0.5),  # where it was: half the square of 1 - 0.5
        (0.6, 0.08, -0.4),  # within the range
        (0.9, 0.045, 0.0),  # moved towards the return by more than 0.2: counts as 0.7, and moves no further
        (0.1, 0.405, -0.9),  # moved away from it: the plain error, pulled back
        (1.9, 0.405, 0.9),  # past the return by more than the range is short of it: pulled back
    ],
)
def test_the_value_clip_binds_around_the_old_value(value: float, loss: float, gradient: float) -> None:
    """Old value 0.5, return 1, range 0.2."""
    new = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    old, wanted = torch.tensor([0.5], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    losses = clipped_value_loss(new, old, wanted, 0.2)
    assert losses.item() == pytest.approx(loss)
    assert torch.autograd.grad(losses.sum(), new)[0].item() == pytest.approx(gradient)


def test_a_value_clip_of_zero_is_the_squared_error() -> None:
    new, far = torch.tensor([3.0]), torch.tensor([-9.0])
    assert clipped_value_loss(new, far, torch.tensor([1.0]), 0.0).item() == 2.0


# KL estimators


def test_k1_and_k2_give_the_numbers_worked_by_hand() -> None:
    policy, reference = torch.tensor([0.2, 0.2]).double().log(), torch.tensor([0.4, 0.1]).double().log()
    assert kl_k1(policy, reference).tolist() == pytest.approx([-math.log(2), math.log(2)])
    assert kl_k2(policy, reference).tolist() == pytest.approx([math.log(2) ** 2 / 2] * 2)


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
