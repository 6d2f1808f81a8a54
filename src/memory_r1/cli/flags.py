"""Flags that several verbs share: which bank, and which language model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from memory_r1.data import adapter_path
from memory_r1.errors import InputError
from memory_r1.policy.local import Precision

if TYPE_CHECKING:
    from memory_r1.bank import Bank, Embedder
    from memory_r1.memory.answer import AnswerSettings
    from memory_r1.memory.card import Agent
    from memory_r1.policy import Policy


@dataclass(frozen=True)
class BankFlags:
    """Which bank."""

    bank: Path = Path("memory.db")
    """the bank's file"""
    scope: str = "default"
    """whose memory: banks of different scopes never see each other"""
    embedder: str | None = None
    """what makes vectors of texts; default: what made the bank's, else all-MiniLM-L6-v2; see docs/bank.md"""

    def open(self, *, existing: bool = False) -> Bank:
        """The bank; `existing` refuses to create one."""
        from memory_r1.bank import Bank

        if existing:
            self.refuse_missing()
        return Bank.open(self.bank, scope=self.scope, embedder=self.chosen_embedder())

    def chosen_embedder(self) -> Embedder | None:
        """The embedder that is named; None leaves it to the bank."""
        from memory_r1.bank import embedder_named

        return embedder_named(self.embedder) if self.embedder else None

    def refuse_missing(self) -> None:
        """Raise InputError unless there is such a file."""
        if not exists(self.bank):
            raise InputError(f"{self.bank}: no such bank: make one with memory-r1 remember FILE --bank {self.bank}")

    def refuse_used(self) -> None:
        """Raise InputError if the scope holds anything; a file that is not there is not made."""
        if exists(self.bank):
            with self.open() as bank:
                if self.scope in bank.scopes():
                    raise InputError(f"{self.bank}: scope {self.scope!r} is not empty: choose another, or delete it")

    def of(self, scope: str) -> BankFlags:
        """The same file, another scope."""
        return replace(self, scope=scope)


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; raises InputError where that cannot be told."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)[:200]}: cannot be looked at: {error}") from error
    return True


@dataclass(frozen=True)
class ScopeVerb:
    """A verb about one scope of one bank."""

    where: Annotated[BankFlags, tyro.conf.arg(name="")] = field(default_factory=BankFlags)


@dataclass(frozen=True)
class ModelFlags:
    """Which language model."""

    model: str | None = None
    """a folder, .gguf file or hub id; with --base-url the endpoint's name for it; default: the embedded small model"""
    base_url: str | None = None
    """an OpenAI-compatible endpoint, default MEMORY_R1_BASE_URL; the key: MEMORY_R1_API_KEY or OPENAI_API_KEY"""
    adapter: Path | None = None
    """an adapter that memory-r1 train wrote, for a local model; default: the one that ships with the embedded model"""
    bare: bool = False
    """the embedded model without the adapter that ships with it"""
    precision: Precision = "auto"
    """of a local model's weights; auto is bfloat16 where the machine computes it natively"""

    def policy(self, agent: Agent | None = None) -> Policy:
        """The policy these flags name, for an agent or for none in particular."""
        from memory_r1.policy import LocalPolicy, RemotePolicy

        if self.bare and (self.adapter or self.model):
            raise InputError("--bare means the embedded model alone: leave --adapter and --model out")
        base_url = self.base_url or os.environ.get("MEMORY_R1_BASE_URL")
        if not base_url:
            return LocalPolicy(self.model, adapter=self.adapter_of(agent), precision=self.precision)
        if self.model is None or self.adapter is not None:
            raise InputError(f"the endpoint {base_url} needs --model NAME, and takes no --adapter")
        return RemotePolicy(self.model, base_url=base_url)

    def adapter_of(self, agent: Agent | None) -> Path | None:
        """The adapter in use for an agent: the one given, else the one that ships with the embedded model."""
        if self.adapter or self.model or self.bare or agent is None:
            return self.adapter
        return adapter_path(agent)


@dataclass(frozen=True)
class AnswerFlags:
    """How answers are made; what is not given comes from the adapter, else fits the model."""

    k: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """entries retrieved (the embedded model: 10 in all; others: 30 of each speaker)"""
    per_speaker: bool | None = None
    """retrieve k entries of each speaker"""
    distill: bool | None = None
    """name the entries that matter before answering"""
    max_tokens: int | None = None
    """longest reply, in tokens"""

    def settings(self, policy: Policy) -> AnswerSettings:
        """The settings in force with this policy."""
        from memory_r1.memory.card import default_settings

        given = {name: value for name, value in vars(self).items() if value is not None}
        return replace(default_settings(policy), **given)


def wall_clock(iso: str) -> datetime:
    """An ISO time as it was said; raises InputError."""
    try:
        return datetime.fromisoformat(iso)
    except ValueError as error:
        raise InputError(f"the time is {iso!r}, expected ISO such as 2026-05-01 or 2026-05-01T12:00") from error
