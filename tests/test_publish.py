"""Adapters to be passed on: half the size, equal in use but for rounding, refused where something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import new_learner
from memory_r1.data import adapter_path
from memory_r1.errors import InputError
from memory_r1.memory.answer import AnswerSettings
from memory_r1.memory.card import read_card, write_card
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.publish import publish

SETTINGS = AnswerSettings(k=3)


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    learner, folder = new_learner(tiny_folder), tmp_path / "adapter"
    for _ in range(3):
        (-learner.logprobs([5, 9], [[3, 1, 4]])[0].mean()).backward()  # type: ignore[no-untyped-call]
        learner.step(1e-2)
    learner.save(folder)
    write_card(folder, tiny_folder.name, SETTINGS)
    return folder


def test_a_published_adapter_is_the_trained_one_in_bfloat16(adapter: Path, tiny_folder: Path, tmp_path: Path) -> None:
    publish(adapter, tmp_path / "shipped")
    trained, shipped = (load_file(f / "adapter_model.safetensors") for f in (adapter, tmp_path / "shipped"))
    assert {name: weight.to(torch.bfloat16).tolist() for name, weight in trained.items()} == {
        name: weight.tolist() for name, weight in shipped.items()
    }
    assert all(weight.dtype == torch.bfloat16 for weight in shipped.values())
    assert read_card(tmp_path / "shipped", AnswerSettings, tiny_folder.name) == SETTINGS
    assert LocalPolicy(tiny_folder, adapter=tmp_path / "shipped", device="cpu").model is not None


def test_what_is_no_adapter_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json, adapter_model\.safetensors, memory_r1\.json missing"):
        publish(tmp_path, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


@pytest.mark.parametrize("agent", ["answer", "manager"])
def test_an_adapter_that_ships_is_small_and_knows_its_agent(agent: str) -> None:
    path = adapter_path(agent)  # type: ignore[arg-type]
    if path is None:
        pytest.skip(f"no adapter ships for the {agent} agent")
    assert (path / "adapter_model.safetensors").stat().st_size < 6_000_000
    assert agent in (path / "memory_r1.json").read_text()
