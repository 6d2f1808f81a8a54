"""Train an agent on a file of dialogues and questions: episodes, warm start, GRPO or PPO, an adapter.

The run folder holds config.json, a folder per algorithm (see loop.py), report.html, and adapter/: the PEFT adapter,
with memory_r1.json beside it, which names the agent, the prompt format and the settings it was trained with. Calling it
again on the same folder goes on from where it stopped. Of several processes (parallel.py) all call these functions,
and the main one writes the folder. Left out: where episodes come from (tasks.py), and what makes a run the same run
(identity.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from memory_r1.bank import Embedder
from memory_r1.bench.dataset import Dataset
from memory_r1.bench.managed import manage_all
from memory_r1.bench.run import remember_all
from memory_r1.errors import InputError, TrainingError
from memory_r1.memory.card import read_card, write_card
from memory_r1.policy.local import LocalPolicy
from memory_r1.policy.vllm import VLLMSampler, require_vllm
from memory_r1.rl.algorithms.grpo import GRPO
from memory_r1.rl.algorithms.ppo import PPO
from memory_r1.rl.algorithms.sft import SFT
from memory_r1.rl.algorithms.update import UpdateSettings
from memory_r1.rl.estimate import Estimate, estimate
from memory_r1.rl.identity import Config, claim, config_of, lessons_hash
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.model.parallel import join
from memory_r1.rl.report.page import write_page
from memory_r1.rl.rollout import Sampler
from memory_r1.rl.run.evaluation import Evaluation, evaluate
from memory_r1.rl.run.loop import Algorithm, Loop, Note, Report
from memory_r1.rl.run.whole import whole_folder
from memory_r1.rl.settings import Others, TrainSettings
from memory_r1.rl.tasks.reward import answer_reward
from memory_r1.rl.tasks.task import Banks, Task, answer_task, gold_banks, manager_task
from memory_r1.rl.trajectories import Trajectory, load_trajectories, sample_trajectories, save_trajectories
from memory_r1.rl.types import Demonstration

Settings = TypeVar("Settings", bound=UpdateSettings)

IMPORTANCE_CAP = 2.0
"""Of rollouts that another engine sampled, where none was chosen."""

_BANKS: Mapping[str, Sequence[Banks]] = {
    "add-only": (remember_all,),
    "gold": (gold_banks,),
    "both": (remember_all, gold_banks),
}


def train_answer_agent(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    out: Path,
    *,
    others: Others | None = None,
    embedder: Embedder | None = None,
    report: Report | None = None,
    note: Note | None = None,
) -> Path:
    """Train an adapter for the answer agent; returns its folder.

    Args:
        policy: the base model; it samples with the adapter as it grows.
        out: the run folder; one with a state of the same settings is resumed.
        others: the models beside it (settings.py).
        report, note: called after every iteration, and with what should be known meanwhile (loop.py).

    Raises:
        TrainingError: the folder holds another run, or no rollout may be imitated.
        ModelError: `others.start` is no adapter of this agent on this base.
        InputError: the data has no part of that name, or too few questions; the reward is judge, and there is none; a
            file of trajectories cannot be read.
        PolicyError: the judge's model failed, or the teacher's.
    """
    others = others or Others()
    task = _answer_lessons(policy, dataset, settings, others, embedder)
    config = config_of("answer", policy, dataset, settings, others)
    return _train(policy, task, settings, out, config, others, report, note)


def train_memory_manager(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    out: Path,
    *,
    others: Others,
    embedder: Embedder | None = None,
    report: Report | None = None,
    note: Note | None = None,
) -> Path:
    """Train an adapter for the memory manager against a frozen answer agent; returns its folder.

    Args:
        policy, out, report, note: as for `train_answer_agent`.
        others: with an answerer, which is a policy of its own.

    Raises:
        TrainingError, ModelError, InputError: as from `train_answer_agent`, or too few questions have evidence.
        PolicyError: the answerer's model failed, the judge's or the teacher's.
    """
    task = _manager_lessons(policy, dataset, settings, others, embedder)
    config = config_of("manager", policy, dataset, settings, others)
    return _train(policy, task, settings, out, config, others, report, note)


def estimate_answer_agent(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    others: Others | None = None,
    embedder: Embedder | None = None,
) -> Estimate:
    """What `train_answer_agent` would take (estimate.py); writes nothing. Raises as it does."""
    others = others or Others()
    return _estimated(policy, _answer_lessons(policy, dataset, settings, others, embedder), settings, others)


def estimate_memory_manager(
    policy: LocalPolicy,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    others: Others,
    embedder: Embedder | None = None,
) -> Estimate:
    """What `train_memory_manager` would take, the answerer's own time left out; writes nothing. Raises as it does."""
    return _estimated(policy, _manager_lessons(policy, dataset, settings, others, embedder), settings, others)


# What is learnt from


def _answer_lessons(
    policy: LocalPolicy, dataset: Dataset, settings: TrainSettings, others: Others, embedder: Embedder | None
) -> Task:
    join()  # before a model is loaded: it settles the process's GPU
    task = answer_task(
        dataset,
        settings,
        dataset.extractor(settings.extract, policy),
        settings.answer,
        answer_reward(settings.reward, others.judge),
        format_coef=settings.format_coef,
        shuffles=settings.warm_start.shuffles,
        embedder=embedder,
        banks=[partial(manage_all, manager=others.manager)] if others.manager else _BANKS[settings.banks],
    )
    return _checked(task, policy, settings, others)


def _manager_lessons(
    policy: LocalPolicy, dataset: Dataset, settings: TrainSettings, others: Others, embedder: Embedder | None
) -> Task:
    join()  # before a model is loaded: it settles the process's GPU
    if others.answerer is None:
        raise InputError("the memory manager is trained against a frozen answer agent, and there is none: name one")
    task = manager_task(
        dataset,
        settings,
        dataset.extractor(settings.extract, policy),
        settings.manager,
        answer_reward(settings.reward, others.judge),
        others.answerer,
        window=settings.window,
        replay_turns=settings.replay_turns if settings.episode == "replay" else 0,
        outcome=settings.outcome,
        teaching=settings.lessons,
        embedder=embedder,
    )
    return _checked(task, policy, settings, others)


def _checked(task: Task, policy: LocalPolicy, settings: TrainSettings, others: Others) -> Task:
    """The task with the replies to imitate that are known by now; what could only fail later is refused."""
    if settings.from_rollouts:
        task = replace(task, demonstrations=())
    if settings.trajectories:
        task = replace(task, demonstrations=_shown(load_trajectories(settings.trajectories)))
    if settings.sampler == "vllm":
        require_vllm()
        if (size := join().size) > 1:
            raise TrainingError(f"sampler is vllm in {size} processes, expected one: start one, or sample locally")
    least = {"grpo": settings.grpo.prompts, "ppo": settings.ppo.prompts, "sft": 1}[settings.algo]
    if len(task.episodes) < least:
        raise InputError(f"{len(task.episodes)} questions, turns or stretches to train on, expected at least {least}")
    if settings.loop.patience and not task.val:
        raise InputError(
            f"loop.patience is {settings.loop.patience}, but there is no val to be patient about: name one (val, or "
            "val_fraction 0.2), or leave patience at 0"
        )
    if settings.warm_start.epochs > 0 and not task.demonstrations and not settings.from_rollouts:
        raise InputError(
            f"none of {len(task.episodes)} questions has its evidence among the {settings.answer.k} entries retrieved, "
            "expected some to imitate: retrieve more (answer.k), or leave the warm start out (warm_start.epochs 0)"
        )
    if settings.algo == "sft" and settings.warm_start.epochs == 0:
        raise TrainingError("nothing to train: sft needs warm_start.epochs above 0")
    if others.start:
        read_card(others.start, type(task.settings), policy.base_name)
    return task


def _shown(trajectories: Sequence[Trajectory]) -> list[Demonstration]:
    return [one.demonstration() for one in trajectories]


# The run


def _train(
    policy: LocalPolicy,
    task: Task,
    settings: TrainSettings,
    out: Path,
    config: Config,
    others: Others,
    report: Report | None,
    note: Note | None,
) -> Path:
    """Warm start, then the algorithm, each in a folder of its own; returns the adapter's."""
    world = join()
    world.agree("settings, models or data", lambda: lessons_hash(task, config))
    if world.main:
        claim(out, config)
        for remark in task.remarks:
            if note:
                note(remark)
    learner = Learner(policy, settings.learner, start=others.start, seed=settings.seed)
    run = _Run(learner, _sampler(learner, settings), task, settings, out, report, note)
    if settings.from_rollouts and settings.warm_start.epochs > 0:
        run = replace(run, task=replace(task, demonstrations=run.rollouts(others)))
    for algorithm in _algorithms(run.task, settings, run.sampler):
        trained = run.train(algorithm)
    if world.main:
        with whole_folder(out / "adapter") as adapter:
            shutil.copytree(trained, adapter, dirs_exist_ok=True)
        write_page(out)
    world.wait()
    return out / "adapter"


@dataclass(frozen=True)
class _Run:
    """A task, the learner that is trained on it, who samples, and the folder in which this is kept."""

    learner: Learner
    sampler: Sampler
    task: Task
    settings: TrainSettings
    out: Path
    report: Report | None
    note: Note | None

    def train(self, algorithm: Algorithm) -> Path:
        """Run one algorithm; returns the folder of its weights, which the learner goes on from after a warm start."""
        looks = self.task.val or self.settings.loop.samples
        trained = Loop(
            self.learner,
            algorithm,
            self.out / algorithm.name,
            self.settings.loop,
            evaluate=self.look if looks else None,
            report=self.report,
            note=self.note,
            saved=lambda: write_page(self.out),
        ).run()
        if self.learner.world.main:
            write_card(trained, self.learner.policy.base_name, self.task.settings)
        if isinstance(algorithm, SFT):
            self.learner.load_weights(trained)
        return trained

    def look(self) -> Evaluation:
        """The policy as it is now, on val."""
        task = self.task
        return evaluate(
            self.learner,
            task.val,
            task.episodes,
            shown=self.settings.loop.samples,
            max_tokens=task.settings.max_tokens,
            score=task.score,
            sampler=self.sampler,
        )

    def rollouts(self, others: Others) -> list[Demonstration]:
        """What a warm start is to imitate of rollouts, sampled by the main process where they are not there yet."""
        world, file = self.learner.world, self.out / "trajectories.jsonl"
        if world.main and not file.is_file():
            save_trajectories(file, self._sampled(others))
        world.wait()
        return _shown(load_trajectories(file))

    def _sampled(self, others: Others) -> list[Trajectory]:
        def tell(done: int, of: int, metrics: Mapping[str, float]) -> None:
            if self.report:
                self.report("rollouts", done, of, metrics)

        return sample_trajectories(
            others.teacher or self.learner,
            self.task.episodes,
            self.settings.rejection,
            max_tokens=self.task.settings.max_tokens,
            seed=self.settings.seed,
            score=self.task.score,
            report=tell,
        )


def _sampler(learner: Learner, settings: TrainSettings) -> Sampler:
    """Who samples: the learner itself, or vLLM with its adapter."""
    if settings.sampler == "local":
        return learner
    return VLLMSampler(learner.policy, learner, learner.lora_rank, settings.vllm)


def _algorithms(task: Task, settings: TrainSettings, sampler: Sampler) -> list[Algorithm]:
    """What the run is made of, in order."""
    max_tokens, seed = task.settings.max_tokens, settings.seed
    chosen: list[Algorithm] = []
    if settings.warm_start.epochs > 0:
        chosen.append(SFT(task.demonstrations, settings.warm_start, seed))
    if settings.algo == "grpo":
        grpo = _capped(settings.grpo, settings)
        chosen.append(GRPO(task.episodes, grpo, max_tokens, seed, score=task.score, sampler=sampler))
    if settings.algo == "ppo":
        ppo = _capped(settings.ppo, settings)
        chosen.append(PPO(task.episodes, ppo, max_tokens, seed, score=task.score, sampler=sampler))
    return chosen


def _capped(algorithm: Settings, settings: TrainSettings) -> Settings:
    """An algorithm's settings with an importance cap, where another engine samples and none was chosen."""
    if settings.sampler == "local" or algorithm.importance_cap is not None:
        return algorithm
    return replace(algorithm, importance_cap=IMPORTANCE_CAP)


def _estimated(policy: LocalPolicy, task: Task, settings: TrainSettings, others: Others) -> Estimate:
    if settings.from_rollouts:
        unknown = "the warm start is not in these figures: the replies it imitates are sampled first (--from-rollouts)"
        task = replace(task, remarks=[*task.remarks, unknown])
        settings = replace(settings, warm_start=replace(settings.warm_start, epochs=0))
    learner = Learner(policy, settings.learner, start=others.start, seed=settings.seed)
    return estimate(learner, task, _algorithms(task, settings, learner), settings.loop)
