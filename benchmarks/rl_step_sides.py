"""What benchmarks/rl_step.py compares: one GRPO step by this trainer and by TRL's, in a process of its own.

Usage: python benchmarks/rl_step_sides.py SIDE STEP; STEP is JSON of `Step`. Prints `Measured` as JSON.

Both sides get the same weights, the same prompts (token ids compared by the caller), the same length of completions
(end tokens are no end: all are written to the limit), the same reward, learning rate and clipping, AdamW. An untimed
step on short prompts comes first, so that what is built once, optimizer state included, is built. TRL's settings
that would make it do other work are set to ours (loss_type, use_bias_correction_kl); its own ways are left to it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from memory_r1.policy.base import Completion, Prompt
from memory_r1.policy.embedded import embedded_model
from memory_r1.policy.gguf import unpacked
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings, update
from memory_r1.rl.algorithms.update import sample_iteration
from memory_r1.rl.model.learner import Learner, LearnerSettings
from memory_r1.rl.types import Reward

LR = 1e-6
LORA_RANK, LORA_ALPHA = 16, 32
WORDS = ("cat", "house", "river", "green", "water", "today", "many", "people", "friend", "bought", "small", "letter")
WARM_UP_TOKENS = 48  # of a prompt


@dataclass(frozen=True)
class Step:
    """What one step is: P prompts of so many tokens, G completions of each; weights, precision and KL."""

    weights: Literal["full", "lora"] = "full"
    precision: Literal["float32", "bfloat16"] = "float32"
    kl_coef: float = 0.04
    prompts: int = 4
    prompt_tokens: int = 700
    group: int = 8
    completion_tokens: int = 32

    @property
    def tokens(self) -> int:
        """Of all rollouts, each with its prompt."""
        return self.prompts * self.group * (self.prompt_tokens + self.completion_tokens)

    def __str__(self) -> str:
        kl = "KL" if self.kl_coef else "no KL"
        of = f"{self.prompts} x {self.prompt_tokens} tokens, {self.group} x {self.completion_tokens}"
        return f"{self.weights}, {self.precision}, {kl}; {of}"


@dataclass(frozen=True)
class Run:
    """How it is measured. micro_batch: the rollouts of TRL's that go through the model at once; ours takes a group."""

    runs: int = 1
    threads: int = 1
    micro_batch: int = 8


@dataclass
class Clock:
    """Wall and CPU seconds of a step, and of its named phases."""

    phases: dict[str, float] = field(default_factory=dict)
    taken: list[dict[str, float]] = field(default_factory=list)
    began: tuple[float, float] = (0.0, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - began

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, its time charged to a phase."""

        def charged(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return call(*args, **kwargs)

        return charged

    def start(self) -> None:
        self.phases = {}
        self.began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        seconds, cpu = (now - then for now, then in zip(_now(), self.began, strict=True))
        generate, reference = self.phases.get("generate", 0.0), self.phases.get("reference", 0.0)
        parts = {"generate": generate, "reference": reference, "update": seconds - generate - reference}
        self.taken.append({"seconds": seconds, "cpu_seconds": cpu, **parts})


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Measured:
    """The steps' times, the peak of resident memory, and what shows that both sides did the same work."""

    steps: list[dict[str, float]]
    peak_gb: float
    loaded_gb: float  # the peak before the first step
    prompts: str  # digest of the token ids of the timed prompts
    completions: list[int]  # lengths, sorted
    grad_norm: float  # of the last step: of a size with the other side's, which sampled other tokens


def main() -> None:
    import torch

    side, step, run = sys.argv[1], Step(**json.loads(sys.argv[2])), Run(**json.loads(sys.argv[3]))
    torch.set_num_threads(run.threads)
    print(json.dumps(asdict(SIDES[side](step, run))))


# What both get


def reward_of(tokens: Sequence[int]) -> float:
    """Something that differs from one completion to the next and depends on nothing else."""
    return sum(tokens) % 1009 / 1009


def made_up(step: Step) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of the warm-up and of the timed steps, of so many tokens under the chat template."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(weights())

    def length(prompt: Prompt) -> int:
        return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])

    around, rng = length(_user(WORDS[0])) - 1, random.Random(0)
    short, timed = (
        [_user(" ".join(rng.choices(WORDS, k=tokens - around))) for _ in range(step.prompts)]
        for tokens in (min(WARM_UP_TOKENS, step.prompt_tokens), step.prompt_tokens)
    )
    assert {length(prompt) for prompt in timed} == {step.prompt_tokens}, "a word of WORDS is not one token"
    return short, timed


def weights() -> str:
    """The folder of the embedded model's weights."""
    return str(unpacked(embedded_model(), "float32"))


def _user(text: str) -> Prompt:
    return [{"role": "user", "content": text}]


def digest(prompts: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(sorted(map(list, prompts))).encode()).hexdigest()[:12]


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# Ours


class Endless(LocalPolicy):
    """Writes every completion to the token limit."""

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset()


class TimedLearner(Learner):
    clock: Clock

    def ref_logprobs(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.phase("reference"):
            return super().ref_logprobs(*args, **kwargs)


@dataclass(frozen=True)
class Paid:
    """An episode on a prompt."""

    id: str
    prompt: Prompt

    def reward(self, completion: Completion) -> Reward:
        return Reward(reward_of(completion.tokens))


def ours(step: Step, run: Run) -> Measured:
    policy = Endless(device="cpu")
    rank = LORA_RANK if step.weights == "lora" else 0
    learner = TimedLearner(policy, LearnerSettings(rank, LORA_ALPHA, precision=step.precision))
    learner.clock = clock = Clock()
    settings = GRPOSettings(prompts=step.prompts, group=step.group, kl_coef=step.kl_coef, lr=LR)
    warm_up, timed = (
        GRPO([Paid(str(i), prompt) for i, prompt in enumerate(prompts)], settings, step.completion_tokens)
        for prompts in made_up(step)
    )
    timed.prepare(learner)
    loaded = peak_gb()
    _one(learner, warm_up, 0)
    clock.taken.clear()
    for number in range(run.runs):
        groups, metrics = _one(learner, timed, number)
    return Measured(
        steps=clock.taken,
        peak_gb=peak_gb(),
        loaded_gb=loaded,
        prompts=digest([group.prompt_tokens for group in groups]),
        completions=sorted(len(one.completion.tokens) for group in groups for one in group.rollouts),
        grad_norm=metrics["grad_norm"],
    )


def _one(learner: TimedLearner, algorithm: GRPO, number: int) -> tuple[Any, dict[str, float]]:
    """What `GRPO.iterate` does, its sampling timed by itself."""
    learner.clock.start()
    with learner.clock.phase("generate"):
        groups = sample_iteration(learner, algorithm, number)
    metrics = update(learner, groups, algorithm.settings, algorithm.max_tokens, LR)
    learner.clock.stop()
    return groups, metrics


# TRL's


def trls(step: Step, run: Run, *, checkpointing: bool = False) -> Measured:
    trainer, clock, seen = _trainer(step, run, checkpointing)
    loaded = peak_gb()
    trainer.train()
    prompt_ids, completion_ids = seen[-1]
    return Measured(
        steps=clock.taken[1:],  # the first is the warm-up
        peak_gb=peak_gb(),
        loaded_gb=loaded,
        prompts=digest(sorted(map(list, {tuple(ids) for ids in prompt_ids}))),
        completions=sorted(map(len, completion_ids)),
        grad_norm=[line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line][-1],
    )


def _trainer(step: Step, run: Run, checkpointing: bool) -> tuple[Any, Clock, list[Any]]:
    """A GRPOTrainer that times its steps, and keeps (prompt ids, completion ids) of each."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    (short, timed), clock, seen = made_up(step), Clock(), list[Any]()

    def reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        return [reward_of(ids) for ids in completion_ids]

    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(weights(), dtype=torch.float32),
        reward_funcs=reward,
        args=trl.GRPOConfig(**_config(step, run, checkpointing)),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in short + timed * run.runs]),
        processing_class=AutoTokenizer.from_pretrained(weights()),
        callbacks=[_ticking(clock)],
        peft_config=_adapter() if step.weights == "lora" else None,
    )
    generate, score = trainer._generate, trainer._get_per_token_logps_and_entropies

    def kept(prompts: Any) -> Any:
        with clock.phase("generate"):
            found = generate(prompts)
        seen.append(found[:2])
        return found

    trainer._generate = kept
    as_reference = clock.timed("reference", score)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        score if torch.is_grad_enabled() else as_reference
    )(*args, **kwargs)
    return trainer, clock, seen


def _config(step: Step, run: Run, checkpointing: bool) -> dict[str, Any]:
    rollouts = step.prompts * step.group
    micro_batch = min(run.micro_batch, rollouts)
    return {
        "output_dir": tempfile.mkdtemp(prefix="rl-step-"),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": rollouts // micro_batch,
        "num_generations": step.group,
        "max_steps": 1 + run.runs,
        "max_completion_length": step.completion_tokens,
        "generation_kwargs": {"min_new_tokens": step.completion_tokens},
        "shuffle_dataset": False,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "beta": step.kl_coef,
        "loss_type": "grpo",
        "use_bias_correction_kl": False,
        "temperature": 1.0,
        "bf16": step.precision == "bfloat16",
        "gradient_checkpointing": checkpointing,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def _ticking(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Ticking(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.stop()

    return Ticking()


SIDES: dict[str, Callable[[Step, Run], Measured]] = {
    "memory-r1": ours,
    "TRL": trls,
    "TRL, checkpointing": lambda step, run: trls(step, run, checkpointing=True),
}


if __name__ == "__main__":
    main()
