"""memory-r1 train: train an agent by reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from memory_r1.cli.flags import ModelFlags
from memory_r1.cli.show import Step, note, print_json, progress
from memory_r1.errors import InputError
from memory_r1.rl.model.parallel import World, join
from memory_r1.rl.run.loop import Report
from memory_r1.rl.settings import Others, TrainSettings

if TYPE_CHECKING:
    from memory_r1.bench.dataset import Dataset
    from memory_r1.bench.judge import Judge
    from memory_r1.policy import LocalPolicy, Policy
    from memory_r1.rl.estimate import Estimate


@dataclass(frozen=True)
class Train:
    """Train an agent on a file of dialogues and questions.

    The agent gets a short supervised warm start, then GRPO or PPO; the result is a PEFT adapter. The same command goes
    on from where a stopped run left off.

    Example: memory-r1 train answer --data mine.jsonl --train all --val-fraction 0.2 --out runs/answer
    Example: memory-r1 train answer --data mine.jsonl --val-fraction 0.2 --out runs/answer --dry-run
    Example: memory-r1 train manager --data mine.jsonl --answerer runs/answer/adapter --out runs/manager
    """

    agent: Annotated[Literal["answer", "manager"], tyro.conf.Positional]
    """which agent"""
    data: Path
    """own JSONL, or LoCoMo's locomo10.json"""
    out: Path
    """the run folder: config, metrics, checkpoints, report.html, adapter/"""
    settings: Annotated[TrainSettings, tyro.conf.arg(name="")] = field(default_factory=TrainSettings)
    model: str | None = None
    """base model: a folder, .gguf file or hub id; default: the embedded small model"""
    weights: Literal["float32", "bfloat16"] = "float32"
    """how the base model's frozen weights are kept: bfloat16 takes half the memory and, with LoRA, less time"""
    start: Path | None = None
    """an adapter of the same agent to go on from; default: a new one"""
    manager_adapter: Path | None = None
    """answer agent: the memory manager's adapter on the same base model, which makes the banks; default: see --banks"""
    answerer: Path | None = None
    """memory manager: the frozen answer agent's adapter, on the same base model; default: the base model alone"""
    judge_model: str | None = None
    """--reward judge: the model that judges answers, named as for --model, or by its endpoint's name"""
    judge_base_url: str | None = None
    """--reward judge: its OpenAI-compatible endpoint, default MEMORY_R1_BASE_URL"""
    teacher_adapter: Path | None = None
    """--from-rollouts: the adapter of the policy that is imitated, on the same base; default: the base model alone"""
    teacher_model: str | None = None
    """--from-rollouts: another model to imitate, named as for --model, or by its endpoint's name"""
    teacher_base_url: str | None = None
    """--from-rollouts: that model's OpenAI-compatible endpoint, default MEMORY_R1_BASE_URL"""
    dry_run: bool = False
    """train nothing and write nothing: say how many episodes and tokens, and about how many minutes and GB it takes"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        """0; prints where the adapter lies and how to use it."""
        from memory_r1.bench.dataset import load_dataset
        from memory_r1.policy import LocalPolicy

        if self.weights == "bfloat16" and not self.settings.learner.lora_rank:
            raise InputError("--weights bfloat16 is for frozen weights: full training (lora_rank 0) needs float32")
        if self.agent == "answer" and self.answerer is not None:
            raise InputError("--answerer is for training the memory manager: leave it out")
        if self.agent == "manager" and self.manager_adapter is not None:
            raise InputError("--manager-adapter is for training the answer agent: leave it out")
        world, dataset = join(), load_dataset(self.data)
        policy = LocalPolicy(self.model, device=world.device, precision=self.weights)
        others = self._others(policy)
        if self.dry_run:
            found, said = self._estimated(policy, dataset, others)
        else:
            found, said = self._trained(policy, dataset, world, others)
        world.leave()
        if world.main:
            print_json(found) if self.json else print(said)
        return 0

    def _trained(
        self, policy: LocalPolicy, dataset: Dataset, world: World, others: Others
    ) -> tuple[Mapping[str, str], str]:
        """Train; returns what to say, for machines and for people."""
        from memory_r1.rl import train
        from memory_r1.rl.report.page import PAGE

        run = train.train_answer_agent if self.agent == "answer" else train.train_memory_manager
        with progress("training") if world.main else nullcontext() as step:
            report = reporter(step) if step else None
            adapter = run(policy, dataset, self.settings, self.out, others=others, report=report, note=note)
        page = self.out / PAGE
        base = f"--model {self.model} " if self.model else ""
        use = f"{base}--adapter {adapter}" if self.settings.learner.lora_rank else f"--model {adapter}"
        verb = "eval own --data OTHER.jsonl" if self.agent == "answer" else "remember OTHER.jsonl --manager llm"
        said = f"trained: {adapter}\nreport: {page}\nuse it: memory-r1 {verb} {use}"
        return {"adapter": str(adapter), "report": str(page)}, said

    def _estimated(self, policy: LocalPolicy, dataset: Dataset, others: Others) -> tuple[Mapping[str, object], str]:
        """Say what training would take, for machines and for people."""
        from memory_r1.rl import train

        run = train.estimate_answer_agent if self.agent == "answer" else train.estimate_memory_manager
        found = run(policy, dataset, self.settings, others=others)
        return asdict(found), "\n".join(_lines(found))

    def _others(self, policy: LocalPolicy) -> Others:
        from memory_r1.memory.card import manager_of

        answerer = self._frozen(policy, self.answerer) if self.agent == "manager" else None
        manager = manager_of(self._frozen(policy, self.manager_adapter)) if self.manager_adapter else None
        return Others(self.start, manager, answerer, self._judge(), self._teacher())

    def _frozen(self, policy: LocalPolicy, adapter: Path | None) -> LocalPolicy:
        """The other agent: on the very weights under the trained adapter, where they are its own and memory counts."""
        from memory_r1.policy import LocalPolicy

        alone = LocalPolicy(self.model, adapter=adapter, device=policy.device, precision="auto")
        shares = not policy.embedded and self.settings.learner.lora_rank > 0 and alone.dtype == policy.dtype
        return policy.beside(adapter) if shares else alone

    def _judge(self) -> Judge | None:
        from memory_r1.bench.judge import Judge

        wanted = self.settings.reward == "judge"
        if wanted != (self.judge_model is not None) or (self.judge_base_url is not None and not wanted):
            raise InputError("--reward judge and --judge-model NAME need each other: give both, or neither")
        named = ModelFlags(self.judge_model, self.judge_base_url)
        return Judge(named.policy()) if wanted else None

    def _teacher(self) -> Policy | None:
        from memory_r1.policy import LocalPolicy

        named = ModelFlags(self.teacher_model, self.teacher_base_url, self.teacher_adapter)
        if named == ModelFlags():
            return None
        if self.teacher_base_url and not self.teacher_model:
            raise InputError(f"the teacher's endpoint {self.teacher_base_url} needs --teacher-model NAME")
        if not self.settings.from_rollouts:
            raise InputError("--teacher-adapter, --teacher-model and --teacher-base-url need --from-rollouts")
        return named.policy() if self.teacher_model else LocalPolicy(self.model, adapter=self.teacher_adapter)


def reporter(step: Step) -> Report:
    """What the training loop calls after each iteration, shown as a step of the progress."""
    return lambda algorithm, done, total, metrics: step(done, total, _remark(algorithm, metrics))


def _lines(found: Estimate) -> Iterator[str]:
    """An estimate for people."""
    prompt = found.prompt
    yield f"episodes     {found.episodes} to train on, {found.val} in val, {found.demonstrations} demonstrations"
    yield f"prompts      {prompt.median} tokens (median), {prompt.p95} (95th percentile), {prompt.longest} (longest)"
    if found.unfit:
        yield f"             {found.unfit} do not fit the model's context with their reply: retrieve fewer entries"
    yield f"replies      {found.reply} tokens, reckoned with"
    for name, iterations in found.iterations.items():
        yield f"{name:<12} {iterations} iterations, about {found.minutes[name]:.1f} minutes"
    yield f"memory       about {found.memory_gb:.1f} GB at the peak"
    yield from (f"note: {remark}" for remark in found.remarks)
    yield "nothing was trained or written; the same command without --dry-run begins"


def _remark(algorithm: str, metrics: Mapping[str, float]) -> str:
    """The metrics worth a line: what the loop reports, shortened."""
    shown = {
        name: f"{metrics[name]:.3f}"
        for name in ("loss", "reward", "kl", "frac_no_signal", "val/reward")
        if name in metrics
    }
    return f"[{algorithm}] " + " ".join(f"{name} {value}" for name, value in shown.items())
