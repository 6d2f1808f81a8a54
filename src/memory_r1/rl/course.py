"""The course of episodes: decision after decision, those of all rollouts that are due drawn at once.

A single decision is a course of one step. Left out: what draws (a policy with its sampling) and what is earned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count

from memory_r1.policy.base import Completion, Prompt, Sampling
from memory_r1.rl.order import sampling_seed
from memory_r1.rl.types import Continues, Episode

Draw = Callable[[Sequence[Prompt], Sampling, int], list[list[Completion]]]
"""(prompts, sampling, how many of each) -> the completions of each prompt."""


@dataclass
class Course:
    """One rollout of an episode under way.

    episode  the decision taken last
    written  the prompt and the completion of every decision so far
    """

    episode: Episode
    written: list[tuple[Prompt, Completion]] = field(default_factory=list)

    @property
    def last(self) -> tuple[Episode, Completion]:
        """What the outcome follows from: the last decision, in the state that those before it left."""
        return self.episode, self.written[-1][1]

    def goes_on(self) -> bool:
        """Step to the next decision; False where there is none."""
        following = self.episode.after(self.last[1]) if isinstance(self.episode, Continues) else None
        self.episode = following or self.episode
        return following is not None


def courses(draw: Draw, episodes: Sequence[Episode], *, n: int, sampling: Sampling) -> list[list[Course]]:
    """n courses of each episode, each to its end.

    The n first decisions of an episode come from one prompt; those after them from prompts of their own, one draw for
    all that are due. Step k has a seed of its own, which follows from the sampling's seed and k alone.
    """
    prompts = [episode.prompt for episode in episodes]
    begun = [
        [Course(episode, [(prompt, completion)]) for completion in completions]
        for episode, prompt, completions in zip(episodes, prompts, draw(prompts, sampling, n), strict=True)
    ]
    due = list(chain.from_iterable(begun))
    for step in count(1):
        due = [course for course in due if course.goes_on()]
        if not due:
            break
        prompts = [course.episode.prompt for course in due]
        drawn = draw(prompts, _of_step(sampling, step), 1)
        for course, prompt, (completion,) in zip(due, prompts, drawn, strict=True):
            course.written.append((prompt, completion))
    return begun


def _of_step(sampling: Sampling, step: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling_seed(sampling.seed, step))
