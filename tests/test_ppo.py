"""PPO: the whole update against one written out in plain loops, its credit, its critic, and a run that goes on."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import Letters, Naive, new_learner
from memory_r1.errors import InputError, TrainingError
from memory_r1.policy.base import Completion
from memory_r1.rl.algorithms.ppo import PPO, CriticSettings, PPOSettings, judge, update_actor, update_critic
from memory_r1.rl.model.critic import Critic
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.run.loop import Algorithm, Loop, LoopSettings, Metrics
from memory_r1.rl.types import Group, Reward
from rollouts import MAX_TOKENS, Stopped, random_groups

REWARDS = [[1.0, 0.0, 0.25], [0.0, 0.0], [0.3, 0.9, 0.1, 0.2], [0.6]]  # a prompt may be sampled once
SETTINGS = PPOSettings(prompts=4, group=3, minibatches=1, kl_coef=0.0, critic=CriticSettings(warmup=0))


def groups_of(rewards: Sequence[Sequence[float]] = REWARDS, finish: Any = "stop") -> list[Group]:
    return random_groups(rewards, finish)


def informed(learner: Learner) -> Critic:
    """A critic that has values worth clipping, and a reference that the policy has left."""
    learner.freeze_reference()
    with torch.no_grad():
        for weight in learner.model.parameters():
            if weight.requires_grad:
                weight += 0.02 * torch.sin(torch.arange(weight.numel(), dtype=weight.dtype)).view_as(weight)
    critic = learner.add_critic()
    with torch.no_grad():
        critic.head.weight.copy_(0.03 * torch.cos(torch.arange(32.0)))
    return critic


# The update


@dataclass
class Row:
    """One completion of the plain implementation."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    reward: float
    values: list[float]
    old: list[float]
    refs: list[float]
    advantages: list[float]
    returns: list[float]


class WrittenOut:
    """PPO with every formula in place: no packing, no vectors, one token after the other, gradient descent."""

    def __init__(self, learner: Learner, critic: Critic, naive: Naive, settings: PPOSettings) -> None:
        self.naive, self.settings = naive, settings
        self.policy, self.reference = copy.deepcopy(learner.model), copy.deepcopy(learner._reference)
        self.body, self.head = copy.deepcopy(learner.model), copy.deepcopy(critic.head)  # the critic is a fresh copy

    def values(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[Tensor]:
        states = self.body(torch.tensor([[*prompt, *tokens]]), output_hidden_states=True).hidden_states[-1][0]
        return [self.head(states[len(prompt) - 1 + t].float())[0] for t in range(len(tokens))]

    def rows(self, groups: Sequence[Group]) -> list[Row]:
        made, temperature = [], self.settings.temperature
        with torch.no_grad():
            for group in groups:
                for one in group.rollouts:
                    tokens, prompt = one.completion.tokens, group.prompt_tokens
                    values = [value.item() for value in self.values(prompt, tokens)]
                    old = self.naive(self.policy, prompt, tokens, temperature).tolist()
                    refs = self.naive(self.reference, prompt, tokens, temperature).tolist()
                    made.append(Row(prompt, tokens, one.reward.value, values, old, refs, [], []))
        for row in made:
            row.advantages = self.credit(row, self.settings.gae_lambda)
            ahead = self.credit(row, self.settings.critic.gae_lambda)
            row.returns = [a + v for a, v in zip(ahead, row.values, strict=True)]
        every = [advantage for row in made for advantage in row.advantages]
        mean = sum(every) / len(every)
        deviation = (sum((one - mean) ** 2 for one in every) / (len(every) - 1)) ** 0.5
        for row in made:
            row.advantages = [(one - mean) / deviation for one in row.advantages]
        return made

    def credit(self, row: Row, gae_lambda: float) -> list[float]:
        gamma, length = self.settings.gamma, len(row.tokens)
        rewards = [0.0] * (length - 1) + [row.reward]
        if self.settings.kl_in == "reward":
            rewards = [rewards[t] - self.settings.kl_coef * (row.old[t] - row.refs[t]) for t in range(length)]
        after = [*row.values[1:], 0.0]
        deltas = [rewards[t] + gamma * after[t] - row.values[t] for t in range(length)]
        return [
            sum((gamma * gae_lambda) ** (later - t) * deltas[later] for later in range(t, length))
            for t in range(length)
        ]

    def learn_values(self, rows: Sequence[Row], lr: float) -> list[float]:
        parameters = [*self.body.parameters(), *self.head.parameters()]
        optimizer, clip, losses = torch.optim.SGD(parameters, lr=lr), self.settings.critic.value_clip, []
        for _ in range(self.settings.critic.epochs):
            total = torch.zeros(())
            for row in rows:
                for t, value in enumerate(self.values(row.prompt, row.tokens)):
                    near = torch.clamp(value, row.values[t] - clip, row.values[t] + clip)
                    total = total + 0.5 * torch.max((value - row.returns[t]) ** 2, (near - row.returns[t]) ** 2)
            losses.append(self.descend(optimizer, total / sum(len(row.tokens) for row in rows)))
        return losses

    def learn_policy(self, rows: Sequence[Row], lr: float) -> list[float]:
        optimizer, settings, losses = torch.optim.SGD(self.policy.parameters(), lr=lr), self.settings, []
        for _ in range(settings.update_epochs):
            total = torch.zeros(())
            for row in rows:
                logprobs = self.naive(self.policy, row.prompt, row.tokens, settings.temperature)
                for t, logprob in enumerate(logprobs):
                    ratio = torch.exp(logprob - row.old[t])
                    near = torch.clamp(ratio, 1 - settings.clip_range_low, 1 + settings.clip_range_high)
                    total = total - torch.min(ratio * row.advantages[t], near * row.advantages[t])
                    if settings.kl_in == "loss":
                        total = total + settings.kl_coef * 0.5 * (logprob - row.refs[t]) ** 2
            losses.append(self.descend(optimizer, total / sum(len(row.tokens) for row in rows)))
        return losses

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([w for group in optimizer.param_groups for w in group["params"]], 1.0)
        optimizer.step()
        return loss.item()


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.6])
def test_an_update_equals_one_written_out(
    tiny_folder: Path, naive_logprobs: Naive, kl_in: Any, gae_lambda: float
) -> None:
    settings = replace(
        SETTINGS,
        kl_coef=0.1,
        kl="k2",
        kl_in=kl_in,
        temperature=0.8,
        gamma=0.95,
        gae_lambda=gae_lambda,
        update_epochs=2,
        critic=CriticSettings(warmup=0, epochs=3, value_clip=0.05, gae_lambda=0.9),
    )
    learner, groups, lr = new_learner(tiny_folder, 0), groups_of(), 0.05
    critic = informed(learner)
    plain = WrittenOut(learner, critic, naive_logprobs, settings)
    learner.optimizer = torch.optim.SGD(learner.model.parameters())
    critic.optimizer = torch.optim.SGD([w for group in critic.optimizer.param_groups for w in group["params"]])
    rows = plain.rows(groups)
    batch = judge(learner, groups, settings)
    ours = [row.advantages.tolist() for judged in batch for row in judged.group.rows]
    for credited, row in zip(ours, rows, strict=True):
        assert credited == pytest.approx(row.advantages, abs=1e-4)
    metrics = update_critic(learner, batch, settings, lr) | update_actor(learner, batch, settings, MAX_TOKENS, lr)
    value_losses, losses = plain.learn_values(rows, lr), plain.learn_policy(rows, lr)
    assert metrics["value_loss"] == pytest.approx(value_losses[-1], abs=1e-5)
    assert metrics["loss"] == pytest.approx(losses[-1], abs=1e-5)
    assert value_losses[-1] < value_losses[0]
    torch.testing.assert_close(critic.head.weight, plain.head.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        critic.values([1, 2], [[3, 4]])[0], torch.stack(plain.values([1, 2], [3, 4])), atol=1e-4, rtol=1e-4
    )
    for mine, theirs in zip(learner.model.parameters(), plain.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


# Credit


def test_before_the_critic_has_learned_every_token_of_a_completion_is_credited_its_reward(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder)
    learner.add_critic()
    batch = judge(learner, groups_of(), replace(SETTINGS, whiten=False))
    for judged, rewards in zip(batch, REWARDS, strict=True):
        for row, returns, reward in zip(judged.group.rows, judged.returns, rewards, strict=True):
            assert row.advantages.tolist() == pytest.approx([reward] * len(row.tokens))
            assert returns.tolist() == pytest.approx([reward] * len(row.tokens))


def test_advantages_are_whitened_over_the_batch_and_returns_are_not(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder)
    informed(learner)
    raw, white = (judge(learner, groups_of(), replace(SETTINGS, whiten=whiten)) for whiten in (False, True))
    every = torch.cat([row.advantages for judged in white for row in judged.group.rows])
    assert every.mean().item() == pytest.approx(0, abs=1e-6)
    assert every.std().item() == pytest.approx(1, abs=1e-6)
    for one, other in zip(raw, white, strict=True):
        assert all(a.equal(b) for a, b in zip(one.returns, other.returns, strict=True))


def test_whitened_advantages_do_not_depend_on_minibatches_nor_on_what_goes_through_the_model_at_once(
    tiny_folder: Path,
) -> None:
    learner = new_learner(tiny_folder)
    informed(learner)
    settings = [replace(SETTINGS, minibatches=n, micro_batch=m) for n, m in ((1, 0), (4, 1), (2, 2))]
    one, *others = ([row.advantages for j in judge(learner, groups_of(), s) for row in j.group.rows] for s in settings)
    for other in others:
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_what_another_completion_is_worth_changes_nothing_before_whitening(tiny_folder: Path) -> None:
    """Nothing is padded, so there is no masked place in which a number could hide."""
    learner, plain = new_learner(tiny_folder), replace(SETTINGS, whiten=False)
    informed(learner)
    usual = judge(learner, groups_of([[1.0, 0.0]]), plain)[0].group.rows[0].advantages
    beside = judge(learner, groups_of([[1.0, 1e6]]), plain)[0].group.rows[0].advantages
    assert beside.equal(usual)


def test_the_lambda_of_the_policy_and_that_of_the_critic_are_two(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder)
    informed(learner)

    def judged(policy: float, critic: float) -> tuple[list[float], list[float]]:
        settings = replace(SETTINGS, whiten=False, gae_lambda=policy, critic=CriticSettings(gae_lambda=critic))
        one = judge(learner, groups_of(), settings)[2]
        return one.group.rows[0].advantages.tolist(), one.returns[0].tolist()

    both, policy, critic = judged(1, 1), judged(0.5, 1), judged(1, 0.5)
    assert len(both[0]) > 1
    assert both[1] == policy[1] == pytest.approx([0.3] * len(both[1]))
    assert both[0] == critic[0]
    assert policy[0] != both[0]
    assert critic[1] != both[1]
    assert policy[0][-1] == both[0][-1]  # after the last token nothing is expected, whatever lambda


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("bootstrap", [True, False])
def test_only_what_was_cut_off_is_worth_what_is_expected_after_it(
    tiny_folder: Path, finish: str, bootstrap: bool
) -> None:
    learner = new_learner(tiny_folder)
    critic = informed(learner)
    groups = groups_of([[0.3]], finish)
    judged = judge(learner, groups, replace(SETTINGS, whiten=False, bootstrap=bootstrap))[0]
    tokens = groups[0].rollouts[0].completion.tokens
    after = critic.values(groups[0].prompt_tokens, [[*tokens, 0]])[0][-1].item()
    wanted = after if bootstrap and finish == "length" else 0.3
    assert abs(after) > 0.01
    assert judged.returns[0].tolist() == pytest.approx([wanted] * len(tokens), abs=1e-5)


def test_what_was_cut_off_may_be_left_out_of_policy_and_critic(tiny_folder: Path) -> None:
    learner, settings = new_learner(tiny_folder), replace(SETTINGS, truncated="mask")
    informed(learner)
    whole, cut_off = groups_of([[1.0, 0.0]]), groups_of([[0.5]], "length")
    alone, masked = (judge(learner, groups, settings) for groups in (whole, [*whole, *cut_off]))
    assert [len(judged.group.rows) for judged in masked] == [2, 0]
    ours, wanted = (update_actor(learner, batch, settings, MAX_TOKENS, 0.0) for batch in (masked, alone))
    assert ours == pytest.approx(wanted)
    assert update_critic(learner, masked, settings, 0.0) == pytest.approx(update_critic(learner, alone, settings, 0.0))


def test_a_batch_in_which_everything_was_cut_off_moves_nothing(tiny_folder: Path) -> None:
    learner, settings = new_learner(tiny_folder), replace(SETTINGS, truncated="mask")
    critic = informed(learner)
    before = [weight.detach().clone() for weight in [*learner.model.parameters(), *critic.head.parameters()]]
    batch = judge(learner, groups_of([[0.5, 1.0]], "length"), settings)
    metrics = update_critic(learner, batch, settings, 1.0) | update_actor(learner, batch, settings, MAX_TOKENS, 1.0)
    assert metrics["loss"] == metrics["value_loss"] == metrics["grad_norm"] == 0
    after = [*learner.model.parameters(), *critic.head.parameters()]
    assert all(new.equal(old) for new, old in zip(after, before, strict=True))


# The steps


def gradients(learner: Learner, settings: PPOSettings, groups: Sequence[Group]) -> Tensor:
    """Of policy and critic after one step of each that moved nothing."""
    kept: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        kept.extend(torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten().clone() for w in weights)

    assert learner.critic is not None
    handles = [one.register_step_pre_hook(keep) for one in (learner.optimizer, learner.critic.optimizer)]
    batch = judge(learner, groups, settings)
    update_actor(learner, batch, settings, MAX_TOKENS, 0.0)
    update_critic(learner, batch, settings, 0.0)
    for handle in handles:
        handle.remove()
    return torch.cat(kept)


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_the_gradients_do_not_depend_on_the_micro_batch(tiny_folder: Path, aggregation: Any) -> None:
    learner = new_learner(tiny_folder, max_grad_norm=1e9)
    informed(learner)
    settings = replace(SETTINGS, aggregation=aggregation, kl_coef=0.1)
    whole = gradients(learner, settings, groups_of())
    assert whole.norm() > 0.1
    for micro_batch in (1, 3, 8):
        cut = gradients(learner, replace(settings, micro_batch=micro_batch), groups_of())
        torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-3)


def test_minibatches_take_a_step_each_and_see_every_prompt_once_an_epoch(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, groups = new_learner(tiny_folder), groups_of()
    critic = informed(learner)
    steps = {"policy": 0, "critic": 0}
    scored: list[int] = []
    learner.optimizer.register_step_pre_hook(lambda *_: steps.update(policy=steps["policy"] + 1))
    critic.optimizer.register_step_pre_hook(lambda *_: steps.update(critic=steps["critic"] + 1))
    plain = learner.logprobs

    def counted(prompt: Sequence[int], *rest: Any) -> list[Tensor]:
        if torch.is_grad_enabled():
            scored.append(len(prompt))
        return plain(prompt, *rest)

    monkeypatch.setattr(learner, "logprobs", counted)
    settings = replace(SETTINGS, minibatches=2, update_epochs=3, critic=CriticSettings(epochs=2))
    batch = judge(learner, groups, settings)
    update_critic(learner, batch, settings, 1e-3)
    update_actor(learner, batch, settings, MAX_TOKENS, 1e-3)
    assert steps == {"policy": 6, "critic": 4}
    prompts = sorted(len(group.prompt_tokens) for group in groups)
    assert [sorted(scored[i : i + 4]) for i in range(0, 12, 4)] == [prompts] * 3


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_ratio_is_one_before_the_first_step(ragged_folder: Path, temperature: float, minibatches: int) -> None:
    learner = new_learner(ragged_folder)
    settings = replace(SETTINGS, temperature=temperature, group=4, minibatches=minibatches, clip_range_low=1e-5)
    settings = replace(settings, clip_range_high=1e-5, lr=0.0, critic=CriticSettings(lr=1e-3, warmup=0))
    ppo = PPO([Letters(text) for text in ("a rather long question", "hi", "why?", "so")], settings, MAX_TOKENS)
    ppo.prepare(learner)
    metrics = ppo.iterate(learner, 0)
    assert metrics["clip_fraction"] == 0
    assert metrics["sampler_gap"] < 1e-4
    assert metrics["sampler_gap_max"] < 1e-3


def test_old_logprobs_are_from_before_the_first_of_several_steps(tiny_folder: Path) -> None:
    """With a large step, the second minibatch's ratio has left 1 on its first and only visit."""
    learner = new_learner(tiny_folder)
    informed(learner)
    settings = replace(SETTINGS, minibatches=4, clip_range_low=1e-3, clip_range_high=1e-3)
    batch = judge(learner, groups_of(), settings)
    assert update_actor(learner, batch, settings, MAX_TOKENS, 1e-2)["clip_fraction"] > 0


def test_flipping_the_rewards_flips_the_policys_gradient(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, max_grad_norm=1e9)
    learner.add_critic()
    upright = gradients(learner, SETTINGS, groups_of())[: learner.trainable]
    flipped = gradients(learner, SETTINGS, groups_of([[-reward for reward in row] for row in REWARDS]))
    assert upright.norm() > 0.1
    torch.testing.assert_close(flipped[: learner.trainable], -upright, atol=1e-6, rtol=1e-4)


def test_an_update_makes_the_rewarded_completion_more_probable(tiny_folder: Path) -> None:
    for rewards in ([1.0, 0.0], [0.0, 1.0]):
        learner, groups = new_learner(tiny_folder), groups_of([rewards])
        learner.add_critic()
        completions = [rollout.completion.tokens for rollout in groups[0].rollouts]
        before = learner.logprobs(groups[0].prompt_tokens, completions)
        update_actor(learner, judge(learner, groups, SETTINGS), SETTINGS, MAX_TOKENS, 1e-2)
        after = learner.logprobs(groups[0].prompt_tokens, completions)
        risen = [(new - old).sum().item() > 0 for new, old in zip(after, before, strict=True)]
        assert risen == [reward == 1 for reward in rewards]


# The algorithm

EPISODES = [Letters(text) for text in ("one", "two", "three", "four")]
SMALL = PPOSettings(
    epochs_over_data=3.5, prompts=2, group=3, minibatches=2, lr=1e-2, kl_coef=0.01, critic=CriticSettings(lr=1e-2)
)
RUN = PPO(EPISODES, SMALL, max_tokens=4)


def test_while_the_critic_warms_up_it_learns_alone(ragged_folder: Path) -> None:
    learner = new_learner(ragged_folder)
    RUN.prepare(learner)
    assert learner.critic is not None
    before = [weight.detach().clone() for _, weight in learner._stateful().items()]
    first, second, third = (RUN.iterate(learner, iteration) for iteration in range(3))
    assert "lr" not in first
    assert "loss" not in second
    assert first["critic_lr"] == pytest.approx(1e-2 / 3)
    assert third["lr"] == pytest.approx(1e-2 / 3)  # the policy's warm-up begins when its steps do
    assert any(not new.equal(old) for new, old in zip(learner._stateful().values(), before, strict=True))
    quiet = new_learner(ragged_folder)
    RUN.prepare(quiet)
    same = [weight.detach().clone() for weight in quiet._stateful().values()]
    for iteration in range(2):
        RUN.iterate(quiet, iteration)
    assert all(new.equal(old) for new, old in zip(quiet._stateful().values(), same, strict=True))


@pytest.mark.parametrize("start", ["zero", "mean"])
def test_the_critic_begins_at_nothing_or_at_the_mean_reward(ragged_folder: Path, start: Any) -> None:
    learner = new_learner(ragged_folder)
    ppo = replace(RUN, settings=replace(SMALL, critic=CriticSettings(start=start, lr=0.0)))
    ppo.prepare(learner)
    assert learner.critic is not None
    reward = ppo.iterate(learner, 0)["reward"]
    assert reward > 0
    later = ppo.iterate(learner, 1)["reward"]
    assert later != reward
    value = learner.critic.values([1, 2], [[3]])[0].item()
    assert value == pytest.approx(reward if start == "mean" else 0)


def test_a_critic_comes_to_explain_which_prompts_pay(ragged_folder: Path) -> None:
    """Two prompts, one of which always pays: what one is told apart by is all there is to learn."""

    @dataclass(frozen=True)
    class Pays(Letters):
        def reward(self, completion: Completion) -> Reward:
            return Reward(float(self.id == "yes"))

    settings = PPOSettings(prompts=2, group=4, minibatches=1, lr=0.0, kl_coef=0.0, critic=CriticSettings(lr=1e-2))
    learner, ppo = new_learner(ragged_folder), PPO([Pays("yes"), Pays("no, never")], settings, 4)
    ppo.prepare(learner)
    explained = [ppo.iterate(learner, iteration)["explained_variance"] for iteration in range(40)]
    assert explained[0] == pytest.approx(0, abs=1e-6)
    assert explained[-1] > 0.9


def test_an_iteration_names_its_metrics(ragged_folder: Path) -> None:
    learner = new_learner(ragged_folder)
    RUN.prepare(learner)
    metrics = RUN.iterate(learner, 2)
    assert metrics.keys() == {
        *("reward", "reward/letters", "completion_tokens", "truncated", "loss", "kl", "clip_fraction", "grad_norm"),
        *("sampler_gap", "sampler_gap_max", "entropy_estimate", "lr"),
        *("value_loss", "explained_variance", "critic_grad_norm", "critic_lr", "frac_no_signal"),
    }


def test_an_iteration_depends_on_seed_and_iteration_alone(ragged_folder: Path) -> None:
    def metrics(seed: int, iteration: int) -> Metrics:
        learner = new_learner(ragged_folder)
        ppo = replace(RUN, seed=seed)
        ppo.prepare(learner)
        return ppo.iterate(learner, iteration)

    assert metrics(0, 3) == metrics(0, 3)
    assert metrics(0, 3) != metrics(0, 4)
    assert metrics(0, 3) != metrics(1, 3)


def test_without_a_critic_ppo_is_a_training_error(tiny_folder: Path) -> None:
    with pytest.raises(TrainingError, match="no critic yet"):
        judge(new_learner(tiny_folder), groups_of(), SETTINGS)


@pytest.mark.parametrize(
    "settings",
    [{"gamma": 1.5}, {"gae_lambda": -0.1}, {"minibatches": 0}, {"group": 0}, {"temperature": 0.0}, {"micro_batch": -1}],
)
def test_settings_that_could_not_learn_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"^{name} is {value}, expected"):
        PPOSettings(**settings)


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"warmup": -1}, {"value_clip": -0.1}, {"gae_lambda": 2.0}])
def test_a_critic_that_could_not_learn_is_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=rf"^critic\.{name} is {value}, expected"):
        CriticSettings(**settings)


# Resuming


def run(base: Path, folder: Path, lora_rank: int, algorithm: Algorithm = RUN) -> list[dict[str, Any]]:
    """Train on a fresh learner; returns the run's metrics without times."""
    Loop(new_learner(base, lora_rank), algorithm, folder, LoopSettings(eval_every=0, checkpoint_every=2)).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("lora_rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_stopped_run_goes_on_to_the_same_weights_critic_and_metrics(
    ragged_folder: Path, tmp_path: Path, lora_rank: int, at: int
) -> None:
    """Stopped while the critic warms up alone, later, and right after a state was written."""
    whole = run(ragged_folder, tmp_path / "whole", lora_rank)
    with pytest.raises(KeyboardInterrupt):
        run(ragged_folder, tmp_path / "stopped", lora_rank, Stopped(RUN, at))
    assert RUN.iterations == 7
    assert run(ragged_folder, tmp_path / "stopped", lora_rank) == whole
    (weights,) = (path.name for path in (tmp_path / "whole" / "last").glob("*.safetensors"))
    ours, wanted = (load_file(tmp_path / name / "last" / weights) for name in ("stopped", "whole"))
    assert all(ours[name].equal(wanted[name]) for name in wanted)
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True)["critic"] for name in ("stopped", "whole")]
    assert states[0]["weights"].keys() == states[1]["weights"].keys() > {"head.weight", "head.bias"}
    assert all(states[0]["weights"][name].equal(weight) for name, weight in states[1]["weights"].items())


def test_a_stopped_run_does_not_depend_on_the_process_that_resumes_it(ragged_folder: Path, tmp_path: Path) -> None:
    """Python's and torch's own randomness are somewhere else by then."""
    whole = run(ragged_folder, tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        run(ragged_folder, tmp_path / "stopped", 4, Stopped(RUN, 4))
    random.seed(12345)
    torch.manual_seed(12345)
    assert run(ragged_folder, tmp_path / "stopped", 4) == whole
