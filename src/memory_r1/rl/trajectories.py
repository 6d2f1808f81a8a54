"""Trajectories: replies that earned well, for supervised training to imitate, and the file they are kept in.

Rejection sampling: n rollouts of each training episode, of which the best are kept. With another policy's rollouts it
is Memory-R1's Memory-SFT baseline (there: behaviour cloning of GPT-5); with the policy's own, arXiv 2308.01825. The
file has one JSON object a line, for one decision: id, prompt (messages), reply, reward, parts, policy. The decisions of
one rollout of a replay episode are lines with the same id and reward. Left out: the imitation (sft.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

from memory_r1.errors import InputError, TrainingError
from memory_r1.policy.base import Completion, Policy, Prompt, Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.course import Course, Draw, courses
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.order import sampling_seed
from memory_r1.rl.rollout import Scorer, draw_of
from memory_r1.rl.run.whole import whole_file
from memory_r1.rl.types import Demonstration, Episode, Reward

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class RejectionSettings:
    """Which rollouts are imitated: those that earned above 0, kept the format in every reply and ended by themselves.

    samples       rollouts of each episode
    temperature   of their sampling
    keep          at most so many different ones of an episode, the best first; of equal ones the commonest
    least         they earned at least so much
    above_median  they earned more than the median of their episode: leaves out what was earned whatever was written
    """

    samples: int = 8
    temperature: float = 1.0
    keep: int = 1
    least: float = 0.0
    above_median: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"rejection.{name} is {getattr(self, name)}, expected at least 1")
        if self.temperature <= 0:
            raise InputError(f"rejection.temperature is {self.temperature}, expected above 0")


@dataclass(frozen=True)
class Trajectory:
    """One decision that earned well, with what the whole rollout earned, and the policy that wrote it."""

    id: str
    prompt: Prompt
    reply: str
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    policy: str = ""

    def demonstration(self) -> Demonstration:
        """What supervised training imitates."""
        return Demonstration(self.id, self.prompt, self.reply)


def sample_trajectories(
    policy: Policy | Learner,
    episodes: Sequence[Episode],
    settings: RejectionSettings,
    *,
    max_tokens: int,
    seed: int,
    score: Scorer,
    report: Callable[[int, int, Mapping[str, float]], None] | None = None,
    batch: int = 16,
) -> list[Trajectory]:
    """The rollouts of each episode that may be imitated, in the order of the episodes.

    Args:
        policy: any, or the learner; those that run here compute each prompt once.
        report: is told (episodes done, of how many, means) after each batch.
        batch: episodes sampled and scored at once.

    Raises:
        TrainingError: there is none.
        PolicyError: the policy failed, or a model that `score` asks.
    """
    kept: list[Trajectory] = []
    for start in range(0, len(episodes), batch):
        part, how = episodes[start : start + batch], sampling_seed(seed, start)
        sampling = Sampling(max_tokens, settings.temperature, seed=how)
        played = courses(_draw(policy), part, n=settings.samples, sampling=sampling)
        rewards = score([course.last for group in played for course in group])
        rewarded = iter(rewards)
        for episode, group in zip(part, played, strict=True):
            pairs = best([(course, next(rewarded)) for course in group], settings)
            kept += [one for course, reward in pairs for one in _lines(episode.id, course, reward, policy.name)]
        if report:
            report(start + len(part), len(episodes), {"reward": fmean(reward.value for reward in rewards)})
    if not kept:
        raise TrainingError(
            f"none of {settings.samples} rollouts of {len(episodes)} episodes by {policy.name} may be imitated, "
            "expected some that keep the format and earn above 0: sample more, from a better policy, or lower "
            "rejection.least"
        )
    return kept


def best(rollouts: Sequence[tuple[Course, Reward]], settings: RejectionSettings) -> list[tuple[Course, Reward]]:
    """The rollouts of one episode that are imitated, the best first; of equal ones the commonest, then the first."""
    middle = median(reward.value for _, reward in rollouts)
    distinct: dict[tuple[str, ...], tuple[Course, Reward]] = {}
    for course, reward in rollouts:
        enough = reward.value > 0 and reward.value >= settings.least
        if enough and (reward.value > middle or not settings.above_median) and _is_whole(course, reward):
            distinct.setdefault(_replies(course), (course, reward))
    often = Counter(_replies(course) for course, _ in rollouts)
    ordered = sorted(distinct.values(), key=lambda pair: (-pair[1].value, -often[_replies(pair[0])]))
    return ordered[: settings.keep]


def save_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write the file whole or not at all."""
    text = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in trajectories)
    with whole_file(path) as partial:
        partial.write_bytes(text.encode(errors="backslashreplace"))  # half an emoji becomes JSON's own escape


def load_trajectories(path: Path) -> list[Trajectory]:
    """Read a file of trajectories; `parts` and `policy` may be left out of a line.

    Raises:
        InputError: the file is missing, not UTF-8, empty, or a line is not a trajectory; names line and field.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}), expected a file of trajectories") from error
    read = [_read(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not read:
        raise InputError(f"{path}: holds no trajectories, expected at least one")
    return read


def _draw(policy: Policy | Learner) -> Draw:
    if isinstance(policy, LocalPolicy | Learner):
        return draw_of(policy)

    def draw(prompts: Sequence[Prompt], sampling: Sampling, n: int) -> list[list[Completion]]:
        seeds = [sampling_seed(sampling.seed or 0, number) for number in range(n)]  # one seed would give equal replies
        rounds = [policy.complete(prompts, replace(sampling, seed=seed)) for seed in seeds]
        return [list(completions) for completions in zip(*rounds, strict=True)]

    return draw


def _is_whole(course: Course, reward: Reward) -> bool:
    """Whether every reply kept the format and none was cut off."""
    return reward.parts.get("well_formed", 1.0) == 1 and all(one.finish != "length" for _, one in course.written)


def _replies(course: Course) -> tuple[str, ...]:
    return tuple(completion.text for _, completion in course.written)


def _lines(name: str, course: Course, reward: Reward, policy: str) -> list[Trajectory]:
    return [Trajectory(name, prompt, one.text, reward.value, reward.parts, policy) for prompt, one in course.written]


def _read(line: str, where: str) -> Trajectory:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # refuses lone surrogates, which no tokenizer takes
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}), expected one object") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: got {type(record).__name__}, expected one object with id, prompt, reply, reward")
    return Trajectory(
        id=_field(record, "id", where, _is_text, "a text"),
        prompt=_field(record, "prompt", where, _is_prompt, "messages with role and content, the last one the user's"),
        reply=_field(record, "reply", where, _is_text, "a text"),
        reward=_field(record, "reward", where, _is_number, "a number"),
        parts=_field({"parts": {}, **record}, "parts", where, _is_parts, "numbers by name"),
        policy=_field({"policy": "", **record}, "policy", where, lambda value: isinstance(value, str), "a text"),
    )


def _field(record: Mapping[str, Any], name: str, where: str, fits: Callable[[Any], bool], expected: str) -> Any:
    value = record.get(name)
    if not fits(value):
        raise InputError(f"{where}: field {name!r} is {value!r:.60}, expected {expected}")
    return value


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_parts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_prompt(value: object) -> bool:
    messages = value if isinstance(value, list) else []
    return bool(messages) and all(map(_is_message, messages)) and messages[-1]["role"] == "user"


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and value["role"] in _ROLES
        and isinstance(value["content"], str)
    )
