"""Train the answer agent on a file of dialogues and questions: banks, episodes, warm start, GRPO, an adapter.

The run folder holds config.json, sft/ and grpo/ (see loop.py), curves.png, and adapter/: the PEFT adapter, with
memory_r1.json beside it, which names the prompt format and the settings it was trained with. Calling it again on the
same folder goes on from where it stopped. Left out: the memory manager's training.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memory_r1.bank import Bank, Embedder
from memory_r1.bench.dataset import Dataset, Extraction
from memory_r1.bench.run import claim_folder, plain, provenance, remember_all
from memory_r1.dialogue import Question
from memory_r1.errors import InputError, TrainingError
from memory_r1.memory.answer import SMALL, AnswerSettings
from memory_r1.memory.card import write_card
from memory_r1.policy.base import Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.episodes import AnswerEpisode, answer_episodes
from memory_r1.rl.grpo import GRPO, GRPOSettings
from memory_r1.rl.learner import Learner, LearnerSettings
from memory_r1.rl.loop import Algorithm, Loop, LoopSettings, Metrics, Report
from memory_r1.rl.reward import RewardName, answer_reward
from memory_r1.rl.sft import SFT, SFTSettings
from memory_r1.rl.types import Demonstration


@dataclass(frozen=True)
class TrainSettings:
    """Everything a run depends on beside the model and the data; the same settings and seed give the same run."""

    algo: Literal["grpo", "sft"] = "grpo"
    """grpo; sft stops after the warm start"""
    train: str = "all"
    """what to train on: all, or splits (LoCoMo's train, val, test) and dialogue ids, between commas"""
    val: str = ""
    """what to check on and choose the best weights by; none of it may be trained on"""
    val_fraction: float = 0.0
    """without val: the share of the training questions to hold out for it; 0 does without checks"""
    extract: Extraction = "turns"
    """what an entry is made of: the turn itself, the file's ready-made facts (LoCoMo), or facts the model writes"""
    reward: RewardName = "typed"
    """what an answer earns, see docs/training.md"""
    format_coef: float = 0.0
    """taken off the reward of a reply that left the format"""
    seed: int = 0
    """of the adapter's first weights, the order of questions, and sampling"""
    answer: AnswerSettings = SMALL
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    warm_start: SFTSettings = field(default_factory=SFTSettings)
    grpo: GRPOSettings = field(default_factory=GRPOSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"val_fraction is {self.val_fraction}, expected 0 to 1, such as 0.2")


def train_answer_agent(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    out: Path,
    *,
    embedder: Embedder | None = None,
    report: Report | None = None,
) -> Path:
    """Train an adapter for the answer agent; returns its folder.

    Args:
        policy: the base model; it samples with the adapter as it grows.
        out: the run folder; one with a state of the same settings is resumed.

    Raises:
        TrainingError: the folder holds another run.
        InputError: the data has no part of that name, or too few questions.
    """
    episodes, val = _episodes(policy, dataset, settings, embedder)
    shown = _demonstrations(episodes, settings) if settings.warm_start.epochs > 0 else []
    if not shown and settings.algo == "sft":
        raise TrainingError("nothing to train: sft needs warm_start.epochs above 0")
    _claim(out, policy, dataset, settings)
    learner = Learner(policy, settings.learner, seed=settings.seed)

    def evaluate() -> Metrics:
        with learner.precision():
            return greedy_reward(policy, val, settings.answer.max_tokens)

    def train(algorithm: Algorithm) -> Path:
        folder = out / algorithm.name
        check = evaluate if val else None
        trained = Loop(learner, algorithm, folder, settings.loop, evaluate=check, report=report).run()
        write_card(trained, policy.base_name, settings.answer)
        return trained

    if shown:
        trained = train(SFT(shown, settings.warm_start, settings.seed))
        learner.load_weights(trained)
    if settings.algo == "grpo":
        trained = train(GRPO(episodes, settings.grpo, settings.answer.max_tokens, settings.seed))
    return Path(shutil.copytree(trained, out / "adapter", dirs_exist_ok=True))


def greedy_reward(policy: LocalPolicy, episodes: Sequence[AnswerEpisode], max_tokens: int) -> Metrics:
    """The mean reward of greedy answers, and the means of its parts, under val/ names."""
    completions = policy.complete([episode.prompt for episode in episodes], Sampling(max_tokens))
    rewards = [episode.reward(completion) for episode, completion in zip(episodes, completions, strict=True)]
    parts = sorted({name for reward in rewards for name in reward.parts})
    means = {f"val/{name}": sum(reward.parts[name] for reward in rewards) / len(rewards) for name in parts}
    return {"val/reward": sum(reward.value for reward in rewards) / len(rewards), **means}


def _episodes(
    policy: LocalPolicy, dataset: Dataset, settings: TrainSettings, embedder: Embedder | None
) -> tuple[list[AnswerEpisode], list[AnswerEpisode]]:
    """Episodes to train on and to check on."""
    dialogues, questions = dataset.select(settings.train)
    held: list[Question] = []
    if settings.val:
        val_dialogues, held = dataset.select(settings.val)
        dialogues += [dialogue for dialogue in val_dialogues if dialogue not in dialogues]
        shared = {question.id for question in questions}.intersection(question.id for question in held)
        if shared:
            raise InputError(f"{len(shared)} questions are both in train and in val, such as {min(shared)!r}")
    elif settings.val_fraction:
        questions, held = _hold_out(questions, settings.val_fraction, settings.seed)
    banks = remember_all(dialogues, dataset.extractor(settings.extract, policy), embedder)
    made = [_of_banks(banks, part, settings) for part in (questions, held)]
    if len(made[0]) < settings.grpo.prompts:
        raise InputError(f"{len(made[0])} questions to train on, expected at least {settings.grpo.prompts}")
    return made[0], made[1]


def _of_banks(banks: dict[str, Bank], questions: Sequence[Question], settings: TrainSettings) -> list[AnswerEpisode]:
    earn = answer_reward(settings.reward)
    return [
        episode
        for question in questions
        for episode in answer_episodes(
            banks[question.dialogue_id], [question], settings.answer, earn, settings.format_coef
        )
    ]  # fmt: skip


def _demonstrations(episodes: Sequence[AnswerEpisode], settings: TrainSettings) -> list[Demonstration]:
    """What the warm start imitates: questions whose evidence was retrieved, in retrieval's order and shuffled."""
    shuffle = random.Random(settings.seed)
    orders = [None, *[shuffle] * settings.warm_start.shuffles]
    shown = [episode.demonstration(order) for order in orders for episode in episodes if episode.answerable]
    if not shown:
        raise InputError(
            f"none of {len(episodes)} questions has its evidence among the {settings.answer.k} entries retrieved, "
            "expected some to imitate: retrieve more (answer.k), or leave the warm start out (warm_start.epochs 0)"
        )
    return shown


def _hold_out(questions: list[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    held = set(random.Random(seed).sample(range(len(questions)), max(1, round(fraction * len(questions)))))
    return [q for i, q in enumerate(questions) if i not in held], [q for i, q in enumerate(questions) if i in held]


def _claim(out: Path, policy: LocalPolicy, dataset: Dataset, settings: TrainSettings) -> None:
    """Write config.json, or check that the one already there is the same run's."""
    data = {"path": str(dataset.path), "sha256": dataset.sha256}
    config = {"settings": plain(settings), "base": policy.base_name, "data": data}
    path = out / "config.json"
    if path.is_file():
        if _identity(path) != (config["settings"], policy.base_name, dataset.sha256):
            raise TrainingError(f"{out} holds another run (settings, base model or data differ): name a new folder")
        return
    claim_folder(out)
    partial = out / "config.json.partial"
    partial.write_text(json.dumps(provenance(config), indent=1), encoding="utf-8")
    os.replace(partial, path)


def _identity(path: Path) -> tuple[object, object, object]:
    """What makes a run the same run, read from its config.json."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        return config["settings"], config["base"], config["data"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not the config of a training run: name a new folder") from error
