"""memory-r1 train: train an agent by reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from memory_r1.cli.show import Step, note, print_json, progress
from memory_r1.errors import InputError
from memory_r1.rl.loop import Report
from memory_r1.rl.train import TrainSettings

if TYPE_CHECKING:
    from memory_r1.bench.dataset import Dataset
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
    answerer: Path | None = None
    """memory manager: the frozen answer agent's adapter, on the same base model; default: the base model alone"""
    dry_run: bool = False
    """train nothing and write nothing: say how many episodes and tokens, and about how many minutes and GB it takes"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        """0; prints where the adapter lies and how to use it."""
        from memory_r1.bench.dataset import load_dataset
        from memory_r1.rl.report import PAGE

        if self.agent == "answer" and self.answerer is not None:
            raise InputError("--answerer is for training the memory manager: leave it out")
        dataset = load_dataset(self.data)
        if self.dry_run:
            return self._estimated(dataset)
        with progress("training") as step:
            adapter = self._trained(dataset, reporter(step))
        page = self.out / PAGE
        if self.json:
            print_json({"adapter": str(adapter), "report": str(page)})
            return 0
        base = f"--model {self.model} " if self.model else ""
        use = f"{base}--adapter {adapter}" if self.settings.learner.lora_rank else f"--model {adapter}"
        verb = "eval own --data OTHER.jsonl" if self.agent == "answer" else "remember OTHER.jsonl --manager llm"
        print(f"trained: {adapter}\nreport: {page}\nuse it: memory-r1 {verb} {use}")
        return 0

    def _estimated(self, dataset: Dataset) -> int:
        from memory_r1.policy import LocalPolicy
        from memory_r1.rl.train import estimate_answer_agent, estimate_memory_manager

        policy = LocalPolicy(self.model)
        if self.agent == "answer":
            found = estimate_answer_agent(policy, dataset, self.settings)
        else:
            answerer = LocalPolicy(self.model, adapter=self.answerer)
            found = estimate_memory_manager(policy, dataset, self.settings, answerer=answerer)
        print_json(asdict(found)) if self.json else print("\n".join(_lines(found)))
        return 0

    def _trained(self, dataset: Dataset, report: Report) -> Path:
        from memory_r1.policy import LocalPolicy
        from memory_r1.rl.train import train_answer_agent, train_memory_manager

        policy = LocalPolicy(self.model)
        if self.agent == "answer":
            return train_answer_agent(policy, dataset, self.settings, self.out, report=report, note=note)
        answerer = LocalPolicy(self.model, adapter=self.answerer)
        return train_memory_manager(
            policy, dataset, self.settings, self.out, answerer=answerer, report=report, note=note
        )


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
