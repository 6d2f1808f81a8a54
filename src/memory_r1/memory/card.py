"""The card beside a trained adapter: which agent it is for, its prompt format, the settings it was trained with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from memory_r1.errors import ModelError
from memory_r1.memory.answer import FORMAT, SMALL, AnswerSettings
from memory_r1.policy.base import Policy
from memory_r1.policy.local import LocalPolicy

CARD = "memory_r1.json"


def write_card(adapter: Path, base: str, settings: AnswerSettings) -> None:
    """Write the card of an answer agent's adapter; `base` names the model it belongs on."""
    card = {"agent": "answer", "format": FORMAT, "base": base, "settings": asdict(settings)}
    (adapter / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")


def read_card(adapter: Path, base: str | None = None) -> AnswerSettings:
    """The answer settings an adapter was trained with.

    Raises:
        ModelError: the adapter has no card, is not for the answer agent, was trained with another prompt format, or
            on another base model than `base`, where one is named.
    """
    path = adapter / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        agent, written, trained_on, settings = card["agent"], card["format"], card["base"], card["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{adapter}: no readable {CARD}, expected an adapter written by memory-r1 train") from error
    if (agent, written) != ("answer", FORMAT):
        raise ModelError(
            f"{adapter}: made for the {agent} agent with {written}, expected answer with {FORMAT}: train it again"
        )
    if base not in (None, trained_on):
        raise ModelError(f"{adapter}: trained on {trained_on}, got {base}: name its own base with --model")
    try:
        return AnswerSettings(**settings)
    except TypeError as error:
        raise ModelError(f"{path}: has other settings than {FORMAT} knows ({error}): train it again") from error


def default_settings(policy: Policy) -> AnswerSettings:
    """What a policy answers best with: its adapter's card, what the embedded model can read, else the paper's.

    Raises:
        ModelError: the adapter's card cannot be used.
    """
    if isinstance(policy, LocalPolicy):
        if policy.adapter is not None:
            return read_card(policy.adapter, policy.base_name)
        if policy.embedded:
            return SMALL
        if (policy.source / CARD).is_file():  # a fully fine-tuned model carries its card itself
            return read_card(policy.source)
    return AnswerSettings()
