"""The shared-prefix packed update against one sequence per completion: same numbers, and how much cheaper.

Usage: python benchmarks/packed_update.py [--prompt 500 700 1500] [--group 8] [--completion 24] [--runs 3]

For each prompt length: the largest difference of log-probabilities and the cosine of the gradients (float32), then the
median seconds of forward + backward of one group, both ways, in one process on the same threads, full fine-tuning of
the embedded model. Cost grows with prompt + G * completion (packed) and with G * (prompt + completion) (plain).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from memory_r1.policy import LocalPolicy
from memory_r1.rl.model.packed import packed_logprobs, plain_logprobs

Score = Callable[[Any, Sequence[int], Sequence[Sequence[int]]], list[torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, nargs="+", default=[500, 700, 1500])
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--completion", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    flags = parser.parse_args()
    torch.set_num_threads(2)
    model = LocalPolicy().model
    print(f"group {flags.group}, completion {flags.completion}, {torch.get_num_threads()} threads")
    print(f"{'prompt':>7} {'max |dlogprob|':>15} {'grad cosine':>12} {'plain s':>8} {'packed s':>9} {'ratio':>6}")
    for length in flags.prompt:
        prompt, completions = _random_group(length, flags.group, flags.completion)
        difference, cosine = _compare(model, prompt, completions)
        plain, packed = _times(model, prompt, completions, flags.runs)
        print(f"{length:7d} {difference:15.2e} {cosine:12.8f} {plain:8.2f} {packed:9.2f} {plain / packed:6.1f}")


def _random_group(length: int, group: int, completion: int) -> tuple[list[int], list[list[int]]]:
    torch.manual_seed(0)
    completions = [torch.randint(3, 40_000, (completion - i % 5,)).tolist() for i in range(group)]
    return torch.randint(3, 40_000, (length,)).tolist(), completions


def _step(model: Any, score: Score, prompt: list[int], completions: list[list[int]]) -> torch.Tensor:
    """Forward and backward of one group; the log-probabilities, gradients left in the model."""
    model.zero_grad(set_to_none=True)
    logprobs = torch.cat(score(model, prompt, completions))
    torch.autograd.backward(-logprobs.mean())
    return logprobs.detach()


def _compare(model: Any, prompt: list[int], completions: list[list[int]]) -> tuple[float, float]:
    logprobs, gradients = [], []
    for score in (plain_logprobs, packed_logprobs):
        logprobs.append(_step(model, score, prompt, completions))
        gradients.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]).double())
    difference = (logprobs[0] - logprobs[1]).abs().max().item()
    return difference, torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0).item()


def _times(model: Any, prompt: list[int], completions: list[list[int]], runs: int) -> tuple[float, float]:
    """Median seconds (plain, packed), the two taken in turn."""
    seconds: dict[Score, list[float]] = {plain_logprobs: [], packed_logprobs: []}
    for _ in range(runs):
        for score, taken in seconds.items():
            began = time.perf_counter()
            _step(model, score, prompt, completions)
            taken.append(time.perf_counter() - began)
    return statistics.median(seconds[plain_logprobs]), statistics.median(seconds[packed_logprobs])


if __name__ == "__main__":
    main()
