"""What a run would take: counted exactly where it can be, scaled up by the stated formula where it cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from conftest import Letters, new_learner
from memory_r1 import cli
from memory_r1.bank import Entry, HashingEmbedder
from memory_r1.dialogue import Question
from memory_r1.memory.answer import SMALL
from memory_r1.policy.base import Completion
from memory_r1.rl import train
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings
from memory_r1.rl.algorithms.ppo import PPO, CriticSettings, PPOSettings
from memory_r1.rl.algorithms.sft import SFT, SFTSettings
from memory_r1.rl.estimate import Lengths, _between, _checks, _Cost, _prompts, _seconds, estimate
from memory_r1.rl.rollout import one_by_one
from memory_r1.rl.run.loop import Algorithm, LoopSettings
from memory_r1.rl.tasks.answer_episodes import AnswerEpisode
from memory_r1.rl.tasks.preflight import remarks
from memory_r1.rl.tasks.reward import each, em
from memory_r1.rl.tasks.task import Task
from memory_r1.rl.types import Demonstration

EPISODES = [Letters("a" * length) for length in (10, 20, 30, 40)]
SHOWN = [Demonstration("d", one.prompt, "yes") for one in EPISODES]
COST = _Cost(sample=1.0, answer=0.5, forward=10.0, learn=100.0, imitate=1000.0)
SETTINGS = replace(SMALL, max_tokens=6)


@dataclass(frozen=True)
class Twice(Letters):
    """An episode of two decisions."""

    def after(self, completion: Completion) -> Letters:
        return Letters(f"{self.id} again")


def grpo(**changed: float) -> GRPO:
    return GRPO(EPISODES, GRPOSettings(prompts=2, group=3, **changed), max_tokens=6)  # type: ignore[arg-type]


def ppo(**changed: float) -> PPO:
    settings = PPOSettings(prompts=2, group=1, minibatches=1, critic=CriticSettings(epochs=3), **changed)  # type: ignore[arg-type]
    return PPO(EPISODES, settings, max_tokens=6)


# What is counted


def test_lengths_in_short() -> None:
    assert Lengths.of([5, 1, 3]) == Lengths(3, 3, 5)
    assert Lengths.of(range(100)) == Lengths(50, 94, 99)


@pytest.mark.parametrize("algorithm", [grpo(), ppo()], ids=["grpo", "ppo"])
def test_an_estimate_counts_what_there_is_and_measures_the_rest(tiny_folder: Path, algorithm: Algorithm) -> None:
    learner = new_learner(tiny_folder)
    lengths = [len(learner.policy.encode(one.prompt)) for one in EPISODES]
    task = Task(EPISODES, EPISODES[:1], SHOWN, one_by_one, SETTINGS, ["beware"])
    warm = SFT(SHOWN, SFTSettings(epochs=2, batch=2))
    found = estimate(learner, task, [warm, algorithm], LoopSettings())
    assert (found.episodes, found.val, found.demonstrations) == (4, 1, 4)
    assert found.prompt == Lengths(lengths[2], lengths[2], lengths[3])
    assert found.iterations == {"sft": 4, algorithm.name: 2}
    assert found.reply == len(learner.policy.encode_reply("yes")) == 4
    assert found.minutes.keys() == found.iterations.keys()
    assert all(minutes > 0 for minutes in found.minutes.values())
    assert 0.05 < found.memory_gb < 50
    assert found.remarks == ["beware"]


def test_without_a_warm_start_replies_are_reckoned_as_long_as_they_may_be(tiny_folder: Path) -> None:
    task = Task(EPISODES, [], SHOWN, one_by_one, SETTINGS)
    assert estimate(new_learner(tiny_folder), task, [grpo()], LoopSettings()).reply == 6


def test_prompts_that_do_not_fit_the_context_are_counted(tiny_folder: Path) -> None:
    task = Task([*EPISODES, Letters("a" * 3000)], [], SHOWN, one_by_one, SETTINGS)
    found = estimate(new_learner(tiny_folder), task, [grpo()], LoopSettings())
    assert found.unfit == 1
    assert found.prompt.longest > 3000


# What is scaled up


@pytest.mark.parametrize(
    ("algorithm", "seconds"),
    [
        (SFT(SHOWN, SFTSettings(epochs=2, batch=2)), 4 * 2 * 1000),
        (grpo(kl_coef=0), 2 * 2 * (1 + 100)),
        (grpo(), 2 * 2 * (1 + 10 + 100)),  # the reference
        (grpo(minibatches=2, update_epochs=2), 2 * 2 * (1 + 10 + 10 + 200)),  # and the old log-probabilities
        (ppo(kl_coef=0), 2 * 2 * (1 + 100 + 10 + 300)),  # values, and three epochs of the critic
    ],
)
def test_the_seconds_of_an_algorithm_follow_the_formula(algorithm: Algorithm, seconds: float) -> None:
    assert _seconds(algorithm, COST) == seconds


def test_val_is_asked_at_both_ends_and_every_few_iterations_between() -> None:
    twenty = SFT(SHOWN, SFTSettings(epochs=10, batch=2))
    assert twenty.iterations == 20
    assert [_checks(twenty, LoopSettings(eval_every=every)) for every in (0, 20, 19, 5, 1)] == [2, 2, 3, 5, 21]


def test_between_two_prompts_the_cost_lies_on_a_straight_line() -> None:
    double = _Cost(*(2 * value for value in vars(COST).values()))
    assert _between([(100, COST), (200, double)], 150) == _Cost(1.5, 0.75, 15.0, 150.0, 1500.0)
    assert _between([(100, COST), (100, COST)], 100) == COST


def test_a_course_of_decisions_costs_what_so_many_single_ones_do(tiny_folder: Path) -> None:
    assert [prompt[0]["content"] for prompt in _prompts(Twice("a"))] == ["a", "a again"]
    assert [prompt[0]["content"] for prompt in _prompts(Letters("a"))] == ["a"]
    assert _seconds(grpo(), COST, decisions=2.0) == 2 * _seconds(grpo(), COST)
    learner = new_learner(tiny_folder)
    task = Task([Twice("a" * 20), Twice("a" * 40)], [], SHOWN, one_by_one, SETTINGS)
    lengths = sorted(len(learner.policy.encode(prompt)) for one in task.episodes for prompt in _prompts(one))
    assert estimate(learner, task, [grpo()], LoopSettings()).prompt == Lengths.of(lengths)


# What is said about the data


def asked(count: int, evidence: Sequence[str] = ("t1",)) -> list[Question]:
    return [Question(f"q{n}", "d", "Who?", "Rex", evidence=tuple(evidence)) for n in range(count)]


def episode(question: Question, turn_id: str) -> AnswerEpisode:
    entry = Entry("e1", "Rex", turn_ids=(turn_id,))
    return AnswerEpisode(question, (entry,), SMALL, each(em))


def test_few_questions_are_remarked_on_and_enough_are_not() -> None:
    assert remarks(asked(150), []) == []
    assert remarks(asked(149), [])[0].startswith("149 questions to train on: about 150 are known to be enough")


def test_questions_without_evidence_are_counted() -> None:
    assert remarks([*asked(150), *asked(7, [])], [])[0].startswith("7 of 157 questions name no evidence")


def test_questions_that_cannot_be_answered_are_counted() -> None:
    questions = asked(200)
    found = [*(episode(one, "t1") for one in questions[:150]), *(episode(one, "t9") for one in questions[150:190])]
    cannot, nothing = remarks(questions, found)
    assert cannot.startswith("40 of 200 questions cannot be answered from what is retrieved")
    assert nothing.startswith("10 of 200 questions retrieve nothing")


def test_a_question_asked_over_two_banks_is_one_question_and_answerable_over_either() -> None:
    questions = asked(150)
    over = [episode(one, turn_id) for turn_id in ("t1", "t9") for one in questions]
    assert remarks(questions, over) == []
    assert remarks(questions, over[:149] + over[150:])[0].startswith("1 of 150 questions cannot be answered")


# The dry run


def test_a_dry_run_says_what_a_run_would_take_and_writes_nothing(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "toy.jsonl"
    turn = {"dialogue": "a", "turn": "t1", "speaker": "Ann", "text": "My dog is called Rex"}
    question = {"dialogue": "a", "question": "What is the dog called?", "answer": "Rex", "evidence": ["t1"]}
    data.write_text("".join(json.dumps(record) + "\n" for record in (turn, *[question] * 3)), encoding="utf-8")
    quick = partial(train.estimate_answer_agent, embedder=HashingEmbedder())
    monkeypatch.setattr(train, "estimate_answer_agent", quick)
    before = set(tmp_path.rglob("*"))
    command = (
        f"train answer --data {data} --model {tiny_folder} --out {tmp_path / 'run'} --dry-run --grpo.prompts 2 "
        "--grpo.group 2 --answer.max-tokens 6"
    )
    assert cli.main(command.split()) == 0
    said = capsys.readouterr().out
    assert "episodes     3 to train on, 0 in val, 6 demonstrations" in said
    assert "grpo         2 iterations, about " in said
    assert "note: 3 questions to train on" in said
    assert cli.main([*command.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] == {"sft": 2, "grpo": 2}
    assert cli.main([*command.split(), "--from-rollouts"]) == 0
    said = capsys.readouterr().out
    assert "0 demonstrations" in said
    assert "sft" not in said
    assert "note: the warm start is not in these figures" in said
    assert set(tmp_path.rglob("*")) == before
