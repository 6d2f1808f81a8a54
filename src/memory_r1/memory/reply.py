"""What every agent's prompt and parser share: text made safe for one line, JSON found in a reply, one retry."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from memory_r1.errors import ReplyError
from memory_r1.policy.base import Message, Policy, Prompt, Sampling

Parsed = TypeVar("Parsed")

_JOINERS = "\u200c\u200d"  # not printable by themselves, but part of Persian and Indic words and of emoji


def one_line(text: str, longest: int = 2000) -> str:
    """Text on one line without control characters, so that a stored text cannot open a line of the prompt.

    Longer texts are cut at `longest` characters, with an ellipsis to show it; the bank keeps them whole.
    """
    head = text[: 4 * longest]
    line = " ".join("".join(c if c.isprintable() or c.isspace() or c in _JOINERS else " " for c in head).split())
    whole = len(line) <= longest and len(head) == len(text)
    return line if whole else line[: longest - 1] + "…"


def find_json(text: str) -> object:
    """The JSON object of a reply, alone or in a code fence or amid prose; raises ReplyError when there is none."""
    start = text.find("{")
    if start < 0:
        raise ReplyError(f"got {text[:80]!r}, expected a JSON object")
    try:
        value, _ = json.JSONDecoder().raw_decode(text[start:])
        json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates, which no bank could store
    except (ValueError, RecursionError) as error:
        raise ReplyError(
            f"got {text[start : start + 80]!r}, which is not JSON ({error}), expected one object"
        ) from error
    found: object = value
    return found


def ask_for_json(policy: Policy, prompt: Prompt, sampling: Sampling, parse: Callable[[object], Parsed]) -> Parsed:
    """Complete, find the JSON, parse it; a reply that does not parse is sent back once with the reason.

    Raises:
        ReplyError: the second reply does not parse either.
        PolicyError: the model failed.
    """
    parsed = ask_each(policy, [(prompt, lambda reply: parse(find_json(reply)))], sampling)[0]
    if isinstance(parsed, ReplyError):
        raise parsed
    return parsed


def ask_each(
    policy: Policy, asked: Sequence[tuple[Prompt, Callable[[str], Parsed]]], sampling: Sampling
) -> list[Parsed | ReplyError]:
    """Complete each prompt and read the reply by its parser; those that do not parse are sent back once, together.

    Returns:
        for each what was read, or the ReplyError of its second reply.

    Raises:
        PolicyError: the model failed.
    """
    if not asked:
        return []
    replies = [completion.text for completion in policy.complete([prompt for prompt, _ in asked], sampling)]
    outcomes = [_parsed(reply, parse) for reply, (_, parse) in zip(replies, asked, strict=True)]
    again = {i: outcome for i, outcome in enumerate(outcomes) if isinstance(outcome, ReplyError)}
    if again:
        prompts = [_once_more(asked[i][0], replies[i], error) for i, error in again.items()]
        for i, completion in zip(again, policy.complete(prompts, sampling), strict=True):
            outcomes[i] = _parsed(completion.text, asked[i][1])
    return outcomes


def _parsed(reply: str, parse: Callable[[str], Parsed]) -> Parsed | ReplyError:
    try:
        return parse(reply)
    except ReplyError as error:
        return error


def _once_more(prompt: Prompt, reply: str, error: ReplyError) -> list[Message]:
    """The messages that send a reply which does not parse back, with the reason."""
    return [
        *prompt,
        {"role": "assistant", "content": reply},
        {"role": "user", "content": f"That does not parse: {error}. Reply with the JSON object alone."},
    ]
