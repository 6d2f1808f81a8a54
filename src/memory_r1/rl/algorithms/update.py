"""What GRPO and PPO share: how an iteration samples, and how the policy steps on what its tokens were credited.

    loss = sum over tokens of weight * ( -w min(rho A, clip(rho) A) + kl_coef * kl(policy, reference) )

The algorithms differ in where the advantages A come from (grpo.py, ppo.py). The weights hold the denominators of one
optimizer step, rho is the ratio to the policy as it was before the iteration's first step, w corrects for what another
engine sampled, else it is 1 (loss.py). Where an iteration takes one step an epoch, the old log-probabilities are the
trained policy's own on the first epoch, detached: rho is exactly 1, and no second forward is needed.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from memory_r1.errors import InputError
from memory_r1.policy.base import Completion, Sampling
from memory_r1.rl.algorithms.loss import (
    Aggregation,
    KLEstimator,
    RatioLevel,
    clipped_policy_loss,
    importance_weight,
    kl_k3,
    kl_term,
    policy_ratio,
    token_weights,
)
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.order import iteration_batch, sampling_seed
from memory_r1.rl.rollout import Sampler, Scorer, one_by_one, sample_rollouts
from memory_r1.rl.types import Episode, Group, Step

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, float]
Item = TypeVar("Item")
Score = Callable[[Sequence[int], Sequence[Sequence[int]], float], "list[Tensor]"]  # prompt, completions, temperature
Settings = TypeVar("Settings", bound="UpdateSettings")


@dataclass(frozen=True)
class UpdateSettings:
    """The numbers that GRPO and PPO have in common; defaults follow Memory-R1 and its trainer where they say.

    epochs_over_data  passes over the episodes; an iteration takes `prompts` of them
    prompts, group    P prompts an iteration and G rollouts of each
    update_epochs     passes of the policy over one iteration's rollouts
    minibatches       optimizer steps in one such pass; the prompts are dealt out to them at random
    micro_batch       rollouts of a prompt that go through the model at once; 0 takes all. Changes memory, not numbers
    lr, warmup        learning rate, reached linearly over the first `warmup` iterations, constant after
    clip_range_low, clip_range_high  how far a ratio counts below and above 1; DAPO has 0.2 and 0.28, GSPO 3e-4 and 4e-4
    dual_clip         bound on what a bad token counts however far its ratio ran away; customary 3, 0 for none
    ratio             of each token by itself, or of the whole sequence (GSPO); see loss.py
    kl_coef, kl       weight of the KL to the reference, and its estimator (loss.py); weight 0 does without a reference
    temperature       of sampling, and of every log-probability
    aggregation       what is averaged: sequence, token or constant (loss.py)
    truncated         a completion cut at the token limit is kept as it is, or masked: left out of the loss
    importance_cap    a token's policy loss is multiplied by how much more probable it was to the learner than to the
                      sampler, up to this (loss.py, `importance_weight`; the KL term is not, as in TRL); 0 does
                      without, None is 2 where another engine samples and 0 where the policy itself does
    max_staleness     optimizer steps that the policy may have taken since the rollouts were sampled
    """

    epochs_over_data: float = 1.0
    prompts: int = 8
    group: int = 8
    update_epochs: int = 1
    minibatches: int = 1
    micro_batch: int = 0
    lr: float = 1e-4
    warmup: int = 3
    clip_range_low: float = 0.2
    clip_range_high: float = 0.2
    dual_clip: float = 0.0
    ratio: RatioLevel = "token"
    kl_coef: float = 0.001
    kl: KLEstimator = "k3"
    temperature: float = 1.0
    aggregation: Aggregation = "sequence"
    truncated: Literal["keep", "mask"] = "keep"
    importance_cap: float | None = None
    max_staleness: int = 0

    def __post_init__(self) -> None:
        for name in ("prompts", "group", "update_epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("micro_batch", "kl_coef", "clip_range_high", "importance_cap", "max_staleness"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected 0 or above")
        if not 0 <= self.clip_range_low < 1:
            raise InputError(f"clip_range_low is {self.clip_range_low}, expected 0 to 1: a ratio is never negative")
        if self.dual_clip and self.dual_clip < 1 + self.clip_range_high:
            least = 1 + self.clip_range_high
            raise InputError(f"dual_clip is {self.dual_clip}, expected 0 (none) or at least {least}, such as 3")
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}, expected above 0: greedy rollouts are all the same")

    def iterations(self, episodes: int) -> int:
        """How many iterations make the passes over so many episodes."""
        return max(1, round(self.epochs_over_data * episodes / self.prompts))

    def teaches(self, group: CreditedGroup) -> bool:
        """Whether a group has something to learn from, or the reference to be held to."""
        return bool(group.rows) and (self.kl_coef > 0 or any(bool(row.advantages.any()) for row in group.rows))

    def trains_on(self, step: Step) -> bool:
        """Whether a decision has a place in the loss."""
        return self.truncated == "keep" or step.completion.finish != "length"


@dataclass(frozen=True)
class OnEpisodes(Generic[Settings]):
    """What GRPO and PPO are made of: an algorithm over fixed episodes; the loop (loop.py) calls `iterate`.

    score    what completions earn (rollout.py)
    sampler  who writes them; None is the learner itself
    """

    episodes: Sequence[Episode]
    settings: Settings
    max_tokens: int
    seed: int = 0
    score: Scorer = one_by_one
    sampler: Sampler | None = None

    @property
    def iterations(self) -> int:
        """How many times `iterate` is called."""
        return self.settings.iterations(len(self.episodes))

    def prepare(self, learner: Learner) -> None:
        """Freeze the reference, if the KL to it counts: it begins as the policy is now."""
        if self.settings.kl_coef:
            learner.freeze_reference()


def sample_iteration(learner: Learner, algorithm: OnEpisodes[Any], iteration: int) -> list[Group]:
    """The rollouts of an iteration; they depend on seed, iteration and the number of processes alone."""
    settings, seed, world = algorithm.settings, algorithm.seed, learner.world
    chosen = iteration_batch(algorithm.episodes, settings.prompts, iteration, seed)
    sampled = sample_rollouts(
        algorithm.sampler or learner,
        world.share(chosen),
        n=settings.group,
        sampling=Sampling(algorithm.max_tokens, settings.temperature, seed=sampling_seed(seed, iteration, world.rank)),
        score=algorithm.score,
    )
    drawn = world.gather([(one.prompt_tokens, one.rollouts, one.version) for one in sampled])  # episodes may hold banks
    return [Group(episode, *told) for episode, told in zip(chosen, drawn, strict=True)]


@dataclass(eq=False)
class Credited:
    """One completion with the advantage of each of its tokens, and what is known of its log-probabilities.

    Told apart by identity: two completions may be equal.

    tokens      T token ids
    sampled     (T,) log-probabilities as the sampler had them
    advantages  (T,) float32
    old, ref    (T,) under the policy before the iteration's first step, and under the reference; taken when needed

    All of it lies on the CPU, and is the same in all processes.
    """

    tokens: Sequence[int]
    sampled: Tensor
    advantages: Tensor
    old: Tensor | None = None
    ref: Tensor | None = None


@dataclass(frozen=True)
class CreditedGroup:
    """The completions of one prompt."""

    prompt: Sequence[int]
    rows: Sequence[Credited]


def credited(completion: Completion, advantages: Tensor | float) -> Credited:
    """A completion whose tokens are credited this: (T,), or the same for all of them."""
    import torch

    tokens = completion.tokens
    spread = torch.as_tensor(advantages).float().expand(len(tokens))
    return Credited(tokens, torch.tensor(completion.logprobs), spread)


def by_prompt(group: Group, rows: Iterable[tuple[Step, Credited]]) -> list[CreditedGroup]:
    """The rows of a group, those with equal prompts together: they share the prompt's computation.

    The first decisions of an episode always do; the group of its first prompt is there even without a row.
    """
    gathered: dict[tuple[int, ...], list[Credited]] = {group.prompt_tokens: []}
    for step, row in rows:
        gathered.setdefault(step.prompt_tokens, []).append(row)
    return [CreditedGroup(prompt, together) for prompt, together in gathered.items()]


def update_policy(
    learner: Learner,
    batch: Sequence[CreditedGroup],
    settings: UpdateSettings,
    max_tokens: int,
    lr: float,
    seed: int = 0,
) -> Metrics:
    """`update_epochs` passes of `minibatches` optimizer steps over these groups; returns the update's metrics."""
    if settings.minibatches > 1:  # later steps of the first pass no longer have the policy that sampled
        remember_old(learner, list(filter(settings.teaches, batch)), settings)
    for epoch in range(settings.update_epochs):
        parts = deal(batch, settings.minibatches, f"{seed}/{epoch}")
        steps = [_step(learner, part, settings, max_tokens, lr) for part in parts]
    tokens = max(1.0, _sum(steps, "tokens"))  # those that were scored: groups with nothing to learn from are not
    return {
        "loss": _sum(steps, "loss") / len(steps),
        **({"kl": _sum(steps, "kl") / tokens} if any("kl" in step for step in steps) else {}),
        "clip_fraction": _sum(steps, "clipped") / tokens,
        "grad_norm": _sum(steps, "grad_norm") / len(steps),
        **_before([row for group in batch for row in group.rows if row.old is not None], settings.importance_cap),
    }


def remember_old(learner: Learner, groups: Sequence[CreditedGroup], settings: UpdateSettings) -> None:
    """Take the old log-probabilities of these groups now, without gradient."""
    import torch

    with torch.no_grad(), learner.sharing([group.prompt for group in groups]):
        scored = learner.world.map(lambda group: _scored(learner.logprobs, group, settings), groups)
    for row, logprobs in by_row(groups, scored):
        row.old = logprobs


def remember_ref(learner: Learner, groups: Sequence[CreditedGroup], settings: UpdateSettings) -> None:
    """Take the reference's log-probabilities, unless they are known: the reference does not move."""
    unknown = [group for group in groups if any(row.ref is None for row in group.rows)]
    scored = learner.world.map(lambda group: _scored(learner.ref_logprobs, group, settings), unknown)
    for row, logprobs in by_row(unknown, scored):
        row.ref = logprobs


def deal(items: Sequence[Item], parts: int, seed: str) -> list[list[Item]]:
    """Deal the items out to at most so many parts, in an order that depends on the seed alone; none is empty."""
    order = list(items)
    if parts > 1:
        random.Random(seed).shuffle(order)
    return [order[start::parts] for start in range(min(parts, len(order)))] or [[]]


def cut(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in order, so many at a time; 0 takes all at once."""
    for start in range(0, len(items), size or max(1, len(items))):
        yield items[start : start + (size or len(items))]


def rollout_metrics(groups: Sequence[Group]) -> Metrics:
    """Means over all rollouts of reward and signal, over all completions of their length and what was cut."""
    completions = [step.completion for group in groups for one in group.rollouts for step in group.steps(one)]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    parts = sorted({name for rollout in rollouts for name in rollout.reward.parts})
    means = {name: statistics.mean(rollout.reward.parts.get(name, 0.0) for rollout in rollouts) for name in parts}
    return {
        "reward": statistics.mean(rollout.reward.value for rollout in rollouts),
        **{f"reward/{name}": value for name, value in means.items()},
        "completion_tokens": statistics.mean(len(one.tokens) for one in completions),
        "truncated": statistics.mean(one.finish == "length" for one in completions),
        "frac_no_signal": _frac_no_signal([[rollout.reward.value for rollout in group.rollouts] for group in groups]),
    }


def _frac_no_signal(rewards: Sequence[Sequence[float]]) -> float:
    """The share of groups whose rewards are all equal; prompts that were sampled once are one group together."""
    compared = rewards if any(len(group) > 1 for group in rewards) else [[value for row in rewards for value in row]]
    return statistics.mean(len(set(group)) < 2 for group in compared)


def _step(
    learner: Learner, part: Sequence[CreditedGroup], settings: UpdateSettings, max_tokens: int, lr: float
) -> Metrics:
    """One optimizer step; returns its loss, gradient norm, and sums over the tokens that were scored."""
    lengths = [len(row.tokens) for group in part for row in group.rows]
    weights = iter(token_weights(lengths, settings.aggregation, max_tokens))
    weighted = [(group, [next(weights) for _ in group.rows]) for group in part]
    taught = [pair for pair in weighted if settings.teaches(pair[0])]
    groups = [group for group, _ in taught]
    with learner.sharing([group.prompt for group in groups]):
        if settings.kl_coef:
            remember_ref(learner, groups, settings)
        learned = learner.world.map(lambda pair: _learn(learner, *pair, settings), taught)
    for row, old in by_row(groups, [olds for _, olds in learned]):
        row.old = old
    return _sums([sums for sums, _ in learned]) | {"grad_norm": learner.step(lr)}


def _learn(
    learner: Learner, group: CreditedGroup, weights: Sequence[float], settings: UpdateSettings
) -> tuple[Metrics, list[Tensor]]:
    """Forward and backward over the completions of a prompt; returns sums, and the old log-probabilities."""
    weighted = list(zip(group.rows, weights, strict=True))
    passes = [_backward(learner, group.prompt, rows, settings) for rows in cut(weighted, settings.micro_batch)]
    return _sums(passes), [row.old for row in group.rows if row.old is not None]


def _scored(score: Score, group: CreditedGroup, settings: UpdateSettings) -> list[Tensor]:
    """The log-probabilities of a group's completions, on the CPU."""
    passes = cut([row.tokens for row in group.rows], settings.micro_batch)
    return [one.cpu() for tokens in passes for one in score(group.prompt, tokens, settings.temperature)]


def by_row(groups: Sequence[CreditedGroup], found: Sequence[Sequence[Tensor]]) -> Iterator[tuple[Credited, Tensor]]:
    """Every completion with what was found of it."""
    for group, tensors in zip(groups, found, strict=True):
        yield from zip(group.rows, tensors, strict=True)


def _backward(
    learner: Learner, prompt: Sequence[int], rows: Sequence[tuple[Credited, float]], settings: UpdateSettings
) -> Metrics:
    """One forward and backward over some completions of a prompt."""
    import torch

    scored = learner.logprobs(prompt, [row.tokens for row, _ in rows], settings.temperature)
    total, sums = torch.zeros((), device=scored[0].device), []
    for (row, weight), logprobs in zip(rows, scored, strict=True):
        if row.old is None:
            row.old = logprobs.detach().cpu()
        old, ref = row.old.to(logprobs.device), None if row.ref is None else row.ref.to(logprobs.device)
        total = total + weight * _token_losses(row, logprobs, old, ref, settings).sum()
        sums.append(_token_sums(logprobs.detach(), old, ref, settings))
    total.backward()  # type: ignore[no-untyped-call]
    return {"loss": float(total.detach()), **_sums(sums)}


def _token_losses(row: Credited, logprobs: Tensor, old: Tensor, ref: Tensor | None, settings: UpdateSettings) -> Tensor:
    """(T,) the loss of each token of a completion, unweighted."""
    losses = clipped_policy_loss(
        policy_ratio(logprobs, old, settings.ratio),
        row.advantages.to(logprobs.device),
        clip_range_low=settings.clip_range_low,
        clip_range_high=settings.clip_range_high,
        dual_clip=settings.dual_clip,
    )
    if settings.importance_cap:
        losses = losses * importance_weight(old, row.sampled.to(old.device), settings.importance_cap)
    if settings.kl_coef and ref is not None:
        losses = losses + settings.kl_coef * kl_term(settings.kl, logprobs, ref, old)
    return losses


def _token_sums(logprobs: Tensor, old: Tensor, ref: Tensor | None, settings: UpdateSettings) -> Metrics:
    """Sums over the tokens of a completion, for the metrics."""
    ratio = policy_ratio(logprobs, old, settings.ratio)
    left = (ratio < 1 - settings.clip_range_low) | (ratio > 1 + settings.clip_range_high)
    sums = {"tokens": float(len(logprobs)), "clipped": float(left.sum())}
    return sums if ref is None else sums | {"kl": float(kl_k3(logprobs, ref).sum())}


def _before(rows: Sequence[Credited], importance_cap: float | None) -> Metrics:
    """What the policy was before the first step: how far from the sampler's numbers, and how sure."""
    import torch

    if not rows:
        return {"sampler_gap": 0.0, "sampler_gap_max": 0.0, "entropy_estimate": 0.0}
    old = torch.cat([row.old for row in rows if row.old is not None])
    sampled = torch.cat([row.sampled for row in rows])
    gaps = (old - sampled).abs()
    cap = importance_cap
    return {
        **({"importance_weight": float(importance_weight(old, sampled, cap).mean())} if cap else {}),
        "sampler_gap": float(gaps.mean()),
        "sampler_gap_max": float(gaps.max()),
        "entropy_estimate": -float(old.mean()),
    }


def _sum(parts: Sequence[Metrics], name: str) -> float:
    return sum(part.get(name, 0.0) for part in parts)


def _sums(parts: Sequence[Metrics]) -> Metrics:
    return {name: _sum(parts, name) for name in dict.fromkeys(name for part in parts for name in part)}
