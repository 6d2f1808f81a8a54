"""Training the answer agent from a file of dialogues to an adapter with its card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from memory_r1.bank import HashingEmbedder, OperationKind
from memory_r1.bench.dataset import Dataset, load_dataset
from memory_r1.cli.train import Train
from memory_r1.errors import InputError, ModelError, TrainingError
from memory_r1.memory.answer import AnswerSettings
from memory_r1.memory.card import manager_of, read_card
from memory_r1.memory.manage import LLMManager, ManagerSettings, manager_reply
from memory_r1.policy import Prompt, ScriptedPolicy
from memory_r1.policy.local import LocalPolicy, adapter_name
from memory_r1.rl.algorithms.grpo import GRPOSettings
from memory_r1.rl.algorithms.ppo import PPOSettings
from memory_r1.rl.algorithms.sft import SFTSettings
from memory_r1.rl.model.learner import LearnerSettings
from memory_r1.rl.report.glossary import meaning
from memory_r1.rl.run.loop import LoopSettings
from memory_r1.rl.settings import Others, TrainSettings
from memory_r1.rl.train import train_answer_agent, train_memory_manager

ANSWERING = AnswerSettings(k=2, per_speaker=False, max_tokens=4)
SETTINGS = TrainSettings(
    train="a",
    val="b",
    reward="f1",
    answer=ANSWERING,
    learner=LearnerSettings(lora_rank=2, precision="float32"),
    warm_start=SFTSettings(epochs=1, shuffles=1, batch=4),
    grpo=GRPOSettings(prompts=2, group=2),
    loop=LoopSettings(eval_every=1, checkpoint_every=1),
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two dialogues with three questions each."""
    records: list[dict[str, object]] = []
    for dialogue in "ab":
        facts = {"dog": "Rex", "cat": "Tom", "boat": "Ada"}
        for pet, name in facts.items():
            turn = f"{dialogue}-{pet}"
            text = f"My {pet} is called {name}"
            records.append({"dialogue": dialogue, "turn": turn, "speaker": "Ann", "text": text})
        for pet, name in facts.items():
            question = {"question": f"What is the {pet} called?", "answer": name, "evidence": [f"{dialogue}-{pet}"]}
            records.append({"dialogue": dialogue, **question})
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return load_dataset(path)


def train(
    base: Path,
    dataset: Dataset,
    out: Path,
    settings: TrainSettings = SETTINGS,
    heard: list[str] | None = None,
    others: Others | None = None,
) -> Path:
    """Train from a freshly loaded base; `heard` gathers what was reported."""

    def report(name: str, done: int, of: int, metrics: Mapping[str, float]) -> None:
        if heard is not None:
            heard.append(f"{name} {done}/{of}")

    policy = LocalPolicy(base, device="cpu")
    return train_answer_agent(policy, dataset, settings, out, others=others, embedder=HashingEmbedder(), report=report)


def test_training_goes_from_a_file_to_an_adapter_with_its_card(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    heard: list[str] = []
    out = tmp_path / "run"
    adapter = train(tiny_folder, dataset, out, heard=heard)
    assert adapter == out / "adapter"
    # 3 answerable questions, each twice, in batches of 4: 6 / 4; 3 questions, 2 an iteration: 3 / 2
    assert heard == ["sft 1/2", "sft 2/2", "grpo 1/2", "grpo 2/2"]
    assert {path.name for path in out.iterdir()} >= {"config.json", "sft", "grpo", "adapter"}
    config = json.loads((out / "config.json").read_text())["config"]
    assert config["data"]["sha256"] == dataset.sha256
    assert config["settings"]["grpo"]["group"] == 2
    assert read_card(adapter, AnswerSettings) == ANSWERING
    assert LocalPolicy(tiny_folder, adapter=adapter, device="cpu").model is not None


@pytest.mark.parametrize(("val", "kept"), [("", "last"), ("b", "best")])
def test_grpo_starts_from_the_weights_the_warm_start_returned_and_is_held_to_them(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path, val: str, kept: str
) -> None:
    run = tmp_path / "run"
    train(tiny_folder, dataset, run, replace(SETTINGS, val=val))
    lines = [json.loads(line) for line in (run / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kl"] for line in lines if line["iteration"] == 1] == [0]  # against the reference, not the base
    state = torch.load(run / "grpo" / "state.pt", weights_only=True)["weights"]
    begun = load_file(run / "sft" / kept / "adapter_model.safetensors")
    changes_nothing = not any(weight.any() for name, weight in begun.items() if "lora_B" in name)
    held = {} if changes_nothing else {name.replace(".weight", ".reference.weight"): w for name, w in begun.items()}
    assert {name for name in state if ".reference." in name} == held.keys()
    assert all(state[name].equal(weight) for name, weight in held.items())


def test_running_it_again_changes_nothing_and_returns_the_adapter(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out, heard = tmp_path / "run", list[str]()
    adapter = train(tiny_folder, dataset, out)
    files = [path for path in out.rglob("*") if path.is_file() and "tensorboard" not in path.parts]
    before = {path: path.read_bytes() for path in files}
    assert train(tiny_folder, dataset, out, heard=heard) == adapter
    assert heard == []
    assert {path: path.read_bytes() for path in files} == before


def test_supervised_training_stops_after_the_warm_start(tiny_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    heard: list[str] = []
    train(tiny_folder, dataset, tmp_path / "run", replace(SETTINGS, algo="sft"), heard)
    assert heard == ["sft 1/2", "sft 2/2"]


def test_without_a_warm_start_and_without_val_the_last_weights_are_published(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    heard: list[str] = []
    cold = replace(SETTINGS, val="", warm_start=SFTSettings(epochs=0))
    adapter = train(tiny_folder, dataset, tmp_path / "run", cold, heard)
    assert heard == ["grpo 1/2", "grpo 2/2"]
    weights = "adapter_model.safetensors"
    assert (adapter / weights).read_bytes() == (tmp_path / "run" / "grpo" / "last" / weights).read_bytes()


def test_a_fraction_of_the_questions_can_be_held_out(tiny_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    heard: list[str] = []
    held = replace(SETTINGS, train="all", val="", val_fraction=0.34, algo="sft")
    train(tiny_folder, dataset, tmp_path / "run", held, heard)
    assert heard == ["sft 1/2", "sft 2/2"]  # 4 of 6 questions, each twice, in batches of 4
    assert "val/reward" in (tmp_path / "run" / "sft" / "metrics.jsonl").read_text()


def test_the_report_shows_what_the_run_logged_and_each_metric_has_its_line(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(tiny_folder, dataset, out, replace(SETTINGS, algo="ppo", ppo=PPOSettings(prompts=2, group=1, minibatches=1)))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert dataset.sha256 in page
    assert "SFT" in page
    assert "PPO" in page
    lines = [json.loads(line) for name in ("sft", "ppo") for line in (out / name / "metrics.jsonl").open()]
    for name in {name for line in lines for name in line} - {"iteration", "notes"}:
        assert escape(meaning(name)) in page
        assert meaning(name), name


def test_patience_without_val_is_an_input_error(tiny_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    hasty = replace(SETTINGS, val="", loop=LoopSettings(patience=2))
    with pytest.raises(InputError, match=r"^loop\.patience is 2, but there is no val"):
        train(tiny_folder, dataset, tmp_path / "run", hasty)
    assert not (tmp_path / "run").exists()


# The models beside


def test_a_run_goes_on_from_an_adapter_and_is_another_run_from_another_one(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    begun, still = train(tiny_folder, dataset, tmp_path / "first"), replace(SETTINGS, val="", algo="sft")
    still = replace(still, warm_start=replace(still.warm_start, lr=0.0))
    adapter = train(tiny_folder, dataset, tmp_path / "run", still, others=Others(start=begun))
    (moved, before) = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, begun))
    assert all(moved[name].equal(weight) for name, weight in before.items())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["start"] == adapter_name(begun)
    with pytest.raises(TrainingError, match="another run"):
        train(tiny_folder, dataset, tmp_path / "run", still)


def test_a_managers_banks_are_answered_from(tiny_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    """This one never writes anything down, so nothing is retrieved for any question."""
    manager = LLMManager(ScriptedPolicy(lambda prompt: manager_reply([(1, OperationKind.NOOP, None, None)])), MANAGING)
    with pytest.raises(InputError, match=r"^0 questions, turns or stretches to train on"):
        train(tiny_folder, dataset, tmp_path / "run", others=Others(manager=manager))


def test_a_manager_without_an_answerer_is_an_input_error(tiny_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frozen answer agent"):
        train_memory_manager(LocalPolicy(tiny_folder), dataset, SETTINGS, tmp_path / "run", others=Others())
    assert not (tmp_path / "run").exists()


# What is refused


def test_other_settings_or_data_in_the_same_folder_are_a_training_error(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out, mine = tmp_path / "run", replace(SETTINGS, algo="sft")
    train(tiny_folder, dataset, out, mine)
    before = (out / "config.json").read_bytes()
    for other, data in ((replace(mine, seed=1), dataset), (mine, replace(dataset, sha256="0"))):
        with pytest.raises(TrainingError, match=rf"^{out} holds another run"):
            train(tiny_folder, data, out, other)
    assert (out / "config.json").read_bytes() == before


def test_too_few_questions_are_an_input_error_and_leave_the_folder_free(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    many = replace(SETTINGS, grpo=GRPOSettings(prompts=4, group=2))
    with pytest.raises(InputError, match=r"^3 questions, turns or stretches to train on, expected at least 4$"):
        train(tiny_folder, dataset, tmp_path / "run", many)
    assert train(tiny_folder, dataset, tmp_path / "run", replace(SETTINGS, algo="sft")).is_dir()


def test_a_warm_start_without_any_retrieved_evidence_is_an_input_error(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    questions = tuple(
        replace(question, evidence=("b-dog",) if question.dialogue_id == "a" else question.evidence)
        for question in dataset.file.questions
    )
    nowhere = replace(dataset, file=replace(dataset.file, questions=questions))
    with pytest.raises(InputError, match="evidence"):
        train(tiny_folder, nowhere, tmp_path / "run")


def test_supervised_training_without_epochs_is_a_training_error(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="epochs above 0"):
        train(tiny_folder, dataset, tmp_path / "run", replace(SETTINGS, algo="sft", warm_start=SFTSettings(epochs=0)))
    assert not (tmp_path / "run").exists()


def test_a_stretch_without_turns_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"^replay_turns is 0, expected at least 1$"):
        replace(SETTINGS, replay_turns=0)


def test_nothing_to_train_is_refused(tiny_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'c'"):
        train(tiny_folder, dataset, tmp_path / "run", replace(SETTINGS, train="c"))


# The memory manager


MANAGING = ManagerSettings(k=2, max_tokens=6)


def answerer() -> ScriptedPolicy:
    """A frozen answer agent that says the first name it is shown."""

    def say(prompt: Prompt) -> str:
        shown = prompt[-1]["content"].split("Question:")[0]
        return "Relevant: 1\nAnswer: " + next((name for name in ("Rex", "Tom", "Ada") if name in shown), "nobody")

    return ScriptedPolicy(say, name="frozen")


def train_manager(base: Path, dataset: Dataset, out: Path, settings: TrainSettings) -> Path:
    policy = LocalPolicy(base, device="cpu")
    others = Others(answerer=answerer())
    return train_memory_manager(policy, dataset, settings, out, others=others, embedder=HashingEmbedder())


@pytest.mark.parametrize(
    ("algo", "episode"),
    [("grpo", "single-step"), ("ppo", "single-step"), ("sft", "single-step"), ("grpo", "replay"), ("ppo", "replay")],
)
def test_a_manager_is_trained_from_a_file_to_an_adapter_with_its_card(
    tiny_folder: Path,
    dataset: Dataset,
    tmp_path: Path,
    algo: Literal["grpo", "ppo", "sft"],
    episode: Literal["single-step", "replay"],
) -> None:
    out, ppo = tmp_path / "run", PPOSettings(prompts=2, group=2, minibatches=1)
    settings = replace(SETTINGS, algo=algo, manager=MANAGING, ppo=ppo, episode=episode, replay_turns=2)
    adapter = train_manager(tiny_folder, dataset, out, settings)
    assert read_card(adapter, ManagerSettings) == MANAGING
    assert json.loads((out / "config.json").read_text())["config"]["answerer"] == "frozen"
    assert manager_of(LocalPolicy(tiny_folder, adapter=adapter, device="cpu")).settings == MANAGING
    lines = [json.loads(line) for line in (out / algo / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["val/reward"] <= 1 for line in lines if "val/reward" in line)
    assert "val/retention" in lines[0]
    assert all(meaning(name) for line in lines for name in line if name not in ("iteration", "notes"))
    with pytest.raises(TrainingError, match="another run"):
        train(tiny_folder, dataset, out, settings)


def test_a_manager_needs_questions_that_name_their_evidence(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    questions = tuple(replace(question, evidence=()) for question in dataset.file.questions)
    unlinked = replace(dataset, file=replace(dataset.file, questions=questions))
    with pytest.raises(InputError, match="names its evidence"):
        train_manager(tiny_folder, unlinked, tmp_path / "run", replace(SETTINGS, manager=MANAGING))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_the_answer_agent_is_trained_by_either_algorithm(
    tiny_folder: Path, dataset: Dataset, tmp_path: Path, algo: Literal["grpo", "ppo"]
) -> None:
    settings = replace(SETTINGS, algo=algo, ppo=PPOSettings(prompts=2, group=2, minibatches=1))
    assert read_card(train(tiny_folder, dataset, tmp_path / "run", settings), AnswerSettings) == ANSWERING


# The card


@pytest.mark.parametrize(
    "card",
    [
        "",
        "not json",
        "[]",
        '{"agent": "answer"}',
        '{"agent": "manager", "format": "answer-1", "settings": {}}',
        '{"agent": "answer", "format": "answer-0", "settings": {}}',
        '{"agent": "answer", "format": "answer-1", "settings": {"never": 1}}',
    ],
)
def test_a_card_of_another_kind_is_a_model_error_naming_the_adapter(tmp_path: Path, card: str) -> None:
    (tmp_path / "memory_r1.json").write_text(card)
    with pytest.raises(ModelError, match=f"^{tmp_path}"):
        read_card(tmp_path, AnswerSettings)


def test_an_adapter_without_a_card_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no readable memory_r1\.json"):
        read_card(tmp_path, AnswerSettings)


@pytest.mark.parametrize(
    ("native", "rank", "shares"), [(False, 4, True), (True, 4, False), (False, 0, False)], ids=["same", "other", "full"]
)
def test_the_frozen_agent_stands_on_the_trained_models_weights_where_these_stay_and_suit_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, rank: int, shares: bool
) -> None:
    monkeypatch.setattr("memory_r1.policy.local.computes_bfloat16", lambda device: native)
    settings = TrainSettings(learner=LearnerSettings(lora_rank=rank))
    command = Train("manager", tmp_path / "data.jsonl", tmp_path / "run", settings, model=str(tiny_folder))
    policy = LocalPolicy(tiny_folder, device="cpu", precision="float32")
    answerer = command._others(policy).answerer
    assert isinstance(answerer, LocalPolicy)
    weights = {weight.data_ptr() for weight in policy.model.parameters()}
    assert ({weight.data_ptr() for weight in answerer.model.parameters()} == weights) == shares
