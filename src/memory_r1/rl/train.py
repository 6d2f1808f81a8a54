"""Train an agent on a file of dialogues and questions: episodes, warm start, GRPO or PPO, an adapter.

The run folder holds config.json, a folder per algorithm (see loop.py), and adapter/: the PEFT adapter, with
memory_r1.json beside it, which names the agent, the prompt format and the settings it was trained with. Calling it
again on the same folder goes on from where it stopped. Of several processes (parallel.py) all call these functions,
and the main one writes the folder. Left out: where episodes come from (tasks.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from memory_r1.bank import Embedder
from memory_r1.bench.dataset import Dataset, Extraction
from memory_r1.bench.judge import Judge
from memory_r1.bench.managed import manage_all
from memory_r1.bench.run import claim_folder, plain, provenance, remember_all
from memory_r1.errors import InputError, TrainingError
from memory_r1.memory.answer import SMALL, AnswerSettings
from memory_r1.memory.card import read_card, write_card
from memory_r1.memory.manage import LLMManager, ManagerSettings
from memory_r1.policy.base import Policy, Sampling
from memory_r1.policy.local import LocalPolicy, adapter_name
from memory_r1.policy.vllm import VLLMSampler, VLLMSettings, require_vllm, served_rank
from memory_r1.rl.grpo import GRPO, GRPOSettings
from memory_r1.rl.learner import Learner, LearnerSettings
from memory_r1.rl.loop import Algorithm, Loop, LoopSettings, Metrics, Report
from memory_r1.rl.manager_episodes import OutcomeSettings
from memory_r1.rl.parallel import join
from memory_r1.rl.ppo import PPO, PPOSettings
from memory_r1.rl.reward import RewardName, answer_reward
from memory_r1.rl.rollout import Sampler, Scorer, sample_rollouts
from memory_r1.rl.sft import SFT, SFTSettings
from memory_r1.rl.tasks import Banks, Task, answer_task, gold_banks, manager_task
from memory_r1.rl.trajectories import (
    RejectionSettings,
    Trajectory,
    load_trajectories,
    sample_trajectories,
    save_trajectories,
)
from memory_r1.rl.types import Episode
from memory_r1.rl.update import UpdateSettings

Settings = TypeVar("Settings", bound=UpdateSettings)

IMPORTANCE_CAP = 2.0
"""Of rollouts that another engine sampled, where none was chosen."""

_BANKS: Mapping[str, Sequence[Banks]] = {
    "add-only": (remember_all,),
    "gold": (gold_banks,),
    "both": (remember_all, gold_banks),
}


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
    banks: Literal["add-only", "gold", "both"] = "add-only"
    """answer agent: what makes the banks it answers from: adding every fact, the file's gold operations, or each"""
    reward: RewardName = "typed"
    """what an answer earns, see docs/training.md"""
    format_coef: float = 0.0
    """answer agent: taken off the reward of a reply that left the format"""
    window: int = 50
    """memory manager: turns that the temporal bank before a turn is made of"""
    episode: Literal["single-step", "replay"] = "single-step"
    """memory manager: decide about one turn, or about several in a row, on what the decisions before left"""
    replay_turns: int = 8
    """memory manager: consecutive turns of a replay episode"""
    from_rollouts: bool = False
    """the warm start imitates sampled replies that earned well (rejection sampling), not ones made from the data"""
    trajectories: Path | None = None
    """the warm start imitates this file, the trajectories.jsonl of a run or of another policy"""
    seed: int = 0
    """of the adapter's first weights, the order of questions, and sampling"""
    sampler: Literal["local", "vllm"] = "local"
    """who writes rollouts and val replies: the trained model itself, or vLLM with the adapter as it grows"""
    answer: AnswerSettings = SMALL
    manager: ManagerSettings = field(default_factory=lambda: ManagerSettings(max_tokens=160, turns_at_once=1))
    outcome: OutcomeSettings = field(default_factory=OutcomeSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    warm_start: SFTSettings = field(default_factory=SFTSettings)
    rejection: RejectionSettings = field(default_factory=RejectionSettings)
    grpo: GRPOSettings = field(default_factory=GRPOSettings)
    ppo: PPOSettings = field(default_factory=PPOSettings)
    vllm: VLLMSettings = field(default_factory=VLLMSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"val_fraction is {self.val_fraction}, expected 0 to 1, such as 0.2")
        if self.replay_turns < 1:
            raise InputError(f"replay_turns is {self.replay_turns}, expected at least 1")
        if self.from_rollouts and self.trajectories:
            raise InputError("got from_rollouts and trajectories, expected one source of replies to imitate")
        if self.sampler == "vllm":
            served_rank(self.learner.lora_rank)


def train_answer_agent(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    out: Path,
    *,
    start: Path | None = None,
    manager: LLMManager | None = None,
    judge: Judge | None = None,
    teacher: Policy | None = None,
    embedder: Embedder | None = None,
    report: Report | None = None,
) -> Path:
    """Train an adapter for the answer agent; returns its folder.

    Args:
        policy: the base model; it samples with the adapter as it grows.
        out: the run folder; one with a state of the same settings is resumed.
        start: an adapter to go on from; by default a new one is made.
        manager: makes the banks in place of what `settings.banks` says (Memory-R1, Algorithm 2).
        judge: for the reward of that name.
        teacher: writes the rollouts that `from_rollouts` imitates; the base model itself by default.

    Raises:
        TrainingError: the folder holds another run, or no rollout may be imitated.
        ModelError: `start` is no adapter of this agent on this base.
        InputError: the data has no part of that name, or too few questions; the reward is judge, and there is none; a
            file of trajectories cannot be read.
        PolicyError: the judge's model failed, or the teacher's.
    """
    join()  # before a model is loaded: it settles the process's GPU
    task = answer_task(
        dataset,
        settings,
        dataset.extractor(settings.extract, policy),
        settings.answer,
        answer_reward(settings.reward, judge),
        format_coef=settings.format_coef,
        shuffles=settings.warm_start.shuffles,
        embedder=embedder,
        banks=[partial(manage_all, manager=manager)] if manager else _BANKS[settings.banks],
    )
    config = _config("answer", policy, dataset, settings, start)
    config |= _named(manager=manager, judge=judge, teacher=teacher)
    return _train(policy, task, settings, out, config, start, teacher, report)


def train_memory_manager(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    out: Path,
    *,
    answerer: Policy,
    start: Path | None = None,
    judge: Judge | None = None,
    teacher: Policy | None = None,
    embedder: Embedder | None = None,
    report: Report | None = None,
) -> Path:
    """Train an adapter for the memory manager against a frozen answer agent; returns its folder.

    Args:
        policy, out, start, judge, teacher: as for `train_answer_agent`.
        answerer: the frozen answer agent's model, a policy of its own; `settings.answer` does not count for it.

    Raises:
        TrainingError, InputError: as from `train_answer_agent`, or too few questions have evidence.
        PolicyError: the answerer's model failed, the judge's or the teacher's.
    """
    join()  # before a model is loaded: it settles the process's GPU
    task = manager_task(
        dataset,
        settings,
        dataset.extractor(settings.extract, policy),
        settings.manager,
        answer_reward(settings.reward, judge),
        answerer,
        window=settings.window,
        replay_turns=settings.replay_turns if settings.episode == "replay" else 0,
        outcome=settings.outcome,
        embedder=embedder,
    )
    config = _config("manager", policy, dataset, settings, start)
    config |= _named(answerer=answerer, judge=judge, teacher=teacher)
    return _train(policy, task, settings, out, config, start, teacher, report)


def greedy_reward(
    learner: Learner, episodes: Sequence[Episode], max_tokens: int, score: Scorer, sampler: Sampler | None = None
) -> Metrics:
    """The mean reward of greedy rollouts, and the means of its parts, under val/ names."""
    groups = sample_rollouts(
        sampler or learner.policy,
        learner.world.share(episodes),
        n=1,
        sampling=Sampling(max_tokens),
        score=score,
        precision=learner.precision,
    )
    rewards = learner.world.gather([rollout.reward for group in groups for rollout in group.rollouts])
    parts = sorted({name for reward in rewards for name in reward.parts})
    means = {f"val/{name}": sum(reward.parts[name] for reward in rewards) / len(rewards) for name in parts}
    return {"val/reward": sum(reward.value for reward in rewards) / len(rewards), **means}


def _train(
    policy: LocalPolicy,
    task: Task,
    settings: TrainSettings,
    out: Path,
    config: dict[str, object],
    start: Path | None,
    teacher: Policy | None,
    report: Report | None,
) -> Path:
    """Warm start, then the algorithm, each in a folder of its own; returns the adapter's."""
    if settings.trajectories:
        given = [one.demonstration() for one in load_trajectories(settings.trajectories)]
        task = replace(task, demonstrations=given)
        config = config | {"trajectories": hashlib.sha256(settings.trajectories.read_bytes()).hexdigest()}
    _check(task, settings)
    if start is not None:
        read_card(start, type(task.settings), policy.base_name)
    world = join()
    if settings.sampler == "vllm" and world.size > 1:
        raise TrainingError(f"sampler is vllm in {world.size} processes, expected one: start one, or sample locally")
    world.agree("settings, models or data", lambda: _lessons(task, config))
    if world.main:
        _claim(out, config)
    learner = Learner(policy, settings.learner, start=start, seed=settings.seed)
    max_tokens = task.settings.max_tokens
    sampler = _sampler(learner, settings)

    def evaluate() -> Metrics:
        return greedy_reward(learner, task.val, max_tokens, task.score, sampler)

    def train(algorithm: Algorithm) -> Path:
        check = evaluate if task.val else None
        folder = out / algorithm.name
        trained = Loop(learner, algorithm, folder, settings.loop, evaluate=check, report=report).run()
        if world.main:
            write_card(trained, policy.base_name, task.settings)
        return trained

    if settings.warm_start.epochs > 0:
        shown = task.demonstrations
        if settings.from_rollouts:
            file = out / "trajectories.jsonl"
            if world.main and not file.is_file():
                save_trajectories(file, _rollouts(learner, teacher, task, settings, report))
            world.wait()
            shown = [one.demonstration() for one in load_trajectories(file)]
        trained = train(SFT(shown, settings.warm_start, settings.seed))
        learner.load_weights(trained)
    if settings.algo == "grpo":
        grpo = _capped(settings.grpo, settings)
        trained = train(GRPO(task.episodes, grpo, max_tokens, settings.seed, score=task.score, sampler=sampler))
    if settings.algo == "ppo":
        ppo = _capped(settings.ppo, settings)
        trained = train(PPO(task.episodes, ppo, max_tokens, settings.seed, score=task.score, sampler=sampler))
    if world.main:
        shutil.copytree(trained, out / "adapter", dirs_exist_ok=True)
    world.wait()
    return out / "adapter"


def _rollouts(
    learner: Learner, teacher: Policy | None, task: Task, settings: TrainSettings, report: Report | None
) -> list[Trajectory]:
    """What a warm start is to imitate of the rollouts of the teacher, by default the policy as it is."""

    def tell(done: int, of: int, metrics: Mapping[str, float]) -> None:
        if report:
            report("rollouts", done, of, metrics)

    return sample_trajectories(
        teacher or learner.policy,
        task.episodes,
        settings.rejection,
        max_tokens=task.settings.max_tokens,
        seed=settings.seed,
        score=task.score,
        precision=nullcontext if teacher else learner.precision,
        report=tell,
    )


def _sampler(learner: Learner, settings: TrainSettings) -> Sampler | None:
    """Who samples beside the policy itself: vLLM with the learner's adapter."""
    if settings.sampler == "local":
        return None
    return VLLMSampler(learner.policy, learner, learner.lora_rank, settings.vllm)


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
        raise InputError(f"{len(task.episodes)} questions, turns or stretches to train on, expected at least {least}")
    if settings.warm_start.epochs > 0 and not task.demonstrations and not settings.from_rollouts:
        raise InputError(
            f"none of {len(task.episodes)} questions has its evidence among the {settings.answer.k} entries retrieved, "
            "expected some to imitate: retrieve more (answer.k), or leave the warm start out (warm_start.epochs 0)"
        )
    if settings.algo == "sft" and settings.warm_start.epochs == 0:
        raise TrainingError("nothing to train: sft needs warm_start.epochs above 0")


def _config(
    agent: str, policy: LocalPolicy, dataset: Dataset, settings: TrainSettings, start: Path | None
) -> dict[str, object]:
    """What makes a run the same run."""
    data = {"path": str(dataset.path), "sha256": dataset.sha256}
    begun = {} if start is None else {"start": adapter_name(start)}
    return {"agent": agent, "settings": plain(settings), "base": policy.base_name, "data": data, **begun}


def _lessons(task: Task, config: Mapping[str, object]) -> str:
    """A hash of what is trained on and how: the same in all processes, or their shares would not fit together."""
    asked = [(one.id, one.prompt) for one in (*task.episodes, *task.val)]
    return hashlib.sha256(repr((_identity(config), asked, task.demonstrations)).encode()).hexdigest()


def _named(**others: Policy | Judge | LLMManager | None) -> dict[str, object]:
    """The models beside the one that is trained, as far as there are any, by what they do."""
    return {role: one.name for role, one in others.items() if one}


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
    others = [config.get(name) for name in ("start", "manager", "answerer", "judge", "teacher", "trajectories")]
    return config["agent"], config["settings"], config["base"], config["data"]["sha256"], *others
