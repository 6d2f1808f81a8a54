"""Banks made by a managing model: what it would have made of each dialogue alone, and what it failed at."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from memory_r1.bank import Bank, HashingEmbedder
from memory_r1.bench.managed import bank_counts, manage_all
from memory_r1.dialogue import Dialogue, Session, Turn
from memory_r1.errors import InputError, ModelError
from memory_r1.memory import LLMManager, Memory, TurnExtractor
from memory_r1.memory.manage import ManagerSettings
from memory_r1.policy import Prompt, ScriptedPolicy

MONDAY = datetime(2023, 5, 8)
ONE_TURN = ManagerSettings(turns_at_once=1)
LONG = ("I have a dog", "Nice weather", "I have two dogs now", "Bye")


def dialogue(name: str, *texts: str) -> Dialogue:
    turns = tuple(Turn(f"{name}/t{n}", "Ann", text, MONDAY) for n, text in enumerate(texts, start=1))
    return Dialogue(name, (Session("s", MONDAY, turns),))


def decide(prompt: Prompt) -> str:
    """Dogs replace the first memory that is shown, the weather is left, muttering is answered by prose."""
    memories, news = prompt[1]["content"].split("\n\nNew facts:\n")
    fact = news.split("Ann: ")[-1]
    if "weather" in fact:
        return operation("NOOP")
    if "mutters" in fact:
        return "I do not know"
    if "two dogs" in fact and "(none)" not in memories:
        return operation("UPDATE", 0, fact)
    return operation("ADD")


def operation(kind: str, number: int | None = None, text: str | None = None) -> str:
    return json.dumps({"operations": [{"fact": 1, "op": kind, "id": number, "text": text}]})


def manager(name: str = "scripted") -> LLMManager:
    return LLMManager(ScriptedPolicy(decide, name=name), ONE_TURN)


def made(*dialogues: Dialogue, file: Path | None = None) -> dict[str, list[str]]:
    banks = manage_all(dialogues, lambda _: TurnExtractor(), HashingEmbedder(64), manager=manager(), file=file)
    return {name: [entry.text for entry in bank.entries()] for name, bank in banks.items()}


def test_dialogues_of_different_lengths_get_the_banks_that_each_would_get_alone() -> None:
    short, long = dialogue("short", "I have a cat"), dialogue("long", *LONG)
    assert made(short, long) == {**made(short), **made(long)}
    assert made(short, long) == {"short": ["I have a cat"], "long": ["I have two dogs now", "Bye"]}


def test_it_is_the_bank_that_remembering_makes() -> None:
    said = dialogue("long", *LONG)
    banks = manage_all([said], lambda _: TurnExtractor(), HashingEmbedder(64), manager=manager())
    with Bank.open(":memory:", embedder=HashingEmbedder(64)) as bank:
        Memory(bank, manager=manager()).remember(said)
        assert [entry.text for entry in bank.entries()] == [entry.text for entry in banks["long"].entries()]


def test_turns_that_the_manager_failed_at_are_counted_and_not_remembered() -> None:
    banks = manage_all(
        [dialogue("d", *LONG, "mutters")], lambda _: TurnExtractor(), HashingEmbedder(64), manager=manager()
    )
    expected = {"ADD": 2, "UPDATE": 1, "DELETE": 0, "NOOP": 1, "entries": 2, "words": 6, "failed_turns": 1}
    assert dict(bank_counts(banks.values())) == expected


def test_a_file_of_banks_is_gone_on_with_and_not_made_again(tmp_path: Path) -> None:
    file, said = tmp_path / "banks.db", dialogue("d", *LONG)
    first = made(said, file=file)
    silent = LLMManager(ScriptedPolicy([]), ONE_TURN)  # would fail if it were asked
    banks = manage_all([said], lambda _: TurnExtractor(), HashingEmbedder(64), manager=silent, file=file)
    assert [entry.text for entry in banks["d"].entries()] == first["d"]


def test_a_model_that_fails_midway_leaves_a_file_to_go_on_from(tmp_path: Path) -> None:
    file, said, asked = tmp_path / "banks.db", dialogue("d", *LONG), []

    def failing(prompt: Prompt) -> str:
        asked.append(prompt)
        if len(asked) == 3:
            raise ModelError("down")
        return decide(prompt)

    broken = LLMManager(ScriptedPolicy(failing), ONE_TURN)
    with pytest.raises(ModelError, match="down"):
        manage_all([said], lambda _: TurnExtractor(), HashingEmbedder(64), manager=broken, file=file)
    assert made(said, file=file) == made(said)


def test_the_banks_of_another_manager_are_refused(tmp_path: Path) -> None:
    file, said = tmp_path / "banks.db", dialogue("d", *LONG)
    made(said, file=file)
    with pytest.raises(InputError, match=r"made by scripted/manager-3, got other/manager-3"):
        manage_all([said], lambda _: TurnExtractor(), HashingEmbedder(64), manager=manager("other"), file=file)
