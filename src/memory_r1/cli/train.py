"""memory-r1 train: train an agent by reinforcement learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from memory_r1.cli.show import Step, print_json, progress
from memory_r1.rl.loop import Report
from memory_r1.rl.train import TrainSettings


@dataclass(frozen=True)
class Train:
    """Train an agent on a file of dialogues and questions.

    The answer agent gets a short supervised warm start, then GRPO; the result is a PEFT adapter. The same command
    goes on from where a stopped run left off.

    Example: memory-r1 train answer --data mine.jsonl --train all --val-fraction 0.2 --out runs/mine
    """

    agent: Annotated[Literal["answer"], tyro.conf.Positional]
    """which agent"""
    data: Path
    """own JSONL, or LoCoMo's locomo10.json"""
    out: Path
    """the run folder: config, metrics, checkpoints, curves.png, adapter/"""
    settings: Annotated[TrainSettings, tyro.conf.arg(name="")] = field(default_factory=TrainSettings)
    model: str | None = None
    """base model: a folder, .gguf file or hub id; default: the embedded small model"""
    json: bool = False
    """print the result as JSON"""

    def run(self) -> int:
        """0; prints where the adapter lies and how to use it."""
        from memory_r1.bench.dataset import load_dataset
        from memory_r1.policy import LocalPolicy
        from memory_r1.rl.curves import draw_curves
        from memory_r1.rl.train import train_answer_agent

        dataset = load_dataset(self.data)
        with progress("training") as step:
            adapter = train_answer_agent(
                LocalPolicy(self.model), dataset, self.settings, self.out, report=reporter(step)
            )
        curves = draw_curves(self.out)
        if self.json:
            print_json({"adapter": str(adapter), "curves": str(curves)})
            return 0
        base = f"--model {self.model} " if self.model else ""
        use = f"{base}--adapter {adapter}" if self.settings.learner.lora_rank else f"--model {adapter}"
        print(f"trained: {adapter}\ncurves: {curves}\nuse it: memory-r1 eval own --data OTHER.jsonl {use}")
        return 0


def reporter(step: Step) -> Report:
    """What the training loop calls after each iteration, shown as a step of the progress."""
    return lambda algorithm, done, total, metrics: step(done, total, _remark(algorithm, metrics))


def _remark(algorithm: str, metrics: Mapping[str, float]) -> str:
    """The metrics worth a line: what the loop reports, shortened."""
    shown = {
        name: f"{metrics[name]:.3f}"
        for name in ("loss", "reward", "kl", "frac_no_signal", "val/reward")
        if name in metrics
    }
    return f"[{algorithm}] " + " ".join(f"{name} {value}" for name, value in shown.items())
