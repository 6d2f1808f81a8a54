"""The parts of a policy-gradient loss and of a critic's loss, each per token. Pure functions.

A batch's loss is the sum over its tokens of `token_weights` times these parts. The weights hold the denominators of
the whole batch, so the gradient does not depend on how the batch is cut into forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Aggregation = Literal["sequence", "token", "constant"]
RatioLevel = Literal["token", "sequence"]
KLEstimator = Literal["k2", "k3", "k3_ratio"]


def policy_ratio(logprobs: Tensor, old_logprobs: Tensor, level: RatioLevel = "token") -> Tensor:
    """How much more probable each token of one completion has become since it was sampled.

    token     rho_t = pi(token t) / pi_old(token t), as in PPO and GRPO
    sequence  s = (pi(completion) / pi_old(completion)) ** (1 / T), the geometric mean of the rho_t, in every token's
              place; the place of token t has the gradient s * grad log pi(token t). With one advantage for the whole
              completion and the aggregation `sequence`, value and gradient of the loss are GSPO's (arXiv 2507.18071,
              equations 5 to 7); with token advantages they are GSPO-token's (equations 13 and 14). s moves far less
              than a rho_t: the paper clips it at 3e-4 below and 4e-4 above.

    Args:
        logprobs: (T,) of the policy being trained, with gradient.
        old_logprobs: (T,) of the policy that sampled, without gradient.

    Returns:
        (T,), 1 everywhere before the first step.
    """
    if level == "token":
        return (logprobs - old_logprobs).exp()
    mean = (logprobs - old_logprobs).detach().mean()
    return (mean + logprobs - logprobs.detach()).exp()


def importance_weight(old_logprobs: Tensor, sampled_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi_old / mu, cap) of every token: what a token drawn by mu counts in an expectation over pi_old.

    mu is the policy as the sampler computed it. Another engine or precision gives the same weights somewhat different
    log-probabilities, and training as if there were no difference is biased (arXiv 2510.26788); the cap bounds the
    variance that the correction brings (truncated importance sampling). It weighs each token's place, as the token's
    advantage does, whatever the level of the ratio.

    Args:
        old_logprobs: (T,) of the policy that sampled, as the learner computes it.
        sampled_logprobs: (T,) of the same tokens, as the sampler did.
        cap: largest weight, above 0.

    Returns:
        (T,) without gradient; exactly 1 where both agree, unless the cap is below.
    """
    return (old_logprobs - sampled_logprobs).exp().clamp(max=cap).detach()


def clipped_policy_loss(
    ratio: Tensor, advantages: Tensor, *, clip_range_low: float, clip_range_high: float, dual_clip: float = 0.0
) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) of every token.

    Args:
        ratio: (T,) rho, with gradient.
        advantages: (T,) A, without gradient.
        clip_range_low: how far a ratio may fall below 1; what is bad is pushed down no further.
        clip_range_high: how far it may rise above 1; larger than the lower bound lets rare good tokens grow (DAPO).
        dual_clip: c, at least 1 + clip_range_high; where A < 0 the loss is at most -c A, so that a token whose ratio
            ran away counts no more than c times. 0 sets no such bound.

    Returns:
        (T,); its gradient is that of -A log pi where the ratio is 1, and zero where a clip binds.

    Source: PPO, arXiv 1707.06347, equation 7; DAPO, arXiv 2503.14476, equation 10; dual clip, arXiv 1912.09729,
    equation 5.
    """
    import torch

    clipped = ratio.clamp(1 - clip_range_low, 1 + clip_range_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip:
        loss = torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)
    return loss


def kl_term(estimator: KLEstimator, logprobs: Tensor, ref_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The KL to the reference as it stands in the loss, per token: (T,).

    Tokens are drawn from the policy; the gradient that follows from a term is not always the KL's own. As losses, at
    the states that were visited (tests/test_kl.py enumerates all of it on five tokens):

    k2        half the square of k1: the exact gradient of KL(policy || reference); the value is biased
    k3        the exact value, never negative; the gradient is that of KL(reference || policy) instead. GRPO's paper
              prints it and Memory-R1's trainer uses it
    k3_ratio  k3 times the ratio pi / pi_old with its gradient: exact in value and in gradient, and it stays so when
              the tokens were drawn from an older policy

    k1, log pi - log ref, is not among them: its expected gradient as a loss is zero. It belongs in the reward
    (advantage.py, `token_rewards`), where it also credits what no term of the loss holds: that an early token decides
    which states are visited later.
    """
    if estimator == "k2":
        return kl_k2(logprobs, ref_logprobs)
    k3 = kl_k3(logprobs, ref_logprobs)
    return k3 if estimator == "k3" else k3 * policy_ratio(logprobs, old_logprobs)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log pi - log ref of every token: (T,), of either sign, unbiased for KL(policy || reference). Of no use as a loss.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(log pi - log ref)^2 / 2 of every token: (T,), never negative, of small variance, biased as a value.

    Source: http://joschu.net/blog/kl-approx.html.
    """
    return (logprobs - ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = log ref - log pi, of every token: (T,), never negative, 0 where both agree.

    As a value it is an unbiased estimate of KL(policy || reference) under the policy.

    Source: DeepSeekMath, arXiv 2402.03300, equation 4; http://joschu.net/blog/kl-approx.html.
    """
    difference = ref_logprobs - logprobs
    return difference.exp() - difference - 1


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: float) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2 of every token.

    Args:
        values: (T,) of the critic being trained, with gradient.
        old_values: (T,) of the critic before this iteration, without gradient.
        returns: (T,) R, without gradient.
        value_clip: c, in units of the reward; a value that has moved towards its return by more has no gradient.
            0 leaves the squared error alone.

    Returns:
        (T,), never negative.

    Source: Memory-R1's trainer and PPO's first implementation; CleanRL, ppo.py.
    """
    import torch

    errors = (values - returns).square()
    if value_clip:
        clipped = torch.clamp(values, old_values - value_clip, old_values + value_clip)
        errors = torch.maximum(errors, (clipped - returns).square())
    return errors / 2


def token_weights(lengths: Sequence[int], aggregation: Aggregation, max_tokens: int) -> list[float]:
    """The weight of each token of each completion of a batch.

    sequence  mean over the completions of the mean over their tokens (GRPO as printed): 1 / (B T_i)
    token     mean over all tokens of the batch (DAPO): 1 / sum T
    constant  sum over tokens by a fixed length (Dr. GRPO, arXiv 2503.20783): 1 / (B max_tokens)

    Args:
        lengths: T_i of the B completions of the whole batch, none 0.
        max_tokens: the longest completion sampling allows.

    Returns:
        B weights.
    """
    count, total = len(lengths), sum(lengths)
    if aggregation == "sequence":
        return [1 / (count * length) for length in lengths]
    return [1 / total if aggregation == "token" else 1 / (count * max_tokens) for _ in lengths]
