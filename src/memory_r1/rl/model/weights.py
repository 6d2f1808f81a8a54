"""What the policy and the critic share as learners: an optimizer, a step, and a state to resume from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from memory_r1.errors import TrainingError
from memory_r1.rl.model.parallel import World

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def new_optimizer(weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """AdamW without decay; each step brings its own learning rate."""
    import torch

    return torch.optim.AdamW(list(weights), lr=0.0, weight_decay=0.0)


def take_step(optimizer: torch.optim.Optimizer, lr: float, max_grad_norm: float, world: World) -> float:
    """Clip the gradients gathered in all processes, take one step, forget them; returns their norm before the clip."""
    import torch

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    world.sum_gradients(weights)
    norm = float(torch.nn.utils.clip_grad_norm_(weights, max_grad_norm))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def state_of(weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of the weights and of the optimizer's moments, which no later step changes."""
    named = {name: weight.detach().clone() for name, weight in weights.items()}
    return {"weights": named, "optimizer": copy.deepcopy(optimizer.state_dict())}


def take_up(state: Mapping[str, Any], weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Set weights and optimizer to what `state_of` kept; call `check_shapes` first."""
    for name, weight in state["weights"].items():
        weights[name].data.copy_(weight)
    optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # it would keep the very tensors


def check_shapes(state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Raise TrainingError unless the state holds these very weights."""
    if _shapes(weights) != _shapes(state["weights"]):
        raise TrainingError("the checkpoint has other weights than this run: resume with the run's own settings")


def fingerprint(weights: Iterable[Tensor]) -> str:
    """A hash of these weights, to the last bit."""
    import torch

    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
