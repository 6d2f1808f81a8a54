"""What a run would take, before it is begun: prompts and replies in tokens, iterations, minutes and memory.

Tokens and iterations are counted; minutes and memory are scaled up from a few seconds of the real work, here and now.

    seconds of a prompt  measured with a group of replies at the median prompt and at the longest; between them a
                         straight line in the prompt's tokens, taken at the mean prompt
    GRPO                 sampling + reference + update epochs * (forward and backward), and one more forward where the
                         old log-probabilities need their own
    PPO                  that + one forward for the values + critic epochs * (forward and backward): the critic is taken
                         to cost what the policy costs
    SFT                  forward and backward of one reply
    val                  sampling of one reply to each question, at every check
    minutes              iterations * (prompts or batch) * seconds of a prompt + checks * questions * seconds of a reply
    memory               the most that the process held until now, which includes forward and backward of the longest
                         prompt with the longest replies, and 8 bytes (Adam's moments) for each number trained

A reply is taken to be as long as the warm start's replies on average, without a warm start as long as the limit. Where
an episode has several decisions, "a prompt" stands for all of them, each taken to cost what a first one does: it costs
more, since later decisions share no prompt. Sampling is the learner's own, whoever samples in the run. Left out:
checkpoints, several processes, and other models: a memory manager's frozen answer agent, a judge and a teacher are
asked in the run and not here.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory_r1.policy.base import Completion, Prompt
from memory_r1.policy.decode import sample_groups
from memory_r1.rl.algorithms.grpo import GRPO
from memory_r1.rl.algorithms.ppo import PPO
from memory_r1.rl.algorithms.sft import SFT
from memory_r1.rl.algorithms.update import OnEpisodes
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.run.loop import Algorithm, LoopSettings
from memory_r1.rl.tasks.task import Task
from memory_r1.rl.types import Continues, Episode

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Lengths:
    """Some lengths in tokens, in short."""

    median: int
    p95: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """The summary of at least one length."""
        ordered = sorted(lengths)
        return cls(ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])


@dataclass(frozen=True)
class Estimate:
    """What a run is made of, and what it would take.

    prompt      lengths of the prompts of all decisions
    unfit       prompts that with their reply exceed the model's context
    reply       tokens of a reply, as reckoned with
    iterations  of each algorithm
    minutes     of each algorithm, checks included
    memory_gb   at the peak, in 10^9 bytes, of the process; on a GPU, of the device
    remarks     what to know about the data (preflight.py)
    """

    episodes: int
    val: int
    demonstrations: int
    prompt: Lengths
    unfit: int
    reply: int
    iterations: dict[str, int]
    minutes: dict[str, float]
    memory_gb: float
    remarks: Sequence[str]


@dataclass(frozen=True)
class _Cost:
    """Seconds at one prompt: of sampling a group and one reply, of a forward, and of forward and backward."""

    sample: float
    answer: float
    forward: float
    learn: float
    imitate: float


def estimate(learner: Learner, task: Task, algorithms: Sequence[Algorithm], loop: LoopSettings) -> Estimate:
    """Measure a little and scale it up, as the head of this file says. The learner is not to be trained afterwards.

    Args:
        task: with at least one episode.
        algorithms: of the run, in their order.
    """
    policy, limit = learner.policy, task.settings.max_tokens
    prompts = [policy.encode(prompt) for episode in task.episodes for prompt in _prompts(episode)]
    replies = [len(policy.encode_reply(one.reply)) for one in task.demonstrations]
    context = getattr(policy.model.config, "max_position_embeddings", None) or sys.maxsize
    fit = sorted((ids for ids in prompts if len(ids) + limit <= context), key=len) or [min(prompts, key=len)]
    imitated = any(isinstance(one, SFT) for one in algorithms) and replies
    reply = min(limit, round(statistics.mean(replies))) if imitated else limit
    for algorithm in algorithms:
        algorithm.prepare(learner)
    group = max((one.settings.group for one in algorithms if isinstance(one, OnEpisodes)), default=1)
    middle, longest = fit[len(fit) // 2], fit[-1]
    _measured(learner, middle, group, reply)  # the first time is slower than any other
    costs = [(len(ids), _measured(learner, ids, group, reply)) for ids in (middle, longest)]
    _gradients(learner, longest, group, limit)
    mean = _between(costs, statistics.mean(len(ids) for ids in fit))
    decisions = len(prompts) / len(task.episodes)
    checked = (len(task.val) or min(loop.samples, len(task.episodes))) * decisions
    minutes = {
        one.name: (_seconds(one, mean, decisions) + _checks(one, loop) * checked * mean.answer) / 60
        for one in algorithms
    }
    return Estimate(
        episodes=len(task.episodes),
        val=len(task.val),
        demonstrations=len(task.demonstrations),
        prompt=Lengths.of([len(ids) for ids in prompts]),
        unfit=sum(len(ids) + limit > context for ids in prompts),
        reply=reply,
        iterations={one.name: one.iterations for one in algorithms},
        minutes=minutes,
        memory_gb=(_peak_bytes(learner) + 8 * _trained(learner)) / 1e9,
        remarks=task.remarks,
    )


def _prompts(episode: Episode) -> Iterator[Prompt]:
    """The prompts of an episode's decisions; those after the first as they are where nothing is decided before."""
    following: Episode | None = episode
    while following:
        yield following.prompt
        following = following.after(Completion("")) if isinstance(following, Continues) else None


def _seconds(algorithm: Algorithm, cost: _Cost, decisions: float = 1.0) -> float:
    """What the iterations of an algorithm take, over episodes of so many decisions."""
    if isinstance(algorithm, SFT):
        return algorithm.iterations * algorithm.settings.batch * cost.imitate
    assert isinstance(algorithm, GRPO | PPO)
    settings = algorithm.settings
    own_old = settings.minibatches > 1
    prompt = cost.sample + settings.update_epochs * cost.learn + cost.forward * (bool(settings.kl_coef) + own_old)
    if isinstance(algorithm, PPO):
        prompt += cost.forward + algorithm.settings.critic.epochs * cost.learn
    return algorithm.iterations * settings.prompts * decisions * prompt


def _checks(algorithm: Algorithm, loop: LoopSettings) -> int:
    """How often val is asked: at the beginning, at the end, and every few iterations between."""
    between = (algorithm.iterations - 1) // loop.eval_every if loop.eval_every else 0
    return 2 + between


def _between(costs: Sequence[tuple[int, _Cost]], tokens: float) -> _Cost:
    """The cost at so many tokens, on the straight line through the two that were measured."""
    (short, low), (long, high) = costs
    share = (tokens - short) / (long - short) if long > short else 0.0
    values = {name: max(0.0, value + share * (getattr(high, name) - value)) for name, value in vars(low).items()}
    return _Cost(**values)


def _measured(learner: Learner, prompt: Sequence[int], group: int, reply: int) -> _Cost:
    import torch

    def forward() -> None:
        with torch.no_grad():
            learner.logprobs(prompt, _replies(prompt, group, reply))

    return _Cost(
        sample=_timed(lambda: _sample(learner, prompt, group, reply)),
        answer=_timed(lambda: _sample(learner, prompt, 1, reply)),
        forward=_timed(forward),
        learn=_timed(lambda: _gradients(learner, prompt, group, reply)),
        imitate=_timed(lambda: _gradients(learner, prompt, 1, reply)),
    )


def _sample(learner: Learner, prompt: Sequence[int], group: int, reply: int) -> None:
    """Sample replies of just this length: no token ends them."""
    with learner.precision():
        sample_groups(
            learner.model, [prompt], n=group, max_tokens=reply, temperature=1.0, end_ids=frozenset(), generator=None
        )


def _gradients(learner: Learner, prompt: Sequence[int], group: int, reply: int) -> None:
    scored: list[Tensor] = learner.logprobs(prompt, _replies(prompt, group, reply))
    total: Any = sum(one.sum() for one in scored[1:]) + scored[0].sum()
    total.backward()
    learner.model.zero_grad(set_to_none=True)


def _replies(prompt: Sequence[int], group: int, length: int) -> list[list[int]]:
    """Any tokens will do."""
    return [[prompt[(i + j) % len(prompt)] for j in range(length)] for i in range(group)]


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the work, of which a GPU would not tell by itself."""
    import torch

    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _peak_bytes(learner: Learner) -> int:
    import torch

    if learner.model.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(learner.model.device))
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def _trained(learner: Learner) -> int:
    """How many numbers the run trains, the critic's included."""
    groups = learner.critic.optimizer.param_groups if learner.critic else []
    return learner.trainable + sum(int(weight.numel()) for group in groups for weight in group["params"])
