"""What a run depends on: its settings, and the models beside the one it trains. Left out: the run itself (train.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memory_r1.bench.dataset import Extraction
from memory_r1.bench.judge import Judge
from memory_r1.errors import InputError
from memory_r1.memory.answer import SMALL, AnswerSettings
from memory_r1.memory.manage import LLMManager, ManagerSettings
from memory_r1.policy.base import Policy
from memory_r1.policy.vllm import VLLMSettings, served_rank
from memory_r1.rl.algorithms.grpo import GRPOSettings
from memory_r1.rl.algorithms.ppo import PPOSettings
from memory_r1.rl.algorithms.sft import SFTSettings
from memory_r1.rl.model.learner import LearnerSettings
from memory_r1.rl.run.loop import LoopSettings
from memory_r1.rl.tasks.lessons import LessonSettings
from memory_r1.rl.tasks.manager_episodes import OutcomeSettings
from memory_r1.rl.tasks.reward import RewardName
from memory_r1.rl.trajectories import RejectionSettings


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
    lessons: LessonSettings = field(default_factory=LessonSettings)
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


@dataclass(frozen=True)
class Others:
    """The models beside the base that is trained; none of them changes.

    start     an adapter of the same agent that training goes on from; by default a new one is made
    manager   answer agent: makes the banks in place of what `TrainSettings.banks` says (Memory-R1, Algorithm 2)
    answerer  memory manager: the frozen answer agent's model; `TrainSettings.answer` does not count for it
    judge     for the reward of that name
    teacher   writes the rollouts that `from_rollouts` imitates; by default the trained model itself, as it begins
    """

    start: Path | None = None
    manager: LLMManager | None = None
    answerer: Policy | None = None
    judge: Judge | None = None
    teacher: Policy | None = None
