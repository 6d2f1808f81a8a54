"""Train an agent on a file of dialogues and questions: episodes, warm start, GRPO or PPO, an adapter.

The run folder holds config.json, a folder per algorithm (see loop.py), and adapter/: the PEFT adapter, with
memory_r1.json beside it, which names the agent, the prompt format and the settings it was trained with. Calling it
again on the same folder goes on from where it stopped. Left out: where episodes come from (tasks.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from memory_r1.bank import Embedder
from memory_r1.bench.dataset import Dataset, Extraction
from memory_r1.bench.run import claim_folder, plain, provenance
from memory_r1.errors import InputError, TrainingError
from memory_r1.memory.answer import SMALL, AnswerSettings
from memory_r1.memory.card import write_card
from memory_r1.memory.manage import ManagerSettings
from memory_r1.policy.base import Policy, Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.policy.vllm import VLLMSampler, VLLMSettings, require_vllm, served_rank
from memory_r1.rl.grpo import GRPO, GRPOSettings
from memory_r1.rl.learner import Learner, LearnerSettings
from memory_r1.rl.loop import Algorithm, Loop, LoopSettings, Metrics, Report
from memory_r1.rl.manager_episodes import OutcomeSettings
from memory_r1.rl.ppo import PPO, PPOSettings
from memory_r1.rl.reward import RewardName, answer_reward
from memory_r1.rl.rollout import Sampler, Scorer
from memory_r1.rl.sft import SFT, SFTSettings
from memory_r1.rl.tasks import Task, answer_task, manager_task
from memory_r1.rl.types import Episode
from memory_r1.rl.update import UpdateSettings

Settings = TypeVar("Settings", bound=UpdateSettings)

IMPORTANCE_CAP = 2.0
"""Of rollouts that another engine sampled, where none was chosen."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything a run depends on beside the models and the data; the same settings and seed give the same run."""

    algo: Literal["grpo", "ppo", "sft"] = "grpo"
    """what follows the warm start; sft stops there"""
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
    """answer agent: taken off the reward of a reply that left the format"""
    window: int = 50
    """memory manager: turns that the temporal bank before a turn is made of"""
    seed: int = 0
    """of the adapter's first weights, the order of questions, and sampling"""
    sampler: Literal["local", "vllm"] = "local"
    """who writes rollouts and val replies: the trained model itself, or vLLM with the adapter as it grows"""
    answer: AnswerSettings = SMALL
    manager: ManagerSettings = field(default_factory=lambda: ManagerSettings(max_tokens=160))
    outcome: OutcomeSettings = field(default_factory=OutcomeSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    warm_start: SFTSettings = field(default_factory=SFTSettings)
    grpo: GRPOSettings = field(default_factory=GRPOSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    vllm: VLLMSettings = field(default_factory=VLLMSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"val_fraction is {self.val_fraction}, expected 0 to 1, such as 0.2")
        if self.sampler == "vllm":
            served_rank(self.learner.lora_rank)


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
    task = answer_task(
        dataset,
        settings,
        dataset.extractor(settings.extract, policy),
        settings.answer,
        answer_reward(settings.reward),
        format_coef=settings.format_coef,
        shuffles=settings.warm_start.shuffles,
        embedder=embedder,
    )
    return _train(policy, task, settings, out, _config("answer", policy, dataset, settings), report)


def train_memory_manager(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    out: Path,
    *,
    answerer: Policy,
    embedder: Embedder | None = None,
    report: Report | None = None,
) -> Path:
    """Train an adapter for the memory manager against a frozen answer agent; returns its folder.

    Args:
        policy, out: as for `train_answer_agent`.
        answerer: the frozen answer agent's model, a policy of its own; `settings.answer` does not count for it.

    Raises:
        TrainingError: the folder holds another run.
        InputError: the data has no part of that name, or too few questions with evidence.
        PolicyError: the answerer's model failed.
    """
    task = manager_task(
        dataset,
        settings,
        dataset.extractor(settings.extract, policy),
        settings.manager,
        answer_reward(settings.reward),
        answerer,
        window=settings.window,
        outcome=settings.outcome,
        embedder=embedder,
    )
    config = _config("manager", policy, dataset, settings) | {"answerer": answerer.name}
    return _train(policy, task, settings, out, config, report)


def greedy_reward(sampler: Sampler, episodes: Sequence[Episode], max_tokens: int, score: Scorer) -> Metrics:
    """The mean reward of greedy completions, and the means of its parts, under val/ names."""
    sampled = sampler.sample([episode.prompt for episode in episodes], Sampling(max_tokens), n=1)
    completions = [group[0] for group in sampled]
    rewards = score(list(zip(episodes, completions, strict=True)))
    parts = sorted({name for reward in rewards for name in reward.parts})
    means = {f"val/{name}": sum(reward.parts[name] for reward in rewards) / len(rewards) for name in parts}
    return {"val/reward": sum(reward.value for reward in rewards) / len(rewards), **means}


def _train(
    policy: LocalPolicy,
    task: Task,
    settings: TrainSettings,
    out: Path,
    config: dict[str, object],
    report: Report | None,
) -> Path:
    """Warm start, then the algorithm, each in a folder of its own; returns the adapter's."""
    _check(task, settings)
    _claim(out, config)
    learner, max_tokens = Learner(policy, settings.learner, seed=settings.seed), task.settings.max_tokens
    sampler = _sampler(learner, settings)

    def evaluate() -> Metrics:
        with learner.precision():
            return greedy_reward(sampler, task.val, max_tokens, task.score)

    def train(algorithm: Algorithm) -> Path:
        check = evaluate if task.val else None
        folder = out / algorithm.name
        trained = Loop(learner, algorithm, folder, settings.loop, evaluate=check, report=report).run()
        write_card(trained, policy.base_name, task.settings)
        return trained

    if settings.warm_start.epochs > 0:
        trained = train(SFT(task.demonstrations, settings.warm_start, settings.seed))
        learner.load_weights(trained)
    if settings.algo == "grpo":
        grpo = _capped(settings.grpo, settings)
        trained = train(GRPO(task.episodes, grpo, max_tokens, settings.seed, score=task.score, sampler=sampler))
    if settings.algo == "ppo":
        ppo = _capped(settings.ppo, settings)
        trained = train(PPO(task.episodes, ppo, max_tokens, settings.seed, score=task.score, sampler=sampler))
    return Path(shutil.copytree(trained, out / "adapter", dirs_exist_ok=True))


def _sampler(learner: Learner, settings: TrainSettings) -> Sampler:
    """Who samples: the policy itself, or vLLM with the learner's adapter."""
    if settings.sampler == "local":
        return learner.policy
    return VLLMSampler(learner.policy, learner, settings.learner.lora_rank, settings.vllm)


def _capped(algorithm: Settings, settings: TrainSettings) -> Settings:
    """An algorithm's settings with an importance cap, where another engine samples and none was chosen."""
    if settings.sampler == "local" or algorithm.importance_cap is not None:
        return algorithm
    return replace(algorithm, importance_cap=IMPORTANCE_CAP)


def _check(task: Task, settings: TrainSettings) -> None:
    """Refuse what could only fail later."""
    if settings.sampler == "vllm":
        require_vllm()
    least = {"grpo": settings.grpo.prompts, "ppo": settings.ppo.prompts, "sft": 1}[settings.algo]
    if len(task.episodes) < least:
        raise InputError(f"{len(task.episodes)} questions or turns to train on, expected at least {least}")
    if settings.warm_start.epochs > 0 and not task.demonstrations:
        raise InputError(
            f"none of {len(task.episodes)} questions has its evidence among the {settings.answer.k} entries retrieved, "
            "expected some to imitate: retrieve more (answer.k), or leave the warm start out (warm_start.epochs 0)"
        )
    if settings.algo == "sft" and settings.warm_start.epochs == 0:
        raise TrainingError("nothing to train: sft needs warm_start.epochs above 0")


def _config(agent: str, policy: LocalPolicy, dataset: Dataset, settings: TrainSettings) -> dict[str, object]:
    """What makes a run the same run."""
    data = {"path": str(dataset.path), "sha256": dataset.sha256}
    return {"agent": agent, "settings": plain(settings), "base": policy.base_name, "data": data}


def _claim(out: Path, config: dict[str, object]) -> None:
    """Write config.json, or check that the one already there is the same run's."""
    path = out / "config.json"
    if path.is_file():
        if _identity_in(path) != _identity(config):
            raise TrainingError(f"{out} holds another run (agent, settings, models or data differ): name a new folder")
        return
    claim_folder(out)
    partial = out / "config.json.partial"
    partial.write_text(json.dumps(provenance(config), indent=1), encoding="utf-8")
    os.replace(partial, path)


def _identity_in(path: Path) -> tuple[object, ...]:
    try:
        return _identity(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not the config of a training run: name a new folder") from error


def _identity(config: Mapping[str, Any]) -> tuple[object, ...]:
    """The config without where the data lay."""
    return config["agent"], config["settings"], config["base"], config["data"]["sha256"], config.get("answerer")
