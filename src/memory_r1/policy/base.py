"""The seam to a language model: messages in, completions out.

Everything above this file (extractor, memory manager, answer agent, judge) knows only `Policy`. What is left out:
streaming, tools and images, which no agent here needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict


class Message(TypedDict):
    """One chat message, in the form every chat template and endpoint takes."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = Sequence[Message]


@dataclass(frozen=True)
class Sampling:
    """How a completion is drawn.

    temperature 0 is greedy. `schema` is a JSON schema that the backend enforces where it can; a backend that cannot
    ignores it, so a parser must stand behind every reply all the same.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    seed: int | None = None
    schema: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Completion:
    """What a policy wrote for one prompt.

    `tokens` and `logprobs` are the sampled ids and their natural-log probabilities at the sampling temperature, in
    order, the terminating end-of-sequence token included; a policy that cannot see them leaves them empty. `waited_s`
    is, of a completion that a cache has kept, the seconds that it took when it was made.
    """

    text: str
    finish: Literal["stop", "length"] = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    waited_s: float = 0.0


class Policy(Protocol):
    """A language model. `name` identifies it, weights included, in histories and results."""

    @property
    def name(self) -> str: ...

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Write one completion per prompt, in order.

        Raises:
            PolicyError: the model could not be reached or loaded; no completion is returned for any prompt.
        """
        ...
