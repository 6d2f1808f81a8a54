"""The critic: what a completion is expected to earn, before each of its tokens.

A value is a linear head on the last hidden state from which a token is predicted. The hidden states come from weights
of the critic's own: an adapter on the policy's base, or, where every weight is trained, a copy of the model. Prompt and
completions go through them as they go through the policy, the prompt once (packed.py). Left out: the choice of those
weights, which is the learner's, and the learning itself (ppo.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from memory_r1.rl.model.parallel import World
from memory_r1.rl.model.weights import check_shapes, new_optimizer, state_of, take_step, take_up

if TYPE_CHECKING:
    from torch import Tensor

States = Callable[[Sequence[int], Sequence[Sequence[int]]], "Tensor"]  # prompt, completions -> (sum of T_i, H)


class Critic:
    """Values, and the weights and optimizer behind them. Made by `Learner.add_critic`.

    Args:
        states: hidden states under the critic's weights, with gradient.
        active: within it the critic's weights are the ones in use.
        weights: the critic's weights by name, without the head.
        width: H, the size of a hidden state.
        max_grad_norm: longest gradient, by its norm over all weights.
        world: the processes that train it.
    """

    def __init__(
        self,
        states: States,
        active: Callable[[], AbstractContextManager[Any]],
        weights: Mapping[str, Tensor],
        *,
        width: int,
        max_grad_norm: float,
        world: World,
    ) -> None:
        import torch

        self._states = states
        self._active = active
        self._max_grad_norm = max_grad_norm
        self.world = world
        device = next(iter(weights.values())).device
        self.head = torch.nn.Linear(width, 1, device=device, dtype=torch.float32)
        torch.nn.init.zeros_(self.head.weight)  # nothing is expected before anything was learned
        torch.nn.init.zeros_(self.head.bias)
        self._weights = {**weights, **{f"head.{name}": weight for name, weight in self.head.named_parameters()}}
        self.optimizer = new_optimizer(self._weights.values())

    def values(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Tensor]:
        """What is expected before each token of each completion is written, with gradient.

        Returns:
            G float32 tensors; tensor i has shape (T_i,), its entry t the value of the prompt and the first t tokens of
            completion i. To value a completion's end as well, append any token to it.
        """
        import torch

        values = self.head(self._states(prompt, completions).float()).squeeze(-1)
        return list(torch.split(values, [len(completion) for completion in completions]))

    def begin_at(self, value: float) -> None:
        """Expect this wherever nothing else was learned."""
        self.head.bias.data.fill_(value)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss on values; what is computed anew on the way must meet the critic's weights."""
        with self._active():
            loss.backward()  # type: ignore[no-untyped-call]

    def step(self, lr: float) -> float:
        """Take one optimizer step on the gathered gradients; returns their norm before the clip."""
        return take_step(self.optimizer, lr, self._max_grad_norm, self.world)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs: weights, head, optimizer."""
        return state_of(self._weights, self.optimizer)

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise TrainingError unless `load_state` can take this state up."""
        check_shapes(state, self._weights)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up a state written by `state`; raises TrainingError when it is of other weights."""
        self.check(state)
        take_up(state, self._weights, self.optimizer)
