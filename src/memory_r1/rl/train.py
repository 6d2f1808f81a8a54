"""Train an agent on a file of dialogues and questions: episodes, warm start, GRPO or PPO, an adapter.

The run folder holds config.json, a folder per algorithm (see loop.py), report.html, and adapter/: the PEFT adapter,
with memory_r1.json beside it, which names the agent, the prompt format and the settings it was trained with. Calling it
again on the same folder goes on from where it stopped. Left out: where episodes come from (tasks.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from memory_r1.bank import Embedder
from memory_r1.bench.dataset import Dataset, Extraction
from memory_r1.bench.run import claim_folder, plain, provenance
from memory_r1.errors import InputError, TrainingError
from memory_r1.memory.answer import SMALL, AnswerSettings
from memory_r1.memory.card import write_card
from memory_r1.memory.manage import ManagerSettings
from memory_r1.policy.base import Policy
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.estimate import Estimate, estimate
from memory_r1.rl.evaluation import Evaluation, evaluate
from memory_r1.rl.grpo import GRPO, GRPOSettings
from memory_r1.rl.learner import Learner, LearnerSettings
from memory_r1.rl.loop import Algorithm, Loop, LoopSettings, Note, Report
from memory_r1.rl.manager_episodes import OutcomeSettings
from memory_r1.rl.ppo import PPO, PPOSettings
from memory_r1.rl.report import write_page
from memory_r1.rl.reward import RewardName, answer_reward
from memory_r1.rl.sft import SFT, SFTSettings
from memory_r1.rl.tasks import Task, answer_task, manager_task
from memory_r1.rl.whole import whole_file, whole_folder


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
    answer: AnswerSettings = SMALL
    manager: ManagerSettings = field(default_factory=lambda: ManagerSettings(max_tokens=160))
    outcome: OutcomeSettings = field(default_factory=OutcomeSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    warm_start: SFTSettings = field(default_factory=SFTSettings)
    grpo: GRPOSettings = field(default_factory=GRPOSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
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
    note: Note | None = None,
) -> Path:
    """Train an adapter for the answer agent; returns its folder.

    Args:
        policy: the base model; it samples with the adapter as it grows.
        out: the run folder; one with a state of the same settings is resumed.
        report, note: called after every iteration, and with what should be known meanwhile (loop.py).

    Raises:
        TrainingError: the folder holds another run.
        InputError: the data has no part of that name, or too few questions.
    """
    task = _answer_lessons(policy, dataset, settings, embedder)
    return _train(policy, task, settings, out, _config("answer", policy, dataset, settings), report, note)


def train_memory_manager(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    out: Path,
    *,
    answerer: Policy,
    embedder: Embedder | None = None,
    report: Report | None = None,
    note: Note | None = None,
) -> Path:
    """Train an adapter for the memory manager against a frozen answer agent; returns its folder.

    Args:
        policy, out, report, note: as for `train_answer_agent`.
        answerer: the frozen answer agent's model, a policy of its own; `settings.answer` does not count for it.

    Raises:
        TrainingError: the folder holds another run.
        InputError: the data has no part of that name, or too few questions with evidence.
        PolicyError: the answerer's model failed.
    """
    task = _manager_lessons(policy, dataset, settings, answerer, embedder)
    config = _config("manager", policy, dataset, settings) | {"answerer": answerer.name}
    return _train(policy, task, settings, out, config, report, note)


def estimate_answer_agent(
    policy: LocalPolicy, dataset: Dataset, settings: TrainSettings, *, embedder: Embedder | None = None
) -> Estimate:
    """What `train_answer_agent` would take (estimate.py); writes nothing. Raises InputError as it does."""
    return _estimated(policy, _answer_lessons(policy, dataset, settings, embedder), settings)


def estimate_memory_manager(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    answerer: Policy,
    embedder: Embedder | None = None,
) -> Estimate:
    """What `train_memory_manager` would take, the answerer's own time left out; writes nothing. Raises as it does."""
    return _estimated(policy, _manager_lessons(policy, dataset, settings, answerer, embedder), settings)


def _estimated(policy: LocalPolicy, task: Task, settings: TrainSettings) -> Estimate:
    _check(task, settings)
    learner = Learner(policy, settings.learner, seed=settings.seed)
    return estimate(learner, task, _algorithms(task, settings), settings.loop)


def _answer_lessons(policy: LocalPolicy, dataset: Dataset, settings: TrainSettings, embedder: Embedder | None) -> Task:
    return answer_task(
        dataset,
        settings,
        dataset.extractor(settings.extract, policy),
        settings.answer,
        answer_reward(settings.reward),
        format_coef=settings.format_coef,
        shuffles=settings.warm_start.shuffles,
        embedder=embedder,
    )


def _manager_lessons(
    policy: LocalPolicy, dataset: Dataset, settings: TrainSettings, answerer: Policy, embedder: Embedder | None
) -> Task:
    return manager_task(
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


def _train(
    policy: LocalPolicy,
    task: Task,
    settings: TrainSettings,
    out: Path,
    config: dict[str, object],
    report: Report | None,
    note: Note | None,
) -> Path:
    """Warm start, then the algorithm, each in a folder of its own; returns the adapter's."""
    _check(task, settings)
    _claim(out, config)
    for remark in task.remarks:
        if note:
            note(remark)
    learner, max_tokens = Learner(policy, settings.learner, seed=settings.seed), task.settings.max_tokens

    def look() -> Evaluation:
        shown, val, train = settings.loop.samples, task.val, task.episodes
        with learner.precision():
            return evaluate(policy, val, train, shown=shown, max_tokens=max_tokens, score=task.score)

    def train(algorithm: Algorithm) -> Path:
        folder = out / algorithm.name
        loop = Loop(
            learner,
            algorithm,
            folder,
            settings.loop,
            evaluate=look if task.val or settings.loop.samples else None,
            report=report,
            note=note,
            saved=lambda: write_page(out),
        )
        trained = loop.run()
        write_card(trained, policy.base_name, task.settings)
        return trained

    for algorithm in _algorithms(task, settings):
        trained = train(algorithm)
        if isinstance(algorithm, SFT):
            learner.load_weights(trained)
    with whole_folder(out / "adapter") as adapter:
        shutil.copytree(trained, adapter, dirs_exist_ok=True)
    write_page(out)
    return out / "adapter"


def _algorithms(task: Task, settings: TrainSettings) -> list[Algorithm]:
    """What the run is made of, in order."""
    max_tokens, seed = task.settings.max_tokens, settings.seed
    chosen: list[Algorithm] = []
    if settings.warm_start.epochs > 0:
        chosen.append(SFT(task.demonstrations, settings.warm_start, seed))
    if settings.algo == "grpo":
        chosen.append(GRPO(task.episodes, settings.grpo, max_tokens, seed, score=task.score))
    if settings.algo == "ppo":
        chosen.append(PPO(task.episodes, settings.ppo, max_tokens, seed, score=task.score))
    return chosen


def _check(task: Task, settings: TrainSettings) -> None:
    """Refuse what could only fail later."""
    least = {"grpo": settings.grpo.prompts, "ppo": settings.ppo.prompts, "sft": 1}[settings.algo]
    if len(task.episodes) < least:
        raise InputError(f"{len(task.episodes)} questions or turns to train on, expected at least {least}")
    if settings.loop.patience and not task.val:
        raise InputError(
            f"loop.patience is {settings.loop.patience}, but there is no val to be patient about: name one (val, or "
            "val_fraction 0.2), or leave patience at 0"
        )
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
    with whole_file(path) as partial:
        partial.write_text(json.dumps(provenance(config), indent=1), encoding="utf-8")


def _identity_in(path: Path) -> tuple[object, ...]:
    try:
        return _identity(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not the config of a training run: name a new folder") from error


def _identity(config: Mapping[str, Any]) -> tuple[object, ...]:
    """The config without where the data lay."""
    return config["agent"], config["settings"], config["base"], config["data"]["sha256"], config.get("answerer")
