"""A bandit that every algorithm must win, in seconds: one token, three arms, one of which pays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from conftest import Letters, new_learner
from memory_r1.policy.base import Completion, Message
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings
from memory_r1.rl.algorithms.ppo import PPO, CriticSettings, PPOSettings
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.run.loop import Algorithm
from memory_r1.rl.types import Reward

EPISODE = Letters("pull")  # arms: letters, which pay; other ASCII; bytes that are no text
GRPO_RUN = GRPOSettings(epochs_over_data=60, prompts=1, group=16, lr=5e-3, kl_coef=0.0)
PPO_RUN = PPOSettings(
    epochs_over_data=60, prompts=1, group=16, lr=5e-3, kl_coef=0.0, critic=CriticSettings(lr=1e-3, warmup=1)
)
PPO_ONE_SAMPLE = replace(PPO_RUN, epochs_over_data=640, prompts=16, group=1, minibatches=2, lr=3e-3)
ALGORITHMS: dict[str, Algorithm] = {
    "grpo": GRPO([EPISODE], GRPO_RUN, 1),
    "dr_grpo": GRPO([EPISODE], replace(GRPO_RUN, aggregation="constant", scale_rewards="none"), 1),
    "gspo": GRPO([EPISODE], replace(GRPO_RUN, ratio="sequence", update_epochs=2), 1),
    "ppo": PPO([EPISODE], PPO_RUN, 1),
    "ppo, one rollout a prompt": PPO([EPISODE], PPO_ONE_SAMPLE, 1),
    "ppo, three epochs": PPO([EPISODE], replace(PPO_RUN, update_epochs=3, dual_clip=3.0), 1),
}


@dataclass(frozen=True)
class TwoPulls:
    """Two decisions, the second after the first, and one outcome: it pays where both wrote a letter."""

    id: str = "pull"
    first: float = 1.0

    @property
    def prompt(self) -> list[Message]:
        return Letters(self.id).prompt

    def after(self, completion: Completion) -> TwoPulls | None:
        return TwoPulls("again", EPISODE.reward(completion).value) if self.id == "pull" else None

    def reward(self, completion: Completion) -> Reward:
        return Reward(self.first * EPISODE.reward(completion).value)


def chance_of_winning(learner: Learner, asked: str = EPISODE.id) -> float:
    """The probability that the next token pays, over the whole vocabulary."""
    decode = learner.policy.decode
    paid = torch.tensor([EPISODE.reward(Completion(decode([token]).strip())).value for token in range(263)])
    assert set(paid.tolist()) == {0.0, 1.0}
    prompt = torch.tensor([learner.policy.encode(Letters(asked).prompt)])
    with torch.no_grad():
        return float(torch.softmax(learner.model(prompt).logits[0, -1], 0) @ paid)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_three_armed_bandit_is_won(tiny_folder: Path, name: str) -> None:
    learner = new_learner(tiny_folder)
    algorithm = ALGORITHMS[name]
    assert chance_of_winning(learner) < 0.5
    algorithm.prepare(learner)
    for iteration in range(algorithm.iterations):
        algorithm.iterate(learner, iteration)
    assert chance_of_winning(learner) > 0.95


@pytest.mark.parametrize(
    "algorithm", [GRPO([TwoPulls()], GRPO_RUN, 1), PPO([TwoPulls()], PPO_RUN, 1)], ids=["grpo", "ppo"]
)
def test_two_decisions_with_one_outcome_are_both_learned(tiny_folder: Path, algorithm: Algorithm) -> None:
    learner = new_learner(tiny_folder)
    assert chance_of_winning(learner) * chance_of_winning(learner, "again") < 0.25
    algorithm.prepare(learner)
    for iteration in range(algorithm.iterations):
        algorithm.iterate(learner, iteration)
    assert chance_of_winning(learner) * chance_of_winning(learner, "again") > 0.9
