"""A look at the policy: which rollouts are kept to read, what of them is kept, in whose precision they are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from conftest import Letters, new_learner
from memory_r1.policy.base import Completion, Sampling
from memory_r1.rl.rollout import one_by_one
from memory_r1.rl.run.evaluation import TAIL, evaluate, spread
from memory_r1.rl.types import Reward

EPISODES = [Letters(text) for text in ("one", "two", "three", "four", "five")]


def test_without_val_a_few_training_episodes_are_answered_and_nothing_is_counted(ragged_folder: Path) -> None:
    learner = new_learner(ragged_folder)
    found = evaluate(learner, [], EPISODES, shown=2, max_tokens=8, score=one_by_one)
    assert found.metrics == {}
    assert [sample.episode for sample in found.samples] == ["one", "three"]


@dataclass(frozen=True)
class Twice(Letters):
    """An episode of two decisions."""

    def after(self, completion: Completion) -> Letters:
        return Letters(f"{self.id} again")


def test_of_several_decisions_all_are_kept_and_the_outcome_is_found_out_outside_of_the_policys_precision(
    ragged_folder: Path,
) -> None:
    """A frozen answer agent, an embedder or a judge must run as it runs in use."""
    learner, cast = new_learner(ragged_folder, precision="bfloat16"), list[bool]()

    def score(pairs: Sequence[tuple[Letters, Completion]]) -> list[Reward]:
        cast.append(torch.is_autocast_enabled("cpu"))
        return one_by_one(pairs)

    (sample,) = evaluate(learner, [Twice("one")], [], shown=1, max_tokens=8, score=score).samples
    with learner.precision():
        first, second = (
            learner.policy.complete([Letters(text).prompt], Sampling(8))[0] for text in ("one", "one again")
        )
    assert cast == [False]
    assert (sample.prompt, sample.reply) == ("one", f"{first.text}\n\n{second.text}")
    assert sample.reward == Letters("").reward(second).value


def test_the_end_of_a_long_prompt_is_kept(ragged_folder: Path) -> None:
    learner, long = new_learner(ragged_folder), Letters("a" * 700 + "the question")
    (sample,) = evaluate(learner, [long], [], shown=1, max_tokens=2, score=one_by_one).samples
    assert sample.prompt == "... " + long.id[-TAIL:]


@pytest.mark.parametrize(("count", "wanted"), [(0, ""), (1, "a"), (2, "ac"), (3, "abd"), (5, "abcde"), (9, "abcde")])
def test_samples_are_spread_evenly(count: int, wanted: str) -> None:
    assert "".join(spread("abcde", count)) == wanted
