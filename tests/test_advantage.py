"""Group advantages: hand-worked numbers, and the groups that must be credited nothing."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.rl.advantage import DEVIATION_FLOOR, group_advantages

EPS = 1e-4  # the default, named here so that changing it is noticed


def test_two_of_four_right_give_the_numbers_worked_by_hand() -> None:
    # mean 1/2; squares sum to 4/4 = 1; the sample deviation divides by G - 1 = 3
    size = 0.5 / (math.sqrt(1 / 3) + EPS)
    assert group_advantages(torch.tensor([[1.0, 0, 0, 1]])).tolist()[0] == pytest.approx([size, -size, -size, size])
    assert size == pytest.approx(0.86588, abs=1e-5)


def test_the_deviation_is_the_sample_one_and_eps_is_added_to_it() -> None:
    # mean 1; squares sum to 9 + 1 + 1 + 1 = 12; 12 / 3 = 4; deviation 2
    credited = group_advantages(torch.tensor([[4.0, 0, 0, 0]]), eps=0.5)
    assert credited.tolist()[0] == pytest.approx([3 / 2.5, -1 / 2.5, -1 / 2.5, -1 / 2.5])


def test_without_scale_rewards_are_only_centred() -> None:
    assert group_advantages(torch.tensor([[4.0, 0, 0, 0]]), scale=False).tolist() == [[3, -1, -1, -1]]


def test_a_group_is_credited_against_itself_alone() -> None:
    together = group_advantages(torch.tensor([[1.0, 0, 0, 1], [100, 50, 0, 0]]))
    assert together[0].equal(group_advantages(torch.tensor([[1.0, 0, 0, 1]]))[0])


def test_a_higher_reward_is_credited_more() -> None:
    low, middle, high = group_advantages(torch.tensor([[0.0, 0.4, 1.0]])).tolist()[0]
    assert low < middle < high
    assert low < 0 < high


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.35, 1 / 3, -2.5])
@pytest.mark.parametrize("scale", [True, False])
def test_equal_rewards_give_exactly_zero(reward: float, scale: bool) -> None:
    assert group_advantages(torch.full((2, 7), reward), scale=scale).tolist() == [[0.0] * 7] * 2


def test_rewards_that_differ_by_rounding_alone_give_exactly_zero() -> None:
    near = [0.35, 0.35000002, 0.7 / 2, 0.1 + 0.25, 0.34999998]
    assert group_advantages(torch.tensor([near], dtype=torch.float32)).tolist() == [[0.0] * 5]
    assert group_advantages(torch.tensor([near], dtype=torch.float64)).tolist() == [[0.0] * 5]


def test_the_floor_on_the_deviation_separates_noise_from_signal() -> None:
    under, over = DEVIATION_FLOOR * 0.9, DEVIATION_FLOOR * 1.1  # [0, d, 2d] has the sample deviation d
    assert group_advantages(torch.tensor([[0, under, 2 * under]])).tolist() == [[0.0] * 3]
    assert group_advantages(torch.tensor([[0, over, 2 * over]])).tolist()[0][2] == pytest.approx(over / (over + EPS))


@pytest.mark.parametrize("scale", [True, False])
def test_a_group_of_one_is_credited_zero(scale: bool) -> None:
    assert group_advantages(torch.tensor([[0.7], [0.0]]), scale=scale).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), ()])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(P, G\)"):
        group_advantages(torch.zeros(shape))


rewards = st.lists(st.sampled_from([0.0, 0.2, 1 / 3, 0.5, 1.0]), min_size=1, max_size=8)


@given(st.lists(st.integers(0, 10), min_size=2, max_size=8), st.randoms())
def test_permuting_rollouts_permutes_their_advantages(row: list[int], random: Random) -> None:
    order = random.sample(range(len(row)), len(row))
    credited = group_advantages(torch.tensor([row], dtype=torch.float64))[0]
    permuted = group_advantages(torch.tensor([[row[i] for i in order]], dtype=torch.float64))[0]
    assert permuted.tolist() == pytest.approx([credited[i].item() for i in order], abs=1e-12)


@given(rewards)
def test_every_row_sums_to_zero_and_is_finite(row: list[float]) -> None:
    credited = group_advantages(torch.tensor([row, row[::-1]]))
    assert credited.isfinite().all()
    assert credited.sum(1).tolist() == pytest.approx([0, 0], abs=1e-9)
