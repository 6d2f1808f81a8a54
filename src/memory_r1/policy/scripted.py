"""A scripted policy: canned replies where a language model would stand, for tests and examples.

A test double at the model seam, not a model: it never reads `Sampling`, enforces no schema and no token limit, and its
token counts are counts of words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memory_r1.errors import InputError, ReplyError
from memory_r1.policy.base import Completion, Prompt, Sampling


class ScriptedPolicy:
    """Answers from a list, in order, or from a function of the prompt.

    Args:
        replies: the texts to hand out one per prompt, or a function from a prompt to its text.
        name: what histories and results show.

    `prompts` keeps every prompt that was answered, oldest first. Not meant for concurrent use of one list.
    """

    def __init__(self, replies: Sequence[str] | Callable[[Prompt], str], name: str = "scripted") -> None:
        if isinstance(replies, str):
            raise InputError("replies is one string, expected a sequence of strings or a function: wrap it in a list")
        self.name = name
        self.prompts: list[Prompt] = []
        self._replies = replies

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Hand out the next reply for each prompt.

        Raises:
            ReplyError: fewer replies are left than prompts were asked; none of them is handed out.
        """
        texts = self._texts(prompts)
        self.prompts.extend(prompts)
        return [_completion(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def _texts(self, prompts: Sequence[Prompt]) -> Sequence[str]:
        if callable(self._replies):
            return [self._replies(prompt) for prompt in prompts]
        used, given = len(self.prompts), len(self._replies)
        if used + len(prompts) > given:
            raise ReplyError(
                f"{self.name}: {given} replies were given and {used} used, but {len(prompts)} more asked: "
                "script one for every prompt"
            )
        return self._replies[used : used + len(prompts)]


def _completion(prompt: Prompt, text: str) -> Completion:
    prompt_words = sum(len(message["content"].split()) for message in prompt)
    return Completion(text, prompt_tokens=prompt_words, completion_tokens=len(text.split()))
