"""The nouns of training. Read this page first.

An Episode is one decision with an outcome: a prompt, and a pure reward for whatever the policy writes. Where decisions
follow one another, an episode that Continues gives the next one, and the outcome comes after the last. A Group is an
episode's prompt with G sampled rollouts, all from the same state, so that they may be compared. A Demonstration is a
prompt with the reply a warm start imitates.

Axes, written behind tensors: P prompts (groups), G rollouts of a group, T tokens of a completion, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from memory_r1.policy.base import Completion, Prompt


@dataclass(frozen=True)
class Reward:
    """The outcome of one completion: `value` is what is maximised, `parts` are shown beside it and never trained on."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Episode(Protocol):
    """One decision with an outcome; the public contract of the trainer.

    `reward` is pure: the same completion always earns the same, and it sees nothing but what the policy wrote.
    """

    @property
    def id(self) -> str: ...

    @property
    def prompt(self) -> Prompt: ...

    def reward(self, completion: Completion) -> Reward:
        """What a completion earns; a malformed one earns little, and never raises."""
        ...


@runtime_checkable
class Continues(Protocol):
    """An episode whose decision may be followed by another."""

    def after(self, completion: Completion) -> Episode | None:
        """The next decision, in the state that this completion leaves; None where it was the last.

        Then the episode's `reward` is that of the whole course. Pure; a malformed completion changes nothing.
        """
        ...


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the reply to imitate."""

    id: str
    prompt: Prompt
    reply: str


@dataclass(frozen=True)
class Step:
    """One decision of a rollout: the prompt's token ids as the sampler saw them, and what was written."""

    prompt_tokens: tuple[int, ...]
    completion: Completion


@dataclass(frozen=True)
class Rollout:
    """What was sampled for one episode, and its outcome. Tokens are the sampled ids, never a re-encoding of the text.

    later  the decisions after the first one, where an episode has several; their prompts are this rollout's own
    """

    completion: Completion
    reward: Reward
    later: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Group:
    """The G rollouts of one episode, with the (first) prompt's token ids as the sampler saw them.

    version  of the weights that sampled them (`Learner.version`); None: not known, and not checked
    """

    episode: Episode
    prompt_tokens: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    version: int | None = None

    def steps(self, rollout: Rollout) -> tuple[Step, ...]:
        """All decisions of one of its rollouts, in order."""
        return (Step(self.prompt_tokens, rollout.completion), *rollout.later)
