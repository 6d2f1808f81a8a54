"""Order and schedules: functions of seed and iteration alone, with their values worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.rl.order import decayed, iteration_batch, sampling_seed, warmed_up

LETTERS = "abcdefg"


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1000))
def test_every_item_comes_once_per_epoch_even_when_batches_do_not_divide_it(count: int, size: int, seed: int) -> None:
    items = list(range(count))
    stream = [item for iteration in range(3 * count) for item in iteration_batch(items, size, iteration, seed)]
    epochs = [stream[start : start + count] for start in range(0, len(stream), count)]
    assert all(sorted(epoch) == items for epoch in epochs)


def test_a_batch_depends_on_seed_and_iteration_alone() -> None:
    forward = [iteration_batch(LETTERS, 3, iteration, 7) for iteration in range(8)]
    backward = [iteration_batch(LETTERS, 3, iteration, 7) for iteration in reversed(range(8))]
    assert forward == backward[::-1]


def test_the_order_is_shuffled_anew_each_epoch_and_by_each_seed() -> None:
    orders = {"".join(iteration_batch(LETTERS, 7, epoch, seed)) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def test_the_order_of_a_seed_never_changes() -> None:
    assert "".join(iteration_batch(LETTERS, 7, 0, 0)) == "agbefdc"
    assert "".join(iteration_batch(LETTERS, 7, 1, 0)) == "cabfdeg"


def test_warm_up_is_linear_and_then_constant() -> None:
    assert [warmed_up(2.0, iteration, 4) for iteration in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("warmup", [0, 1])
def test_without_warm_up_the_first_step_is_a_whole_one(warmup: int) -> None:
    assert [warmed_up(2.0, iteration, warmup) for iteration in range(2)] == [2.0, 2.0]


def test_decay_is_linear_over_the_iterations() -> None:
    rates = [decayed(1.0, iteration, 1, 10) for iteration in range(10)]
    assert rates == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_warm_up_and_decay_multiply() -> None:
    rates = [decayed(1.0, iteration, 2, 4) for iteration in range(4)]
    assert rates == pytest.approx([0.5 * 1.0, 0.75, 0.5, 0.25])


def test_decay_never_goes_under_a_twentieth() -> None:
    assert [decayed(1.0, iteration, 0, 100) for iteration in (94, 95, 96, 99)] == pytest.approx(
        [0.06, 0.05, 0.05, 0.05]
    )


def test_sampling_seeds_differ_between_iterations_and_between_seeds_and_never_change() -> None:
    seeds = [sampling_seed(seed, iteration) for seed in range(20) for iteration in range(20)]
    assert len(set(seeds)) == 400
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seeds == [sampling_seed(seed, iteration) for seed in range(20) for iteration in range(20)]
