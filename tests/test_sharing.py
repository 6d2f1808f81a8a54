"""What the prompts of a step begin with, computed once: the step is the one that computes it for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import new_learner
from memory_r1.rl.algorithms import grpo, ppo
from memory_r1.rl.algorithms.sft import SFT, SFTSettings
from memory_r1.rl.model import packed
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.model.packed import Beginning
from memory_r1.rl.types import Demonstration, Group
from rollouts import MAX_TOKENS, random_groups

INSTRUCTIONS = tuple((5 * number) % 241 for number in range(80))
REWARDS = [[1.0, 0.0, 0.25], [0.0, 0.5], [0.3, 0.9, 0.1, 0.2]]


def groups() -> list[Group]:
    return [replace(group, prompt_tokens=(*INSTRUCTIONS, *group.prompt_tokens)) for group in random_groups(REWARDS)]


def grpo_step(learner: Learner) -> None:
    learner.freeze_reference()
    settings = grpo.GRPOSettings(prompts=3, kl_coef=0.1)
    grpo.update(learner, groups(), settings, MAX_TOKENS, 1e-2)
    grpo.update(learner, groups(), replace(settings, minibatches=3, max_staleness=9), MAX_TOKENS, 1e-2)


def ppo_step(learner: Learner) -> None:
    learner.freeze_reference()
    learner.add_critic()
    settings = ppo.PPOSettings(prompts=3, kl_coef=0.1, kl_in="reward", max_staleness=9)
    for _ in range(2):
        batch = ppo.judge(learner, groups(), settings)
        ppo.update_critic(learner, batch, settings, 1e-2)
        ppo.update_actor(learner, batch, settings, MAX_TOKENS, 1e-2)


def sft_step(learner: Learner) -> None:
    shown = [
        Demonstration(str(n), [{"role": "user", "content": "the same instructions " * 20 + text}], reply)
        for n, (text, reply) in enumerate([("a dog", "one"), ("two dogs", "two"), ("no dog at all", "none")])
    ]
    algorithm = SFT(shown, SFTSettings(batch=3, lr=1e-2))
    for iteration in range(1, 3):
        algorithm.iterate(learner, iteration)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long the beginnings were that have been computed."""
    lengths: list[int] = []
    first = Beginning.__init__

    def counted(self: Beginning, model: object, tokens: list[int]) -> None:
        lengths.append(len(tokens))
        first(self, model, tokens)

    monkeypatch.setattr(Beginning, "__init__", counted)
    return lengths


def weights(learner: Learner) -> Tensor:
    critic = learner.critic.state()["weights"] if learner.critic else {}
    return torch.cat([one.flatten() for one in [*learner.state()["weights"].values(), *critic.values()]])


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize("step", [grpo_step, ppo_step, sft_step])
def test_a_step_that_shares_the_instructions_is_the_step_that_does_not(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: list[int],
    step: Callable[[Learner], None],
    rank: int,
) -> None:
    before = weights(new_learner(tiny_folder, rank))
    sharing = new_learner(tiny_folder, rank)
    step(sharing)
    assert len(made) > 1
    assert min(made) >= len(INSTRUCTIONS)
    count = len(made)
    monkeypatch.setattr(packed, "WORTH", 10**9)
    alone = new_learner(tiny_folder, rank)
    step(alone)
    assert len(made) == count
    moved = (weights(alone)[: len(before)] - before).abs().max()
    assert moved > 1e-3
    assert (weights(sharing) - weights(alone)).abs().max() < 0.02 * moved


def test_checkpointing_shares_nothing(tiny_folder: Path, made: list[int]) -> None:
    grpo_step(new_learner(tiny_folder, 4, checkpointing=True))
    assert made == []


def test_weights_get_their_gradient_when_the_sharing_ends(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    prompts = [[*INSTRUCTIONS, 7], [*INSTRUCTIONS, 9]]

    def gradient() -> Tensor:
        named = dict(learner.model.named_parameters())
        return torch.cat([w.grad.flatten() for n, w in named.items() if ".lora_B." in n and w.grad is not None])

    with learner.sharing(prompts):
        for prompt in prompts:
            torch.cat(learner.logprobs(prompt, [[3, 1], [4]])).sum().backward()  # type: ignore[no-untyped-call]
        within = gradient()
    assert (gradient() - within).abs().max() > 0.01 * within.abs().max()


def test_an_error_within_leaves_no_sharing_behind(tiny_folder: Path, made: list[int]) -> None:
    learner = new_learner(tiny_folder, 4)
    prompts = [[*INSTRUCTIONS, 7], [*INSTRUCTIONS, 9]]

    def stopped() -> None:
        with learner.sharing(prompts):
            learner.logprobs(prompts[0], [[3]])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    learner.logprobs(prompts[0], [[3]])
    assert made == [80]
