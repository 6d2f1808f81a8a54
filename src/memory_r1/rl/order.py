"""Which episodes an iteration takes, and how large its step is: functions of seed and iteration alone.

Nothing here remembers anything, so a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def iteration_batch(items: Sequence[Item], size: int, iteration: int, seed: int) -> list[Item]:
    """The items of one iteration: passes over all of them, each pass in its own shuffled order."""
    batch = []
    for position in range(iteration * size, (iteration + 1) * size):
        epoch, place = divmod(position, len(items))
        order = list(range(len(items)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        batch.append(items[order[place]])
    return batch


def warmed_up(lr: float, iteration: int, warmup: int) -> float:
    """The learning rate of an iteration: linear over the first `warmup`, constant after."""
    return lr * min(1.0, (iteration + 1) / max(1, warmup))


def decayed(lr: float, iteration: int, warmup: int, iterations: int) -> float:
    """Linear warm-up, then linear decay towards 0, never under a twentieth."""
    return warmed_up(lr, iteration, warmup) * max(0.05, 1 - iteration / max(1, iterations))


def sampling_seed(seed: int, iteration: int, rank: int = 0) -> int:
    """The sampler's seed of an iteration, another one in each of several processes."""
    return random.Random(f"{seed}:{iteration}:{rank}" if rank else f"{seed}:{iteration}").randrange(2**31)
