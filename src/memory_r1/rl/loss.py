"""The parts of a policy-gradient loss, each per token. Pure functions.

A batch's loss is the sum over its tokens of `token_weights` times these parts. The weights hold the denominators of
the whole batch, so the gradient does not depend on how the batch is cut into forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Aggregation = Literal["sequence", "token", "constant"]


def clipped_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantage: float, clip_range: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) of every token of one completion.

    Args:
        logprobs: (T,) of the policy being trained, with gradient.
        old_logprobs: (T,) of the policy that sampled, without gradient.
        advantage: of the completion, the same for all its tokens.
        clip_range: eps.

    Returns:
        (T,); its gradient is that of -A log pi where the ratio is 1, and zero where the clip binds.

    Source: PPO, arXiv 1707.06347, equation 7.
    """
    import torch

    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref - policy, of every token: (T,), never negative, 0 where both agree.

    As a value it is an unbiased estimate of KL(policy || reference) under the policy; as a loss its gradient is not
    exactly the KL's (that is k2's). It is what GRPO's paper prints and what Memory-R1's trainer uses.

    Source: DeepSeekMath, arXiv 2402.03300, equation 4; http://joschu.net/blog/kl-approx.html.
    """
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1


def token_weights(lengths: Sequence[int], aggregation: Aggregation, max_tokens: int) -> list[float]:
    """The weight of each token of each completion of a batch.

    sequence  mean over the completions of the mean over their tokens (GRPO as printed): 1 / (B T_i)
    token     mean over all tokens of the batch (DAPO): 1 / sum T
    constant  sum over tokens by a fixed length (Dr. GRPO): 1 / (B max_tokens)

    Args:
        lengths: T_i of the B completions of the whole batch, none 0.
        max_tokens: the longest completion sampling allows.

    Returns:
        B weights.
    """
    count = len(lengths)
    if aggregation == "sequence":
        return [1 / (count * length) for length in lengths]
    if aggregation == "token":
        return [1 / sum(lengths)] * count
    return [1 / (count * max_tokens)] * count
