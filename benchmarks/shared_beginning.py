"""Time one optimizer step with and without sharing what its prompts begin with, in turn, in one process.

Usage: python benchmarks/shared_beginning.py [--steps 3] [--threads 1]

The prompts are those of the embedded model's two agents over an invented dialogue: 8 lessons of the memory manager, and
8 questions of the answer agent with their demonstrations, one step of supervised learning each, LoRA, bfloat16 weights.
Prints the median seconds of both ways, and how far their gradients' norms are apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

from memory_r1.bench.run import remember_all
from memory_r1.lives import invent
from memory_r1.memory import TurnExtractor
from memory_r1.memory.answer import SMALL
from memory_r1.policy import LocalPolicy
from memory_r1.rl.algorithms.sft import SFT, SFTSettings
from memory_r1.rl.model import packed
from memory_r1.rl.model.learner import Learner, LearnerSettings
from memory_r1.rl.tasks.answer_episodes import answer_episodes
from memory_r1.rl.tasks.lessons import lessons
from memory_r1.rl.tasks.reward import each, em
from memory_r1.rl.types import Demonstration

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()

    import torch

    torch.set_num_threads(flags.threads)
    learner = Learner(LocalPolicy(precision="bfloat16"), LearnerSettings(lora_rank=8, lora_alpha=16))
    print("| prompts of | tokens (median) | shared | each alone, s | shared, s | ratio | norms differ by |")
    print("|---|---|---|---|---|---|---|")
    for agent, shown in demonstrations().items():
        _measure(agent, shown, learner, flags.steps)


def demonstrations() -> dict[str, list[Demonstration]]:
    """Enough of each agent's for one batch."""
    made = invent(0)
    dialogue = made.dialogues[0]
    banks = remember_all([dialogue], lambda _: TurnExtractor())
    asked = [question for question in made.questions if question.dialogue_id == dialogue.id]
    episodes = [one for one in answer_episodes(banks[dialogue.id], asked, SMALL, each(em), 0.0) if one.answerable]
    return {
        "memory manager": list(lessons(dialogue, TurnExtractor(), own_words=True).demonstrations[-BATCH:]),
        "answer agent": [one.demonstration(None) for one in episodes[:BATCH]],
    }


def _measure(agent: str, shown: Sequence[Demonstration], learner: Learner, steps: int) -> None:
    prompts = [learner.encode(one.prompt) for one in shown]
    algorithm = SFT(shown, SFTSettings(batch=BATCH, lr=0.0))
    worth = packed.WORTH
    seconds: dict[bool, list[float]] = {True: [], False: []}
    norms: dict[bool, float] = {}
    for _ in range(steps + 1):  # the first of each way warms up
        for shares in (False, True):
            packed.WORTH = worth if shares else 10**9
            start = time.perf_counter()
            norms[shares] = algorithm.iterate(learner, 1)["grad_norm"]
            seconds[shares].append(time.perf_counter() - start)
    packed.WORTH = worth
    alone, shared = (statistics.median(seconds[shares][1:]) for shares in (False, True))
    tokens = statistics.median(len(prompt) for prompt in prompts)
    print(
        f"| {agent} | {tokens:.0f} | {len(packed.common_beginning(prompts))} | {alone:.1f} | {shared:.1f} "
        f"| {alone / shared:.2f} | {abs(norms[True] / norms[False] - 1):.1%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
