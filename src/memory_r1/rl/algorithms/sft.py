"""Supervised warm start: imitate demonstrations for a few passes, before RL has anything to reward.

The loss is the mean negative log-probability of each reply's tokens, its end token included, averaged over the
demonstrations of a batch. What the prompts of a batch begin with is computed once. Left out: packing the rest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memory_r1.errors import InputError
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.order import decayed, iteration_batch
from memory_r1.rl.types import Demonstration


@dataclass(frozen=True)
class SFTSettings:
    """The numbers of a warm start.

    epochs    passes over the demonstrations; 0 does without a warm start
    shuffles  copies of each demonstration with its entries in random order, beside the one in retrieval's order
    batch     demonstrations a step takes
    lr        learning rate, reached linearly over `warmup` steps, decaying linearly after
    """

    epochs: float = 2.0
    shuffles: int = 1
    batch: int = 8
    lr: float = 5e-4
    warmup: int = 3

    def __post_init__(self) -> None:
        if self.batch < 1 or self.shuffles < 0 or self.epochs < 0:
            got = f"batch {self.batch}, shuffles {self.shuffles}, epochs {self.epochs}"
            raise InputError(f"the warm start has {got}, expected at least 1, 0 and 0")


@dataclass(frozen=True)
class SFT:
    """The algorithm over fixed demonstrations; see GRPO for the calls."""

    demonstrations: Sequence[Demonstration]
    settings: SFTSettings
    seed: int = 0
    name: str = "sft"

    @property
    def iterations(self) -> int:
        """How many times `iterate` is called."""
        return max(1, round(self.settings.epochs * len(self.demonstrations) / self.settings.batch))

    def prepare(self, learner: Learner) -> None:
        """Imitation needs nothing beside the policy."""

    def iterate(self, learner: Learner, iteration: int) -> dict[str, float]:
        """One optimizer step over one batch; returns its metrics."""
        settings = self.settings
        batch = iteration_batch(self.demonstrations, settings.batch, iteration, self.seed)
        policy = learner.policy
        encoded = [(policy.encode(one.prompt), policy.encode_reply(one.reply)) for one in batch]
        with learner.sharing([prompt for prompt, _ in encoded]):
            losses = learner.world.map(lambda one: _imitate(learner, *one, len(batch)), encoded)
        lr = decayed(settings.lr, iteration, settings.warmup, self.iterations)
        return {"loss": sum(losses), "grad_norm": learner.step(lr), "lr": lr}


def _imitate(learner: Learner, prompt: Sequence[int], reply: Sequence[int], batch: int) -> float:
    """Forward and backward over a demonstration; returns its part in the loss of a batch of so many."""
    loss = -learner.logprobs(prompt, [reply])[0].mean() / batch
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())
