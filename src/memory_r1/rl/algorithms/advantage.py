"""Credit: from rewards to advantages. Pure functions, in float64.

GRPO compares the rollouts of a group with each other (`group_advantages`); PPO compares each token with what a critic
expected (`gae`) and brings a batch to one scale (`whiten`). One completion is one tensor of its own length: there is
no padding here, and nothing to mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Scaling = Literal["none", "group", "batch"]

DEVIATION_FLOOR = 1e-3  # F1-like rewards that differ by rounding alone must not be blown up to full size


def group_advantages(rewards: Tensor, groups: Tensor, *, scale: Scaling = "group", eps: float = 1e-4) -> Tensor:
    """Credit each rollout against the other rollouts of its own group.

    An episode of several completions has one reward and is one rollout here: credit it first, then give all its
    completions the same advantage. Groups may differ in size.

    Args:
        rewards: (B,) float, one per rollout.
        groups: (B,) whole numbers; rollouts of equal number are compared. Their order does not matter.
        scale: what the centred rewards are divided by: "none" (Dr. GRPO, arXiv 2503.20783), the deviation of the
            "group", or of the whole "batch" (arXiv 2508.08221). Sample deviations, N - 1 in the denominator.
        eps: added to the deviation (TRL has 1e-4, verl 1e-6).

    Returns:
        (B,) float64; every group sums to zero. A group whose deviation is under DEVIATION_FLOOR, and a group of one,
        is credited exactly zero, whatever the scale.

    Raises:
        ValueError: rewards and groups are not two vectors of the same length.

    Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    """
    import torch

    if rewards.dim() != 1 or rewards.shape != groups.shape:
        raise ValueError(f"rewards and groups have shapes {tuple(rewards.shape)}, {tuple(groups.shape)}, expected (B,)")
    _, place, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    none = torch.zeros(len(sizes), dtype=torch.float64, device=rewards.device)
    means = none.index_add(0, place, rewards.double()) / sizes
    centred = rewards.double() - means[place]
    squares = none.index_add(0, place, centred.square())
    deviations = (squares / (sizes - 1).clamp(min=1)).sqrt()[place]  # (B,)
    if scale == "none":
        credited = centred
    else:
        credited = centred / ((deviations if scale == "group" else _deviation(rewards.double())) + eps)
    return torch.where(deviations < DEVIATION_FLOOR, 0.0, credited)


def token_rewards(reward: float, length: int, kl: Tensor | None = None, kl_coef: float = 0.0) -> Tensor:
    """The reward of each token of a completion: all of the outcome on its last, less what each strayed.

    Args:
        reward: of the completion.
        length: T.
        kl: (T,) the k1 estimate (loss.py) of each token, for a KL in the reward; taken without its gradient.
        kl_coef: its weight.

    Returns:
        (T,) float64.

    Source: arXiv 2203.02155 (InstructGPT), equation 2.
    """
    import torch

    rewards = torch.zeros(length, dtype=torch.float64)
    if kl is not None:
        rewards -= kl_coef * kl.detach().double().cpu()
    rewards[-1] += reward
    return rewards


def gae(rewards: Tensor, values: Tensor, *, gamma: float, gae_lambda: float, end_value: float = 0.0) -> Tensor:
    """How much better each token of one completion turned out than the critic expected.

    A_t = sum over l of (gamma lambda)^l delta_{t+l},  delta_t = r_t + gamma V_{t+1} - V_t. With gamma and lambda 1 it
    is what is still earned less V_t. A_t + V_t is the return that a critic learns.

    Args:
        rewards: (T,) r_t, earned by writing token t.
        values: (T,) V_t, expected before token t is written.
        end_value: V after the last token: 0 where the completion ended; what was cut off may be worth more.

    Returns:
        (T,) float64, on the CPU.

    Source: arXiv 1506.02438, equations 11 to 16.
    """
    import torch

    rewards, values = rewards.detach().double().cpu(), values.detach().double().cpu()
    following = torch.cat([values[1:], torch.tensor([end_value], dtype=torch.float64)])
    advantages = torch.zeros_like(rewards)
    running = torch.zeros((), dtype=torch.float64)
    for t in range(len(rewards) - 1, -1, -1):
        running = rewards[t] + gamma * following[t] - values[t] + gamma * gae_lambda * running
        advantages[t] = running
    return advantages


def whiten(advantages: Sequence[Tensor]) -> list[Tensor]:
    """Shift and scale the advantages of all tokens of a batch to mean 0 and sample deviation 1.

    Args:
        advantages: a tensor (T_i,) per completion of the whole batch, before it is cut into minibatches.

    Returns:
        Tensors of the same shapes, float64; all zero where the deviation is under DEVIATION_FLOOR.
    """
    import torch

    every = torch.cat(list(advantages)).double()
    mean, deviation = every.mean(), _deviation(every)
    scale = 1 / deviation if deviation >= DEVIATION_FLOOR else 0.0
    return [(one.double() - mean) * scale for one in advantages]


def explained_variance(values: Sequence[Tensor], returns: Sequence[Tensor]) -> float:
    """1 - Var(R - V) / Var(R) over all tokens of a batch: 1 for a critic that knew, 0 for one that knew the mean alone.

    Returns:
        At most 1, and below 0 for values that mislead; 0 where the returns do not vary.
    """
    import torch

    if not returns:
        return 0.0
    wanted, known = torch.cat(list(returns)).double(), torch.cat(list(values)).double()
    spread = float(_deviation(wanted)) ** 2
    return 1 - float(_deviation(wanted - known)) ** 2 / spread if spread > 0 else 0.0


def _deviation(numbers: Tensor) -> Tensor:
    return ((numbers - numbers.mean()).square().sum() / max(1, len(numbers) - 1)).sqrt()
