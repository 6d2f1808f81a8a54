"""The card beside a trained adapter: which agent it is for, its prompt format, the settings it was trained with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal, TypeVar

from memory_r1.errors import ModelError
from memory_r1.memory.answer import FORMAT as ANSWER_FORMAT
from memory_r1.memory.answer import SMALL, AnswerSettings
from memory_r1.memory.manage import FORMAT as MANAGER_FORMAT
from memory_r1.memory.manage import LLMManager, ManagerSettings
from memory_r1.policy.base import Policy
from memory_r1.policy.local import LocalPolicy

CARD = "memory_r1.json"

Agent = Literal["answer", "manager"]
Settings = TypeVar("Settings", bound=AnswerSettings | ManagerSettings)

_FORMATS: dict[type[object], tuple[Agent, str]] = {
    AnswerSettings: ("answer", ANSWER_FORMAT),
    ManagerSettings: ("manager", MANAGER_FORMAT),
}


def write_card(adapter: Path, base: str, settings: AnswerSettings | ManagerSettings) -> None:
    """Write the card of an adapter for the agent that has such settings; `base` names the model it belongs on."""
    agent, form = _FORMATS[type(settings)]
    card = {"agent": agent, "format": form, "base": base, "settings": asdict(settings)}
    (adapter / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")


def read_card(adapter: Path, kind: type[Settings], base: str | None = None) -> Settings:
    """The settings an adapter was trained with.

    Args:
        kind: AnswerSettings or ManagerSettings, by the agent it is wanted for.
        base: the model it is to be put on, where that is known.

    Raises:
        ModelError: the adapter has no card, is for the other agent, was trained with another prompt format, or on
            another base model.
    """
    path = adapter / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        found, trained_on, settings = (card["agent"], card["format"]), card["base"], card["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{adapter}: no readable {CARD}, expected an adapter written by memory-r1 train") from error
    agent, form = _FORMATS[kind]
    if found != (agent, form):
        raise ModelError(
            f"{adapter}: made for the {found[0]} agent with {found[1]}, expected {agent} with {form}: name another, or "
            "train it again"
        )
    if base not in (None, trained_on):
        raise ModelError(f"{adapter}: trained on {trained_on}, got {base}: name its own base with --model")
    try:
        return kind(**settings)
    except TypeError as error:
        raise ModelError(f"{path}: has other settings than {form} knows ({error}): train it again") from error


def default_settings(policy: Policy) -> AnswerSettings:
    """What a policy answers best with: its adapter's card, what the embedded model can read, else the paper's.

    Raises:
        ModelError: the adapter's card cannot be used.
    """
    small = isinstance(policy, LocalPolicy) and policy.embedded
    return _carried(policy, AnswerSettings) or (SMALL if small else AnswerSettings())


def manager_of(policy: Policy) -> LLMManager:
    """A memory manager as the policy's adapter was trained, else with the usual settings.

    Raises:
        ModelError: the adapter's card cannot be used.
    """
    return LLMManager(policy, _carried(policy, ManagerSettings) or ManagerSettings())


def _carried(policy: Policy, kind: type[Settings]) -> Settings | None:
    """What the card of a policy's adapter says, or of a fully fine-tuned model; None where there is no card."""
    if not isinstance(policy, LocalPolicy):
        return None
    if policy.adapter is not None:
        return read_card(policy.adapter, kind, policy.base_name)
    if not policy.embedded and (policy.source / CARD).is_file():
        return read_card(policy.source, kind)
    return None
