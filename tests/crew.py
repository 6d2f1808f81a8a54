"""What several processes do together in test_parallel.py: `python crew.py MODEL OUT` is one of them.

A lesson is done by one process as by several, so that the numbers can be compared. Its groups are five, of ragged
lengths and sizes, one of them without signal: dealt to two processes they leave one of them without work in a step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conftest import Letters, new_learner
from memory_r1.bank import HashingEmbedder
from memory_r1.bench.dataset import load_dataset
from memory_r1.errors import TrainingError
from memory_r1.memory.answer import AnswerSettings
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.algorithms import grpo, ppo
from memory_r1.rl.algorithms.sft import SFT, SFTSettings
from memory_r1.rl.algorithms.update import sample_iteration
from memory_r1.rl.model.learner import Learner, LearnerSettings
from memory_r1.rl.model.parallel import join
from memory_r1.rl.rollout import one_by_one
from memory_r1.rl.run.evaluation import Evaluation, evaluate
from memory_r1.rl.run.loop import Algorithm, Loop, LoopSettings, Metrics
from memory_r1.rl.settings import TrainSettings
from memory_r1.rl.train import train_answer_agent
from memory_r1.rl.types import Demonstration, Group
from rollouts import MAX_TOKENS, Stopped, random_groups

Lesson = Callable[[Path], dict[str, Any]]

REWARDS = [[1.0, 0.0, 0.25, 1.0], [0.5, 0.0], [0.4, 0.4, 0.4], [0.3, 0.9, 0.1], [0.0, 0.7]]
GRPO = grpo.GRPOSettings(prompts=5, group=4, kl_coef=0.1, temperature=0.8)
PPO = ppo.PPOSettings(prompts=5, group=3, minibatches=1, kl_coef=0.1)
EPISODES = [Letters(text) for text in ("one", "two", "three", "four", "five")]
SHOWN = [Demonstration(text, Letters(text).prompt, f"Answer: {text}") for text in ("the dog", "a very old cat", "Ann")]
LR = 0.01


def groups_of(rewards: Sequence[Sequence[float]] = REWARDS) -> list[Group]:
    return random_groups(rewards)


class Pupil:
    """A learner away from its reference, by plain gradient descent, that keeps what each step was made from."""

    def __init__(self, folder: Path, lora_rank: int = 4, *, critic: bool = False) -> None:
        self.learner = new_learner(folder, lora_rank, max_grad_norm=1e9)
        self.learner.model.double()
        self.learner.freeze_reference()
        with torch.no_grad():
            for weight in self.learner._weights:
                weight += 0.02 * torch.sin(torch.arange(weight.numel(), dtype=weight.dtype)).view_as(weight)
        self.gradients: list[Tensor] = []
        self.learner.optimizer = self._descent(self.learner.optimizer)
        if critic:
            values = self.learner.add_critic()
            with torch.no_grad():
                values.head.weight.copy_(0.03 * torch.cos(torch.arange(32.0)))
            values.optimizer = self._descent(values.optimizer)

    def _descent(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        descent = torch.optim.SGD(weights_of(optimizer))
        descent.register_step_pre_hook(self._keep)
        return descent

    def _keep(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        found = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights_of(optimizer)]
        self.gradients.append(torch.cat([one.flatten() for one in found]))

    def learned(self, metrics: Metrics) -> dict[str, Any]:
        state = self.learner.state()
        weights = state["weights"] | {
            f"critic.{n}": w for n, w in state.get("critic", {"weights": {}})["weights"].items()
        }
        return {"gradients": self.gradients, "weights": weights, "metrics": metrics}


def weights_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


# Lessons whose groups are given: one process and several must come to the same


def grpo_lesson(settings: grpo.GRPOSettings, lora_rank: int = 4) -> Lesson:
    def lesson(folder: Path) -> dict[str, Any]:
        pupil = Pupil(folder, lora_rank)
        return pupil.learned(grpo.update(pupil.learner, groups_of(), settings, MAX_TOKENS, LR))

    return lesson


def ppo_lesson(settings: ppo.PPOSettings, lora_rank: int = 4) -> Lesson:
    def lesson(folder: Path) -> dict[str, Any]:
        pupil = Pupil(folder, lora_rank, critic=True)
        batch = ppo.judge(pupil.learner, groups_of(), settings)
        metrics = ppo.update_critic(pupil.learner, batch, settings, LR)
        metrics |= ppo.update_actor(pupil.learner, batch, settings, MAX_TOKENS, LR)
        advantages = torch.cat([row.advantages for judged in batch for row in judged.group.rows])
        return pupil.learned(metrics) | {"advantages": advantages}

    return lesson


def sft_lesson(batch: int) -> Lesson:
    def lesson(folder: Path) -> dict[str, Any]:
        pupil = Pupil(folder)
        return pupil.learned(SFT(SHOWN, SFTSettings(batch=batch, lr=LR)).iterate(pupil.learner, 0))

    return lesson


def silent_lesson(folder: Path) -> dict[str, Any]:
    """AdamW has moments from a first step; then every group is silent, and nothing may move, in no process."""
    learner, settings = new_learner(folder), replace(GRPO, kl_coef=0.0)
    grpo.update(learner, groups_of(), settings, MAX_TOKENS, 1e-2)
    before = learner.state()["weights"]
    metrics = grpo.update(learner, groups_of([[0.4, 0.4], [1.0, 1.0]]), settings, MAX_TOKENS, 1e-2)
    after = learner.state()["weights"]
    return {
        "gradients": [],
        "weights": {},
        "metrics": metrics,
        "moved": any(not after[n].equal(before[n]) for n in after),
    }


def val_lesson(folder: Path) -> dict[str, Any]:
    return {"gradients": [], "weights": {}, "metrics": checked(new_learner(folder))}


def checked(learner: Learner) -> Metrics:
    return look(learner).metrics


def look(learner: Learner) -> Evaluation:
    """Val: greedy replies to all episodes, two of them kept to read."""
    return evaluate(learner, EPISODES, [], shown=2, max_tokens=MAX_TOKENS, score=one_by_one)


LESSONS: dict[str, Lesson] = {
    **{f"grpo, {name}": grpo_lesson(replace(GRPO, aggregation=name)) for name in ("sequence", "token", "constant")},
    "grpo, all weights, one completion at a time": grpo_lesson(replace(GRPO, micro_batch=1), 0),
    "grpo, 3 minibatches, 2 epochs": grpo_lesson(replace(GRPO, minibatches=3, update_epochs=2)),
    "grpo, 1 minibatch, 2 epochs": grpo_lesson(replace(GRPO, update_epochs=2)),
    "grpo, scaled by the batch": grpo_lesson(replace(GRPO, scale_rewards="batch")),
    "ppo": ppo_lesson(PPO),
    "ppo, all weights": ppo_lesson(PPO, 0),
    "ppo, 3 minibatches, kl in the reward": ppo_lesson(replace(PPO, minibatches=3, kl_in="reward")),
    "sft": sft_lesson(3),
    "sft, 1 a batch": sft_lesson(1),
    "silent": silent_lesson,
    "val": val_lesson,
}


# What only several processes show


def sampled(folder: Path) -> dict[str, Any]:
    """The rollouts of iterations with a prompt more than two processes, as many, and one."""
    learner, twice = new_learner(folder), [EPISODES[0]] * 3
    drawn = []
    for prompts in (3, 2, 1):
        algorithm = grpo.GRPO(twice, grpo.GRPOSettings(prompts=prompts, group=3), MAX_TOKENS)
        drawn.append(sample_iteration(learner, algorithm, 0))
    moved = grpo.GRPO(twice, grpo.GRPOSettings(prompts=3, group=3, kl_coef=0.0), MAX_TOKENS)
    moved.iterate(learner, 0)
    return {
        "groups": [[[one.completion.tokens for one in group.rollouts] for group in groups] for groups in drawn],
        "versions": [group.version for group in (*drawn[0], *sample_iteration(learner, moved, 1))],
    }


def resumed(folder: Path, out: Path) -> dict[str, Any]:
    """PPO once without a stop, and once stopped and taken up again; the weights' fingerprints."""
    settings = ppo.PPOSettings(
        epochs_over_data=2.4, prompts=3, group=2, minibatches=2, lr=1e-2, critic=ppo.CriticSettings(warmup=1)
    )
    run, every = ppo.PPO(EPISODES, settings, max_tokens=4), LoopSettings(eval_every=2, checkpoint_every=2)

    def train(name: str, algorithm: Algorithm) -> str:
        learner = new_learner(folder)
        Loop(learner, algorithm, out / name, every, evaluate=lambda: look(learner)).run()
        return learner.fingerprint()

    whole = train("whole", run)
    try:
        train("stopped", Stopped(run, 3))
    except KeyboardInterrupt:
        return {"whole": whole, "stopped": train("stopped", run), "iterations": run.iterations}
    raise AssertionError("nobody stopped it")


@dataclass(frozen=True)
class Pressed(Stopped):
    """An algorithm during whose iteration of this number somebody presses Ctrl-C in the second process alone."""

    def iterate(self, learner: Learner, iteration: int) -> Metrics:
        if iteration == self.at and learner.world.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return self.inner.iterate(learner, iteration)


def interrupted(folder: Path, out: Path) -> dict[str, Any]:
    """GRPO once without a stop; once with a Ctrl-C in an iteration, then one in a check on val, then to the end."""
    run = grpo.GRPO(EPISODES, grpo.GRPOSettings(epochs_over_data=2.4, prompts=3, group=2, lr=1e-2), max_tokens=4)
    said: list[str] = []
    checks = 0

    def train(name: str, algorithm: Algorithm, pressed: int = 99) -> tuple[str, int]:
        nonlocal checks
        learner, checks = new_learner(folder), 0

        def check() -> Evaluation:
            nonlocal checks
            checks += 1
            if checks == pressed and learner.world.rank == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return look(learner)

        loop = Loop(learner, algorithm, out / name, LoopSettings(1, 0), evaluate=check, note=said.append)
        try:
            loop.run()
        except KeyboardInterrupt:
            learner.world.wait()  # for the state that the main one writes before it ends
        return learner.fingerprint(), loop._at.done

    return {
        "whole": train("never pressed", run),
        "in an iteration": train("pressed", Pressed(run, 1)),
        "in a check": train("pressed", run, pressed=2),
        "at last": train("pressed", run),
        "said": said,
    }


TRAINING = TrainSettings(
    train="a",
    reward="f1",
    answer=AnswerSettings(k=2, per_speaker=False, max_tokens=4),
    learner=LearnerSettings(lora_rank=2, precision="float32"),
    warm_start=SFTSettings(epochs=1, shuffles=1, batch=4),
    grpo=grpo.GRPOSettings(prompts=3, group=2),
    loop=LoopSettings(eval_every=1, checkpoint_every=1),
)


def write_data(path: Path) -> None:
    """Two dialogues with three questions each."""
    facts = {"dog": "Rex", "cat": "Tom", "boat": "Ada"}
    records: list[dict[str, object]] = []
    for name in "ab":
        told = [(f"{name}-{pet}", f"My {pet} is called {called}") for pet, called in facts.items()]
        records += [{"dialogue": name, "turn": turn, "speaker": "Ann", "text": text} for turn, text in told]
        asked = [(f"What is the {pet} called?", called, [f"{name}-{pet}"]) for pet, called in facts.items()]
        records += [{"dialogue": name, "question": q, "answer": a, "evidence": e} for q, a, e in asked]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def trained(folder: Path, data: Path, out: Path, settings: TrainSettings = TRAINING) -> dict[str, Any]:
    """A whole run from a file to an adapter: what was reported here, and the weights as they lie in memory."""
    heard: list[str] = []
    policy = LocalPolicy(folder, device="cpu")
    adapter = train_answer_agent(
        policy,
        load_dataset(data),
        settings,
        out,
        embedder=HashingEmbedder(),
        report=lambda name, done, of, metrics: heard.append(f"{name} {done}/{of}"),
    )
    weights = {n: w.detach().clone() for n, w in policy.model.named_parameters() if ".default." in n}
    return {"heard": heard, "adapter": str(adapter), "weights": weights}


def refused(work: Callable[[], object]) -> str:
    """The line in which this is refused."""
    try:
        work()
    except TrainingError as error:
        return str(error)
    return ""


def main(folder: Path, out: Path) -> None:
    world = join()
    told: dict[str, Any] = {"rank": world.rank, "size": world.size, "device": world.device}
    told["lessons"] = {name: lesson(folder) for name, lesson in LESSONS.items()}
    told["sampled"] = sampled(folder)
    told["resumed"] = resumed(folder, out)
    told["interrupted"] = interrupted(folder, out)
    told["trained"] = trained(folder, out / "toy.jsonl", out / "run")
    other = replace(TRAINING, seed=world.rank)
    told["other settings"] = refused(lambda: trained(folder, out / "toy.jsonl", out / "other", other))
    told["anywhere"] = [world.anywhere(world.rank == 1), world.anywhere(False)]
    told["in order"] = world.map(lambda item: (item, world.rank), range(5))
    if world.main:  # the other one has gone
        told["alone"] = refused(world.wait)
    torch.save(told, out / f"rank{world.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
