"""Rejection sampling: which rollouts are imitated, the file they are kept in, and training on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import Letters, new_learner
from memory_r1.bank import HashingEmbedder, OperationKind
from memory_r1.bench.dataset import load_dataset
from memory_r1.cli.train import Train
from memory_r1.errors import InputError, TrainingError
from memory_r1.memory.answer import AnswerSettings
from memory_r1.memory.manage import ManagerSettings, manager_reply
from memory_r1.policy import Policy, Prompt, ScriptedPolicy
from memory_r1.policy.base import Completion, Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.algorithms.sft import SFTSettings
from memory_r1.rl.course import Course
from memory_r1.rl.model.learner import LearnerSettings
from memory_r1.rl.rollout import one_by_one
from memory_r1.rl.settings import Others, TrainSettings
from memory_r1.rl.train import train_answer_agent, train_memory_manager
from memory_r1.rl.trajectories import (
    RejectionSettings,
    Trajectory,
    best,
    load_trajectories,
    sample_trajectories,
    save_trajectories,
)
from memory_r1.rl.types import Reward

EPISODE = Letters("x")


def rollout(text: str, value: float, finish: Any = "stop", well_formed: float = 1.0) -> tuple[Course, Reward]:
    return Course(EPISODE, [(EPISODE.prompt, Completion(text, finish))]), Reward(value, {"well_formed": well_formed})


def chosen(rollouts: Sequence[tuple[Course, Reward]], **settings: Any) -> list[str]:
    return [course.last[1].text for course, _ in best(rollouts, RejectionSettings(**settings))]


# The choice


def test_the_best_rollout_of_an_episode_is_kept() -> None:
    rollouts = [rollout("poor", 0.2), rollout("good", 0.9), rollout("fair", 0.5)]
    assert chosen(rollouts) == ["good"]
    assert chosen(rollouts, keep=2) == ["good", "fair"]
    assert chosen(rollouts, keep=9, least=0.5) == ["good", "fair"]
    assert chosen(rollouts, least=0.95) == []


def test_what_earned_nothing_is_never_imitated() -> None:
    assert chosen([rollout("a", 0.0), rollout("b", -0.5)], least=-1.0, keep=2) == []


@pytest.mark.parametrize("odd", [{"well_formed": 0.0}, {"finish": "length"}])
def test_what_left_the_format_or_was_cut_off_is_not_imitated_however_much_it_earned(odd: dict[str, Any]) -> None:
    assert chosen([rollout("odd", 1.0, **odd), rollout("whole", 0.5)]) == ["whole"]


def test_of_equal_rollouts_the_commonest_is_kept_and_none_twice() -> None:
    rollouts = [rollout(text, 1.0) for text in ("short", "usual", "usual", "third")]
    assert chosen(rollouts) == ["usual"]
    assert chosen(rollouts, keep=4) == ["usual", "short", "third"]


def test_what_is_earned_whatever_is_written_may_be_left_out() -> None:
    even = [rollout(text, 0.4) for text in "abc"]
    assert chosen(even) == ["a"]
    assert chosen(even, above_median=True) == []
    assert chosen([*even, rollout("d", 0.5)], above_median=True) == ["d"]


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"keep": 0}, {"temperature": 0.0}])
def test_settings_that_could_choose_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^rejection\.{next(iter(wrong))} is"):
        RejectionSettings(**wrong)


# Sampling


@dataclass(frozen=True)
class Two:
    """Two decisions; earns 1 where both replies are equal."""

    id: str = "two"
    before: str | None = None

    @property
    def prompt(self) -> Prompt:
        return Letters(f"{self.id} {self.before}").prompt

    def after(self, completion: Completion) -> Two | None:
        return Two(self.id, completion.text) if self.before is None else None

    def reward(self, completion: Completion) -> Reward:
        return Reward(float(completion.text == self.before))


class Seeded(ScriptedPolicy):
    """Replies by the seed, as an endpoint does: the same to equal prompts under one seed."""

    def __init__(self) -> None:
        super().__init__([], name="seeded")
        self.seeds: list[int | None] = []

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        self.seeds.append(sampling.seed)
        return [Completion("again" if "None" not in prompt[0]["content"] else f"again{'!' * (len(self.seeds) % 2)}")
                for prompt in prompts]  # fmt: skip


def sampled(policy: Policy, episodes: Sequence[Any], **settings: Any) -> list[Trajectory]:
    chosen = RejectionSettings(**settings)
    return sample_trajectories(policy, episodes, chosen, max_tokens=4, seed=0, score=one_by_one, batch=1)


def test_each_decision_of_a_rollout_is_a_line_with_the_reward_of_the_whole() -> None:
    policy = Seeded()
    first, second = sampled(policy, [Two()], samples=2)
    assert (first.id, first.reply, first.reward, first.policy) == ("two", "again", 1.0, "seeded")
    assert (second.id, second.reply, second.reward) == ("two", "again", 1.0)
    assert second.prompt == Two("two", "again").prompt
    assert len(set(policy.seeds)) == 3  # two first decisions, then both second ones


def test_a_local_policys_rollouts_are_its_samples_with_what_they_earned(ragged_folder: Path) -> None:
    policy = new_learner(ragged_folder).policy
    episodes = [Letters("one"), Letters("two")]
    kept = sampled(policy, episodes, samples=6)
    assert kept == sampled(policy, episodes, samples=6)
    for one in kept:
        assert one.prompt == Letters(one.id).prompt
        assert one.reward == Letters(one.id).reward(Completion(one.reply)).value > 0


def test_where_nothing_may_be_imitated_the_run_says_so() -> None:
    with pytest.raises(TrainingError, match="none of 3 rollouts of 1 episodes by scripted"):
        sampled(ScriptedPolicy(lambda prompt: "123"), [EPISODE], samples=3)


# The file


LINE: dict[str, Any] = {"id": "q1", "prompt": list(EPISODE.prompt), "reply": "Answer: Rex", "reward": 1}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    kept = [
        Trajectory("q1", EPISODE.prompt, "Answer: Рекс\nyes", 0.5, {"exact_match": 0.0}, "small"),
        Trajectory(**LINE),
    ]
    save_trajectories(tmp_path / "kept.jsonl", kept)
    assert load_trajectories(tmp_path / "kept.jsonl") == kept
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": ""}, "'id'"),
        ({"prompt": []}, "'prompt'"),
        ({"prompt": "hi"}, "'prompt'"),
        ({"prompt": [{"role": "user"}]}, "'prompt'"),
        ({"prompt": [{"role": "root", "content": "hi"}]}, "'prompt'"),
        ({"prompt": [{"role": "assistant", "content": "hi"}]}, "'prompt'"),
        ({"reply": None}, "'reply'"),
        ({"reply": "\ud800"}, "not JSON"),
        ({"reward": "1"}, "'reward'"),
        ({"reward": True}, "'reward'"),
        ({"reward": float("nan")}, "'reward'"),
        ({"parts": [1]}, "'parts'"),
        ({"policy": 7}, "'policy'"),
    ],
)
def test_a_malformed_line_is_an_input_error_that_names_it(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text(json.dumps(LINE) + "\n\n" + json.dumps({**LINE, **change}) + "\n")
    with pytest.raises(InputError, match=rf"^{path}, line 3: .*{said}"):
        load_trajectories(path)


@pytest.mark.parametrize("content", ["", "\n", "[1]\n", "{not json\n"])
def test_a_file_of_something_else_is_an_input_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_text(content)
    for wanted in (path, tmp_path / "none.jsonl"):
        with pytest.raises(InputError, match=f"^{wanted}"):
            load_trajectories(wanted)


# Training


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path, names = tmp_path / "toy.jsonl", {"dog": "Rex", "cat": "Tom"}
    turns = [{"turn": pet, "speaker": "Ann", "text": f"My {pet} is called {name}"} for pet, name in names.items()]
    asked = [{"question": f"What is the {pet}?", "answer": name, "evidence": [pet]} for pet, name in names.items()]
    records: list[dict[str, Any]] = [*turns, *asked]
    path.write_text("".join(json.dumps({"dialogue": "a", **one}) + "\n" for one in records))
    return path


SETTINGS = TrainSettings(
    algo="sft",
    reward="em",
    from_rollouts=True,
    rejection=RejectionSettings(samples=2),
    answer=AnswerSettings(k=2, per_speaker=False, max_tokens=4),
    manager=ManagerSettings(k=2, max_tokens=6),
    learner=LearnerSettings(lora_rank=2, precision="float32"),
    warm_start=SFTSettings(epochs=1, batch=1),
)


def says_rex(prompt: Prompt) -> str:
    return "Relevant: 1\nAnswer: Rex"


def train(
    base: Path, data: Path, out: Path, settings: TrainSettings = SETTINGS, teacher: Policy | None = None
) -> list[str]:
    """Train; returns what was reported."""
    heard: list[str] = []
    train_answer_agent(
        LocalPolicy(base, device="cpu"),
        load_dataset(data),
        settings,
        out,
        others=Others(teacher=teacher),
        embedder=HashingEmbedder(),
        report=lambda name, done, of, metrics: heard.append(f"{name} {done}/{of}"),
    )
    return heard


def test_a_teachers_rollouts_are_sampled_once_kept_and_imitated(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    teacher, out = ScriptedPolicy(says_rex, name="teacher"), tmp_path / "run"
    assert train(tiny_folder, data, out, teacher=teacher) == ["rollouts 2/2", "sft 1/1"]
    (kept,) = load_trajectories(out / "trajectories.jsonl")  # it is right about the dog alone
    assert (kept.reply, kept.reward, kept.policy) == (says_rex([]), 1.0, "teacher")
    asked = len(teacher.prompts)
    assert train(tiny_folder, data, out, teacher=teacher) == []
    assert len(teacher.prompts) == asked
    with pytest.raises(TrainingError, match="another run"):
        train(tiny_folder, data, out, teacher=ScriptedPolicy(says_rex, name="other"))


def test_a_file_of_trajectories_is_imitated_and_belongs_to_the_run(
    tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    file, out = tmp_path / "kept.jsonl", tmp_path / "run"
    file.write_text((json.dumps(LINE) + "\n") * 3)
    given = replace(SETTINGS, from_rollouts=False, trajectories=file)
    assert train(tiny_folder, data, out, given) == ["sft 1/3", "sft 2/3", "sft 3/3"]
    file.write_text((json.dumps(LINE) + "\n") * 4)
    with pytest.raises(TrainingError, match="another run"):
        train(tiny_folder, data, out, given)
    file.write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        train(tiny_folder, data, tmp_path / "new", given)
    assert not (tmp_path / "new").exists()


def test_a_manager_imitates_the_decisions_that_earned(tiny_folder: Path, data: Path, tmp_path: Path) -> None:
    """A replay of both turns: adding both answers both questions, and each decision is a line."""
    adds = ScriptedPolicy(lambda prompt: manager_reply([(1, OperationKind.ADD, None, _fact(prompt))]), name="adds")
    answerer = ScriptedPolicy(
        lambda prompt: f"Relevant: 1\nAnswer: {'Rex' if 'dog?' in prompt[1]['content'] else 'Tom'}"
    )
    settings, out = replace(SETTINGS, episode="replay", replay_turns=2), tmp_path / "run"
    policy, dataset = LocalPolicy(tiny_folder, device="cpu"), load_dataset(data)
    others = Others(answerer=answerer, teacher=adds)
    train_memory_manager(policy, dataset, settings, out, others=others, embedder=HashingEmbedder())
    first, second = load_trajectories(out / "trajectories.jsonl")
    assert (first.reward, second.reward, first.parts["add"]) == (1.0, 1.0, 1.0)
    assert "My dog is called Rex" in first.reply
    assert "My dog is called Rex" in second.prompt[1]["content"].split("New facts")[0]


def _fact(prompt: Prompt) -> str:
    return prompt[1]["content"].rsplit("Ann: ", 1)[1]


def test_two_sources_of_replies_are_refused() -> None:
    with pytest.raises(InputError, match="one source"):
        replace(SETTINGS, trajectories=Path("kept.jsonl"))


@pytest.mark.parametrize("flags", [{"teacher_model": "m"}, {"teacher_adapter": Path("a")}, {"teacher_base_url": "u"}])
def test_a_teacher_without_rollouts_to_imitate_is_refused(data: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="teacher"):
        Train("answer", data, tmp_path / "run", replace(SETTINGS, from_rollouts=False), **flags).run()
    assert not (tmp_path / "run").exists()
