"""Replay episodes: several turns decided one after the other, one outcome, and how that becomes rows of an update."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from conftest import Letters, Naive, new_learner
from memory_r1.bank import HashingEmbedder, OperationKind
from memory_r1.dialogue import Dialogue, Question, Session, Turn
from memory_r1.errors import InputError
from memory_r1.memory.answer import AnswerAgent, AnswerSettings
from memory_r1.memory.extract import TurnExtractor
from memory_r1.memory.manage import manager_reply
from memory_r1.policy import Prompt
from memory_r1.policy.base import Completion, Sampling
from memory_r1.rl.algorithms.advantage import group_advantages
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings, credit, update
from memory_r1.rl.algorithms.ppo import PPOSettings
from memory_r1.rl.algorithms.ppo import judge as judged_by_critic
from memory_r1.rl.algorithms.update import rollout_metrics
from memory_r1.rl.course import courses
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.model.parallel import World
from memory_r1.rl.order import sampling_seed
from memory_r1.rl.rollout import sample_rollouts
from memory_r1.rl.tasks.manager_episodes import ManagerEpisode, Outcome, OutcomeSettings, judge, replay_episodes
from memory_r1.rl.tasks.reward import each, em
from memory_r1.rl.types import Group, Reward, Rollout, Step
from rollouts import Answerer

ADD, UPDATE, DELETE, NOOP = OperationKind
SAID = ["Nice weather", "I have a dog, Buddy", "I got a second dog, Scout", "See you", "My cat is Tom"]
TURNS = tuple(Turn(f"t{number}", "Ann", text) for number, text in enumerate(SAID, start=1))
DIALOGUE = Dialogue("d", (Session("s", datetime(2024, 5, 1), TURNS),))
DOGS = Question("q1", "d", "How many dogs does Ann have?", "two", evidence=("t2", "t3"))
CAT = Question("q2", "d", "What is the cat called?", "Tom", evidence=("t5",))


def by_the_memories(prompt: Prompt) -> str:
    """An answer agent that counts dogs by what it is shown."""
    return f"Relevant: 1\nAnswer: {'two' if 'two dogs' in prompt[-1]['content'] else 'one'}"


@pytest.fixture
def answerer() -> Answerer:
    return Answerer(by_the_memories)


def stretches(
    answerer: Answerer, questions: Sequence[Question] = (DOGS, CAT), turns: int = 3, **terms: float
) -> list[ManagerEpisode]:
    outcome = Outcome(AnswerAgent(answerer, AnswerSettings(k=5, per_speaker=False)), each(em), OutcomeSettings(**terms))
    extractor, embedder = TurnExtractor(), HashingEmbedder(64)
    return replay_episodes(DIALOGUE, questions, extractor, outcome, turns=turns, embedder=embedder)


def reply(kind: OperationKind, id_: int | None = None, text: str | None = None) -> Completion:
    return Completion(manager_reply([(1, kind, id_, text)]))


MALFORMED = Completion("I would add it.")


def last_of(episode: ManagerEpisode, *completions: Completion) -> ManagerEpisode:
    """The decision that is due after these."""
    for completion in completions:
        following = episode.after(completion)
        assert following is not None
        episode = following
    return episode


def shown_as(episode: ManagerEpisode, words: str) -> int:
    return next(number for number, entry in enumerate(episode.related) if words in entry.text)


# The data


def test_a_question_is_asked_after_the_stretch_in_which_its_evidence_is_complete(answerer: Answerer) -> None:
    first, second = stretches(answerer)
    assert (first.id, second.id) == ("d/t1..t3", "d/t4..t5")
    assert (first.questions, second.questions) == ((DOGS,), (CAT,))
    assert [entry.text for entry in second.bank.entries()] == SAID[:3]
    assert [episode.id for episode in stretches(answerer, turns=2)] == ["d/t3..t4", "d/t5..t5"]


@pytest.mark.parametrize("evidence", [(), ("t2", "nowhere")])
def test_a_question_whose_evidence_is_never_all_heard_is_never_asked(
    answerer: Answerer, evidence: tuple[str, ...]
) -> None:
    assert stretches(answerer, [replace(DOGS, evidence=evidence)]) == []


def test_a_stretch_has_at_least_one_turn(answerer: Answerer) -> None:
    with pytest.raises(InputError, match="stretches of 0 turns"):
        stretches(answerer, turns=0)


# The course


def test_each_decision_works_on_what_those_before_it_left(answerer: Answerer) -> None:
    episode = stretches(answerer)[0]
    second = last_of(episode, reply(ADD, text="sunny"))
    assert [entry.text for entry in second.bank.entries()] == ["sunny"]
    assert SAID[1] in second.prompt[-1]["content"]
    third = last_of(second, reply(ADD, text="Buddy is a dog"))
    assert {entry.text for entry in third.related} == {"sunny", "Buddy is a dog"}
    assert third.after(reply(NOOP)) is None


def test_rollouts_start_from_one_bank_and_write_forks_of_their_own(answerer: Answerer) -> None:
    episode = stretches(answerer)[0]
    one, other = (last_of(episode, reply(ADD, text=text)) for text in ("one", "other"))
    assert ([entry.text for entry in one.bank.entries()], [entry.text for entry in other.bank.entries()]) == (
        ["one"],
        ["other"],
    )
    assert episode.bank.entries() == []
    assert one.prompt != other.prompt


def test_a_malformed_or_refused_reply_changes_nothing_and_the_course_goes_on(answerer: Answerer) -> None:
    episode = stretches(answerer, format_coef=0.3)[0]
    lost = last_of(episode, MALFORMED, reply(UPDATE, 7, "no such entry"))
    assert lost.bank.entries() == []
    earned = lost.reward(reply(ADD, text="two dogs"))
    assert earned.parts["well_formed"] == pytest.approx(1 / 3)
    assert earned.value == pytest.approx(1 - 0.3 * 2 / 3)


def test_the_outcome_is_that_of_all_the_decisions_and_the_parts_are_means_per_decision(answerer: Answerer) -> None:
    episode = stretches(answerer)[0]
    at_last = last_of(episode, reply(NOOP), reply(ADD, text="a dog, Buddy"))
    merged = reply(UPDATE, shown_as(at_last, "Buddy"), "two dogs: Buddy, Scout")
    earned = at_last.reward(merged)
    assert earned.value == 1
    assert {name: earned.parts[name] for name in ("add", "update", "delete", "noop", "entries")} == pytest.approx(
        {"add": 1 / 3, "update": 1 / 3, "delete": 0, "noop": 1 / 3, "entries": 1}
    )
    assert last_of(episode, reply(NOOP), reply(NOOP)).reward(reply(NOOP)).value == 0


def test_equal_courses_earn_the_same_and_are_judged_once_in_one_batch(answerer: Answerer) -> None:
    episode, other = stretches(answerer)
    good = [last_of(episode, reply(ADD, text="two dogs"), reply(NOOP)) for _ in range(2)]
    bad, second = last_of(episode, reply(NOOP), MALFORMED), last_of(other, reply(NOOP))
    pairs = [(one, reply(NOOP)) for one in (*good, bad, second)]
    earned = judge(pairs)
    assert answerer.batches == [2]  # the bad course left an empty bank, about which nobody is asked
    assert earned[0] == earned[1]
    assert earned[0].value == 1
    assert judge(pairs) == earned
    assert answerer.batches == [2]


def test_evidence_that_a_rollout_deleted_on_its_way_is_missed(answerer: Answerer) -> None:
    episode = stretches(answerer, retention_coef=1.0)[0]
    at_last = last_of(episode, reply(NOOP), reply(ADD, text=SAID[1]))
    kept, dropped = judge([(at_last, reply(ADD, text=SAID[2])), (at_last, reply(DELETE, 0))])
    assert (kept.parts["retention"], dropped.parts["retention"]) == (1.0, 0.0)


def test_the_size_term_counts_every_word_heard_up_to_the_end_of_the_stretch(answerer: Answerer) -> None:
    second = stretches(answerer)[1]
    assert second.heard == sum(len(text.split()) for text in SAID)


def test_the_demonstrations_of_a_stretch_add_every_fact_in_turn(answerer: Answerer) -> None:
    episode = stretches(answerer)[0]
    shown = list(episode.demonstrations())
    assert len(shown) == 3
    at_last = last_of(episode, *(Completion(one.reply) for one in shown[:2]))
    assert [entry.text for entry in at_last.bank.entries()] == SAID[:2]
    assert shown[2].prompt == at_last.prompt


# Sampling


def test_first_decisions_share_a_prompt_and_later_ones_are_drawn_together_with_a_seed_for_each_step(
    answerer: Answerer,
) -> None:
    drawn: list[tuple[int, int, int | None]] = []

    def draw(prompts: Sequence[Prompt], sampling: Sampling, n: int) -> list[list[Completion]]:
        drawn.append((len(prompts), n, sampling.seed))
        return [[reply(ADD, text=f"{place}/{number}") for number in range(n)] for place, _ in enumerate(prompts)]

    first, second = courses(draw, stretches(answerer), n=2, sampling=Sampling(seed=5))
    # two stretches twice; all four have a second decision, the two of the longer stretch a third
    assert drawn == [(2, 2, 5), (4, 1, sampling_seed(5, 1)), (2, 1, sampling_seed(5, 2))]
    assert [len(course.written) for course in (*first, *second)] == [3, 3, 2, 2]
    assert first[0].written[0][0] == first[1].written[0][0]
    assert first[0].written[1][0] != first[1].written[1][0]


def test_a_rollout_holds_every_decision_as_it_was_sampled(answerer: Answerer, ragged_folder: Path) -> None:
    policy, episodes = new_learner(ragged_folder).policy, stretches(answerer)
    long, short = sample_rollouts(policy, episodes, n=2, sampling=Sampling(4, 1.0, seed=0), score=judge)
    assert [len(one.later) for one in (*long.rollouts, *short.rollouts)] == [2, 2, 1, 1]
    for group in (long, short):
        for rollout in group.rollouts:
            episode = cast(ManagerEpisode, group.episode)
            for step in group.steps(rollout):
                assert list(step.prompt_tokens) == policy.encode(episode.prompt)
                assert len(step.completion.tokens) == len(step.completion.logprobs) > 0
                episode = episode.after(step.completion) or episode
            assert rollout.reward == episode.reward(group.steps(rollout)[-1].completion)


def test_the_same_iteration_draws_the_same_courses(answerer: Answerer, ragged_folder: Path) -> None:
    settings = GRPOSettings(prompts=2, group=2, kl_coef=0.0)

    def metrics(iteration: int) -> dict[str, float]:
        grpo = GRPO(stretches(answerer), settings, 4, score=judge)
        return grpo.iterate(new_learner(ragged_folder), iteration)

    assert metrics(0) == metrics(0)
    assert metrics(0) != metrics(1)


# Credit


def completion(*tokens: int, finish: Any = "stop") -> Completion:
    return Completion("", finish, tokens=tokens, logprobs=(-1.0,) * len(tokens))


def group_of(*rollouts: tuple[float, Sequence[tuple[tuple[int, ...], Completion]]]) -> Group:
    """Rollouts with what they earned and the prompt and completion of each decision; the first prompt is (1, 2)."""
    made = [
        Rollout(first, Reward(reward), tuple(Step(prompt, one) for prompt, one in later))
        for reward, ((_, first), *later) in rollouts
    ]
    return Group(Letters("x"), (1, 2), tuple(made))


START = (1, 2)
LONG = group_of(
    (1.0, [(START, completion(5, 6)), ((3, 4, 3), completion(7)), ((9,), completion(4, 4, 8))]),
    (0.0, [(START, completion(6)), ((3, 3, 3), completion(8, 9)), ((9,), completion(2))]),
    (0.0, [(START, completion(8, 8, 8)), ((3, 3, 3), completion(9)), ((9,), completion(3, 3))]),
)
SHORT = replace(LONG, rollouts=tuple(replace(rollout, later=()) for rollout in LONG.rollouts))
SETTINGS = GRPOSettings(prompts=1, group=3, kl_coef=0.0)


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_advantages_do_not_depend_on_how_many_decisions_an_episode_had(scale: Any) -> None:
    """Credited among its three rollouts first, expanded to nine rows after."""
    settings = replace(SETTINGS, scale_rewards=scale)
    wanted = group_advantages(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0]), scale=scale)
    for group in (LONG, SHORT):
        ((first, *later),) = credit([group], settings)
        assert [row.advantages[0].item() for row in first.rows] == pytest.approx(wanted.tolist())
        credited = {tuple(row.tokens): row.advantages.tolist() for part in (first, *later) for row in part.rows}
        for rollout, advantage in zip(group.rollouts, wanted.tolist(), strict=True):
            for step in group.steps(rollout):
                tokens = step.completion.tokens
                assert credited[tokens] == pytest.approx([advantage] * len(tokens))


def test_decisions_with_equal_prompts_share_a_sequence() -> None:
    (parts,) = credit([LONG], SETTINGS)
    assert {part.prompt: len(part.rows) for part in parts} == {START: 3, (3, 4, 3): 1, (3, 3, 3): 2, (9,): 3}


def test_the_gradient_is_that_of_every_decision_written_out(tiny_folder: Path, naive_logprobs: Naive) -> None:
    learner = new_learner(tiny_folder)
    seen: list[torch.Tensor] = []
    weights = [weight for weight in learner.model.parameters() if weight.requires_grad]
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append(torch.cat([weight.grad.flatten() for weight in weights]))
    )
    learner.settings = replace(learner.settings, max_grad_norm=1e9)
    metrics = update(learner, [LONG], SETTINGS, 8, 0.0)
    deviation = (1 / 3) ** 0.5 + 1e-4  # of 1, 0, 0
    loss = torch.zeros(())
    for rollout in LONG.rollouts:
        for step in LONG.steps(rollout):
            logprobs = naive_logprobs(learner.model, step.prompt_tokens, step.completion.tokens)
            loss = loss - (rollout.reward.value - 1 / 3) / deviation * (logprobs - logprobs.detach()).exp().mean() / 9
    wanted = torch.cat([one.flatten() for one in torch.autograd.grad(loss, weights)])
    assert wanted.norm() > 0.1
    torch.testing.assert_close(seen[0], wanted, atol=1e-5, rtol=1e-3)
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_a_stretch_whose_rollouts_earn_the_same_is_one_group_without_signal(tiny_folder: Path) -> None:
    even = replace(LONG, rollouts=tuple(replace(rollout, reward=Reward(0.5)) for rollout in LONG.rollouts))
    assert update(new_learner(tiny_folder), [even, LONG], SETTINGS, 8, 0.0)["frac_no_signal"] == 0.5


def test_a_decision_that_was_cut_off_is_masked_and_those_around_it_are_not() -> None:
    cut_off = Step((3, 4, 3), completion(7, finish="length"))
    first = LONG.rollouts[0]
    group = replace(LONG, rollouts=(replace(first, later=(cut_off, first.later[1])), *LONG.rollouts[1:]))
    (parts,) = credit([group], replace(SETTINGS, truncated="mask"))
    assert {part.prompt: len(part.rows) for part in parts} == {START: 3, (3, 3, 3): 2, (9,): 3}


def test_lengths_and_cuts_are_means_over_all_completions() -> None:
    metrics = rollout_metrics([LONG])
    assert (metrics["reward"], metrics["completion_tokens"]) == pytest.approx((1 / 3, 16 / 9))
    assert metrics["truncated"] == 0


# PPO

EXPECTED = {(5, 6): [0.1, 0.2], (7,): [0.6], (4, 4, 8): [0.5, 0.5, 0.9], (6,): [0.3]}


def told(
    *groups: Group, **settings: Any
) -> tuple[dict[tuple[int, ...], list[float]], dict[tuple[int, ...], list[float]]]:
    """The advantages and the returns of each completion under a critic that expects EXPECTED, and 0.4 after it."""

    def values(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        return [torch.tensor([*EXPECTED[tuple(tokens[:-1])], 0.4]) for tokens in completions]

    critic = SimpleNamespace(values=values)
    stand_in = SimpleNamespace(critic=critic, world=World(), version=0, sharing=lambda prompts: nullcontext())
    learner = cast(Learner, stand_in)
    batch = judged_by_critic(learner, groups, PPOSettings(whiten=False, kl_coef=0.0, **settings))
    pairs = [pair for one in batch for pair in zip(one.group.rows, one.returns, strict=True)]
    rounded = [(tuple(row.tokens), row.advantages.tolist(), returns.tolist()) for row, returns in pairs]
    return {tokens: own for tokens, own, _ in rounded}, {tokens: returns for tokens, _, returns in rounded}


TWO = group_of((1.0, [(START, completion(5, 6)), ((3, 4, 3), completion(7))]), (0.0, [(START, completion(6))]))


def test_advantages_run_through_the_decisions_of_a_rollout() -> None:
    """Values 0.1 0.2 | 0.6, reward 1: deltas 0.1 0.4 0.4, and with lambda 0.5 from the end 0.4, 0.6, 0.4."""
    advantages, returns = told(TWO, gae_lambda=0.5)
    assert advantages[5, 6] == pytest.approx([0.4, 0.6])
    assert advantages[7,] == pytest.approx([0.4])
    assert advantages[6,] == pytest.approx([-0.3])
    assert [*returns[5, 6], *returns[7,], *returns[6,]] == pytest.approx([1, 1, 1, 0])


def test_the_outcome_stands_on_the_last_decisions_last_token_alone() -> None:
    """With lambda 0 an advantage is one delta, and only the last holds the reward."""
    advantages, _ = told(TWO, gae_lambda=0.0)
    assert advantages[5, 6] == pytest.approx([0.1, 0.4])  # the second expects what the next decision begins with
    assert advantages[7,] == pytest.approx([0.4])


def test_with_lambda_one_each_decision_is_credited_as_if_it_stood_alone() -> None:
    """The outcome less what was expected, whatever the number of decisions (trap 19)."""
    three = group_of((1.0, [(START, completion(5, 6)), ((3, 4, 3), completion(7)), ((9,), completion(4, 4, 8))]))
    advantages, _ = told(three)
    for tokens, values in EXPECTED.items():
        if tokens in advantages:
            alone, _ = told(group_of((1.0, [(START, completion(*tokens))])))
            assert advantages[tokens] == pytest.approx([1 - value for value in values])
            assert advantages[tokens] == pytest.approx(alone[tokens])


def test_a_masked_decision_is_the_environments_and_the_outcome_stands_on_the_last_one_left() -> None:
    later = [((3, 4, 3), completion(7, finish="length")), ((9,), completion(4, 4, 8))]
    middle, _ = told(group_of((1.0, [(START, completion(5, 6)), *later])), gae_lambda=0.0, truncated="mask")
    assert middle == {(5, 6): pytest.approx([0.1, 0.3]), (4, 4, 8): pytest.approx([0.0, 0.4, 0.1])}
    last, _ = told(group_of((1.0, [(START, completion(5, 6)), later[0]])), gae_lambda=0.0, truncated="mask")
    assert last == {(5, 6): pytest.approx([0.1, 0.8])}


def test_only_a_cut_at_the_end_of_the_course_is_bootstrapped() -> None:
    cut_off = completion(7, finish="length")
    ended, _ = told(group_of((1.0, [(START, completion(5, 6)), ((3, 4, 3), cut_off)])), bootstrap=True)
    assert ended[7,] == pytest.approx([0.4 - 0.6])  # what is expected after it, in place of the reward
    went_on, _ = told(
        group_of((1.0, [(START, replace(completion(5, 6), finish="length")), ((9,), completion(7))])), bootstrap=True
    )
    assert went_on[5, 6] == pytest.approx([0.9, 0.8])
