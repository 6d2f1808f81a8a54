"""Credit: from rewards to advantages. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DEVIATION_FLOOR = 1e-3  # F1-like rewards that differ by rounding alone must not be blown up to full size


def group_advantages(rewards: Tensor, *, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """Credit each rollout against the other rollouts of its own prompt.

    Args:
        rewards: (P, G) float; row p holds the rewards of the G rollouts of prompt p.
        scale: divide by the row's sample standard deviation (G - 1 in the denominator); False only centres, as in
            Dr. GRPO (arXiv 2503.20783).
        eps: added to the deviation.

    Returns:
        (P, G) float64; every row sums to zero. A row whose deviation is under DEVIATION_FLOOR, and a group of one,
        is credited exactly zero.

    Raises:
        ValueError: rewards has not two dimensions.

    Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    """
    import torch

    if rewards.dim() != 2:
        raise ValueError(f"rewards has shape {tuple(rewards.shape)}, expected (P, G)")
    centred = rewards.double() - rewards.double().mean(dim=1, keepdim=True)
    if rewards.shape[1] == 1:
        return torch.zeros_like(centred)
    deviation = centred.square().sum(dim=1, keepdim=True).div(rewards.shape[1] - 1).sqrt()
    credited = centred / (deviation + eps) if scale else centred
    return torch.where(deviation < DEVIATION_FLOOR, 0.0, credited)
