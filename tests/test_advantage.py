"""Credit: group advantages and GAE by hand and by definition, and what must be credited nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memory_r1.rl.algorithms.advantage import (
    DEVIATION_FLOOR,
    Scaling,
    explained_variance,
    gae,
    group_advantages,
    token_rewards,
    whiten,
)

EPS = 1e-4  # the default, named here so that changing it is noticed
SCALES: list[Scaling] = ["none", "group", "batch"]


def credits(rows: Sequence[Sequence[float]], scale: Scaling = "group", **options: float) -> list[list[float]]:
    """The advantages of groups given as rows of rewards, as rows."""
    rewards = torch.tensor([reward for row in rows for reward in row], dtype=torch.float64)
    numbers = torch.tensor([number for number, row in enumerate(rows) for _ in row])
    credited = iter(group_advantages(rewards, numbers, scale=scale, **options).tolist())
    return [[next(credited) for _ in row] for row in rows]


# Groups


def test_two_of_four_right_give_the_numbers_worked_by_hand() -> None:
    # mean 1/2; squares sum to 4/4 = 1; the sample deviation divides by G - 1 = 3
    size = 0.5 / (math.sqrt(1 / 3) + EPS)
    assert credits([[1, 0, 0, 1]]) == [pytest.approx([size, -size, -size, size])]
    assert size == pytest.approx(0.86588, abs=1e-5)


def test_the_deviation_is_the_sample_one_and_eps_is_added_to_it() -> None:
    # mean 1; squares sum to 9 + 1 + 1 + 1 = 12; 12 / 3 = 4; deviation 2
    assert credits([[4, 0, 0, 0]], eps=0.5) == [pytest.approx([3 / 2.5, -1 / 2.5, -1 / 2.5, -1 / 2.5])]


def test_without_scaling_rewards_are_only_centred() -> None:
    assert credits([[4, 0, 0, 0]], "none") == [[3, -1, -1, -1]]


def test_scaling_by_the_batch_divides_every_group_by_the_deviation_of_all_rewards() -> None:
    # rewards 4 0 2 2 6 4: mean 3, squares 1 + 9 + 1 + 1 + 9 + 1 = 22, sample deviation sqrt(22 / 5)
    size = 1 / (math.sqrt(22 / 5) + EPS)
    wanted = [[2 * size, -2 * size], [0, 0], [1 * size, -1 * size]]
    assert credits([[4, 0], [2, 2], [6, 4]], "batch") == [pytest.approx(row) for row in wanted]
    assert size == pytest.approx(0.47671, abs=1e-5)


def test_a_group_is_credited_against_itself_alone() -> None:
    assert credits([[1, 0, 0, 1], [100, 50, 0, 0]])[0] == pytest.approx(credits([[1, 0, 0, 1]])[0], abs=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_a_higher_reward_is_credited_more(scale: Scaling) -> None:
    ((low, middle, high),) = credits([[0.0, 0.4, 1.0]], scale)
    assert low < middle < high
    assert low < 0 < high


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.35, 1 / 3, -2.5])
@pytest.mark.parametrize("scale", SCALES)
def test_equal_rewards_give_exactly_zero(reward: float, scale: Scaling) -> None:
    assert credits([[reward] * 7, [1.0, 0.0]], scale)[0] == [0.0] * 7


@pytest.mark.parametrize("scale", SCALES)
def test_a_batch_of_equal_rewards_gives_exactly_zero(scale: Scaling) -> None:
    assert credits([[1 / 3] * 3, [1 / 3] * 2], scale) == [[0.0] * 3, [0.0] * 2]


@pytest.mark.parametrize("scale", SCALES)
def test_rewards_that_differ_by_rounding_alone_give_exactly_zero(scale: Scaling) -> None:
    near = [0.35, 0.35000002, 0.7 / 2, 0.1 + 0.25, 0.34999998]
    assert credits([near], scale) == [[0.0] * 5]


def test_the_floor_on_the_deviation_separates_noise_from_signal() -> None:
    under, over = DEVIATION_FLOOR * 0.9, DEVIATION_FLOOR * 1.1  # [0, d, 2d] has the sample deviation d
    assert credits([[0, under, 2 * under]]) == [[0.0] * 3]
    assert credits([[0, over, 2 * over]])[0][2] == pytest.approx(over / (over + EPS))


@pytest.mark.parametrize("scale", SCALES)
def test_a_group_of_one_is_credited_zero(scale: Scaling) -> None:
    assert credits([[0.7], [0.0]], scale) == [[0.0], [0.0]]
    assert credits([[0.7]], scale) == [[0.0]]


@pytest.mark.parametrize("scale", SCALES)
def test_incomplete_groups_are_credited_against_those_that_are_there(scale: Scaling) -> None:
    mixed = credits([[1, 0, 0.5], [0.7], [1, 0]], scale)
    assert mixed[1] == [0.0]
    assert [sum(row) for row in mixed] == pytest.approx([0, 0, 0], abs=1e-12)
    assert mixed[2] == pytest.approx([-1 * mixed[2][1], mixed[2][1]])


@pytest.mark.parametrize("scale", SCALES)
@given(random=st.randoms())
def test_rollouts_are_grouped_by_number_so_that_permuting_them_permutes_their_advantages(
    scale: Scaling, random: Random
) -> None:
    rewards, groups = torch.tensor([1.0, 0, 0.5, 0.25, 0, 1, 1, 0]), torch.tensor([7, 7, 7, 2, 2, 2, 2, 5])
    order = random.sample(range(8), 8)
    credited = group_advantages(rewards, groups, scale=scale)
    together = [one for row in credits([[1, 0, 0.5], [0.25, 0, 1, 1], [0]], scale) for one in row]
    assert credited.tolist() == pytest.approx(together, abs=1e-12)
    permuted = group_advantages(rewards[order], groups[order], scale=scale)
    assert permuted.tolist() == pytest.approx(credited[order].tolist(), abs=1e-12)


def test_an_episode_is_credited_before_it_becomes_rows_whatever_the_number_of_its_operations() -> None:
    """Three rollouts wrote 1, 2 and 5 operations; the first was right. Rows come after credit, never before."""
    rewards, group, operations = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0]), torch.tensor([1, 2, 5])
    credited = group_advantages(rewards, group)
    rows = credited.repeat_interleave(operations)
    right, wrong = credited[0].item(), credited[1].item()
    assert rows.tolist() == pytest.approx([right, *[wrong] * 7])
    of_rows = group_advantages(rewards.repeat_interleave(operations), group.repeat_interleave(operations))
    assert abs(of_rows[0].item() - credited[0].item()) > 1  # what it would be the other way round


@pytest.mark.parametrize("shapes", [((4,), (3,)), ((2, 2), (2, 2)), ((), ())])
def test_a_wrong_shape_is_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B,\)"):
        group_advantages(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


rewards = st.lists(st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 1.0]), min_size=1, max_size=8)


@pytest.mark.parametrize("scale", SCALES)
@given(row=rewards, other=rewards)
def test_every_group_sums_to_zero_and_is_finite(scale: Scaling, row: list[float], other: list[float]) -> None:
    for credited in credits([row, other], scale):
        assert all(math.isfinite(one) for one in credited)
        assert sum(credited) == pytest.approx(0, abs=1e-9)


# Rewards of tokens


def test_the_outcome_lands_on_the_last_token() -> None:
    assert token_rewards(0.7, 4).tolist() == [0, 0, 0, 0.7]
    assert token_rewards(0.7, 1).tolist() == [0.7]


def test_a_kl_in_the_reward_is_taken_off_each_token_and_has_no_gradient() -> None:
    kl = torch.tensor([0.5, -0.25, 1.0], requires_grad=True)
    earned = token_rewards(2.0, 3, kl, 0.1)
    assert earned.tolist() == pytest.approx([-0.05, 0.025, 1.9])
    assert not earned.requires_grad


# GAE


def by_definition(rewards: Tensor, values: Tensor, gamma: float, gae_lambda: float, end_value: float) -> list[float]:
    """A_t as the sum over every later delta, O(T^2)."""
    worth = [*values.tolist(), end_value]
    deltas = [rewards[t].item() + gamma * worth[t + 1] - worth[t] for t in range(len(rewards))]
    return [sum((gamma * gae_lambda) ** (s - t) * deltas[s] for s in range(t, len(deltas))) for t in range(len(deltas))]


def test_without_a_critic_every_token_is_credited_the_reward() -> None:
    assert gae(token_rewards(0.8, 5), torch.zeros(5), gamma=1, gae_lambda=1).tolist() == [0.8] * 5


def test_with_lambda_one_a_token_is_credited_the_reward_less_its_value() -> None:
    values = torch.tensor([0.5, 0.25, 1.0])
    assert gae(token_rewards(1.0, 3), values, gamma=1, gae_lambda=1).tolist() == [0.5, 0.75, 0.0]


def test_a_lambda_under_one_gives_the_numbers_worked_by_hand() -> None:
    # deltas: 0.6 - 0.5 = 0.1; 0.4 - 0.6 = -0.2; 1 - 0.4 = 0.6. With gamma lambda 1/2, from the end:
    # 0.6; -0.2 + 0.3 = 0.1; 0.1 + 0.05 = 0.15
    values = torch.tensor([0.5, 0.6, 0.4], dtype=torch.float64)
    credited = gae(token_rewards(1.0, 3), values, gamma=1, gae_lambda=0.5)
    assert credited.tolist() == pytest.approx([0.15, 0.1, 0.6])


def test_gamma_discounts_what_is_expected_next() -> None:
    # gamma 0.9, lambda 0: r + 0.9 V' - V = 0.9 * 0.6 - 0.5 = 0.04; 1 - 0.6 = 0.4
    values = torch.tensor([0.5, 0.6], dtype=torch.float64)
    assert gae(token_rewards(1.0, 2), values, gamma=0.9, gae_lambda=0).tolist() == pytest.approx([0.04, 0.4])


def test_the_end_is_worth_nothing_only_where_the_completion_ended() -> None:
    values = torch.tensor([0.5, 0.6], dtype=torch.float64)
    ended = gae(token_rewards(0.0, 2), values, gamma=1, gae_lambda=1)
    cut_off = gae(token_rewards(0.0, 2), values, gamma=1, gae_lambda=1, end_value=0.9)
    assert ended.tolist() == pytest.approx([-0.5, -0.6])
    assert cut_off.tolist() == pytest.approx([0.4, 0.3])


numbers = st.lists(st.floats(-3, 3), min_size=1, max_size=9)


@given(numbers, st.randoms(), st.floats(0, 1), st.floats(0, 1), st.floats(-2, 2))
def test_gae_equals_the_sum_over_all_later_deltas(
    row: list[float], random: Random, gamma: float, gae_lambda: float, end_value: float
) -> None:
    rewards = torch.tensor(row, dtype=torch.float64)
    values = torch.tensor([random.uniform(-2, 2) for _ in row], dtype=torch.float64)
    ours = gae(rewards, values, gamma=gamma, gae_lambda=gae_lambda, end_value=end_value)
    assert ours.tolist() == pytest.approx(by_definition(rewards, values, gamma, gae_lambda, end_value), abs=1e-9)


def test_advantages_have_no_gradient() -> None:
    values = torch.zeros(3, requires_grad=True)
    assert not gae(token_rewards(1.0, 3), values, gamma=1, gae_lambda=1).requires_grad


# Whitening


def test_whitening_gives_all_tokens_of_a_batch_mean_zero_and_sample_deviation_one() -> None:
    # 1 2 | 3 4 5: mean 3, squares 4 + 1 + 0 + 1 + 4 = 10, sample deviation sqrt(10 / 4)
    white = whiten([torch.tensor([1.0, 2]), torch.tensor([3.0, 4, 5])])
    size = 1 / math.sqrt(2.5)
    assert [one.tolist() for one in white] == [
        pytest.approx([-2 * size, -size]),
        pytest.approx([0, size, 2 * size], abs=1e-12),
    ]


@given(st.lists(numbers, min_size=1, max_size=5))
def test_whitening_keeps_the_order_and_is_finite(rows: list[list[float]]) -> None:
    every = [number for row in rows for number in row]
    white = [number for one in whiten([torch.tensor(row) for row in rows]) for number in one.tolist()]
    assert all(math.isfinite(number) for number in white)
    ranked = sorted(zip(every, white, strict=True))
    assert [number for _, number in ranked] == pytest.approx(sorted(white), abs=1e-6)


def test_equal_advantages_are_whitened_to_exactly_zero() -> None:
    assert [one.tolist() for one in whiten([torch.tensor([0.35, 0.35]), torch.tensor([0.35])])] == [[0, 0], [0]]


# How much the critic knew


def test_explained_variance_gives_the_numbers_worked_by_hand() -> None:
    returns = [torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])]
    assert explained_variance(returns, returns) == 1
    assert explained_variance([torch.full((2,), 0.5)] * 2, returns) == 0
    # R - V = -1/2 -1/2 1/2 1/2 against R around its mean: the same size, so nothing explained; reversed: 1 - 4
    assert explained_variance(returns[::-1], returns) == pytest.approx(-3)


def test_returns_that_do_not_vary_leave_nothing_to_explain() -> None:
    assert explained_variance([torch.tensor([0.3, 0.1])], [torch.tensor([1.0, 1.0])]) == 0
    assert explained_variance([], []) == 0
