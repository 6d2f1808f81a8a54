"""Completions kept in a file: asked once, found again, never mixed up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from memory_r1.errors import InputError, PromptError, ReplyError
from memory_r1.policy import CachedPolicy, Completion, LocalPolicy, Prompt, Sampling, ScriptedPolicy
from memory_r1.policy.cached import weights_of

GREEDY = Sampling(max_tokens=8)


def asked(*texts: str) -> list[Prompt]:
    return [[{"role": "user", "content": text}] for text in texts]


def echo(prompt: Prompt) -> str:
    return prompt[-1]["content"].upper()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "made" / "completions.db"


def test_a_prompt_is_completed_once_and_found_again_in_order(file: Path) -> None:
    inner = ScriptedPolicy(echo)
    first = CachedPolicy(inner, file).complete(asked("a", "b", "a"), GREEDY)
    again = CachedPolicy(inner, file).complete(asked("b", "c", "a"), GREEDY)
    assert [one.text for one in first] == ["A", "B", "A"]
    assert [one.text for one in again] == ["B", "C", "A"]
    assert [prompt[0]["content"] for prompt in inner.prompts] == ["a", "b", "c"]


def test_what_was_kept_says_how_long_it_took_and_what_is_new_does_not(file: Path) -> None:
    policy = CachedPolicy(ScriptedPolicy(echo), file)
    [new] = policy.complete(asked("a"), GREEDY)
    [kept] = policy.complete(asked("a"), GREEDY)
    assert new.waited_s == 0.0
    assert 0 < kept.waited_s < 1
    assert replace(kept, waited_s=0.0) == new


def test_every_field_of_a_completion_survives(file: Path) -> None:
    whole = Completion("hé\ud83d", "length", 7, 3, (1, 2, 3), (-0.1, -2.5, -1e-9))

    class Writes(ScriptedPolicy):
        def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
            return [whole for _ in prompts]

    policy = CachedPolicy(Writes([]), file)
    assert policy.complete(asked("a"), GREEDY) == [whole]
    assert [replace(one, waited_s=0.0) for one in policy.complete(asked("a"), GREEDY)] == [whole]


@pytest.mark.parametrize(
    "other",
    [
        lambda file: (CachedPolicy(ScriptedPolicy(["other"], name="other"), file), asked("a"), GREEDY),
        lambda file: (CachedPolicy(ScriptedPolicy(["other"]), file), asked("a "), GREEDY),
        lambda file: (CachedPolicy(ScriptedPolicy(["other"]), file), asked("a"), Sampling(max_tokens=9)),
        lambda file: (CachedPolicy(ScriptedPolicy(["other"]), file), asked("a"), Sampling(max_tokens=8, schema={})),
        lambda file: (
            CachedPolicy(ScriptedPolicy(["other"]), file),
            [[{"role": "system", "content": "a"}]],
            GREEDY,
        ),
    ],
)
def test_another_policy_prompt_or_limit_is_asked_anew(
    file: Path, other: Callable[[Path], tuple[CachedPolicy, list[Prompt], Sampling]]
) -> None:
    CachedPolicy(ScriptedPolicy(echo), file).complete(asked("a"), GREEDY)
    policy, prompts, sampling = other(file)
    assert [one.text for one in policy.complete(prompts, sampling)] == ["other"]


def test_what_is_drawn_by_chance_is_never_kept(file: Path) -> None:
    policy = CachedPolicy(ScriptedPolicy(["one", "two"]), file)
    hot = Sampling(temperature=1.0, seed=1)
    assert [policy.complete(asked("a"), hot)[0].text for _ in range(2)] == ["one", "two"]


def test_a_failure_keeps_nothing_and_what_was_kept_before_stays(file: Path) -> None:
    policy = CachedPolicy(ScriptedPolicy(["one"]), file)
    policy.complete(asked("a"), GREEDY)
    with pytest.raises(ReplyError):
        policy.complete(asked("a", "b"), GREEDY)
    assert policy.complete(asked("a"), GREEDY)[0].text == "one"


def test_a_prompt_that_cannot_be_completed_is_not_kept_as_an_answer(file: Path) -> None:
    def refuse(prompt: Prompt) -> str:
        raise PromptError("too long")

    with pytest.raises(PromptError):
        CachedPolicy(ScriptedPolicy(refuse), file).complete(asked("a"), GREEDY)
    assert CachedPolicy(ScriptedPolicy(echo), file).complete(asked("a"), GREEDY)[0].text == "A"


def test_more_prompts_than_a_query_takes_are_all_found(file: Path) -> None:
    prompts, inner = asked(*(str(n) for n in range(1200))), ScriptedPolicy(echo)
    CachedPolicy(inner, file).complete(prompts, GREEDY)
    assert [one.text for one in CachedPolicy(inner, file).complete(prompts, GREEDY)] == [str(n) for n in range(1200)]
    assert len(inner.prompts) == 1200


def test_a_file_of_something_else_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("dear diary\n" * 100)
    with pytest.raises(InputError, match=r"notes\.txt: cannot keep completions"):
        CachedPolicy(ScriptedPolicy(echo), other)
    assert other.read_text() == "dear diary\n" * 100


def test_several_processes_share_a_file(file: Path) -> None:
    code = """
import sys
from pathlib import Path
from memory_r1.policy import CachedPolicy, Sampling, ScriptedPolicy
policy = CachedPolicy(ScriptedPolicy(lambda prompt: prompt[0]["content"].upper()), Path(sys.argv[1]))
for n in range(60):
    [found] = policy.complete([[{"role": "user", "content": f"p{n}"}]], Sampling(max_tokens=8))
    assert found.text == f"P{n}", found
"""
    running = [subprocess.Popen([sys.executable, "-c", code, str(file)]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in running] == [0] * 4
    inner = ScriptedPolicy(echo)
    CachedPolicy(inner, file).complete(asked(*(f"p{n}" for n in range(60))), GREEDY)
    assert inner.prompts == []


def test_a_local_model_is_told_apart_by_its_files_and_its_precision(tiny_folder: Path, tmp_path: Path) -> None:
    plain = weights_of(LocalPolicy(tiny_folder, device="cpu"))
    assert weights_of(LocalPolicy(tiny_folder, device="cpu")) == plain
    assert weights_of(LocalPolicy(tiny_folder, device="cpu", precision="bfloat16")) != plain
    copy = tmp_path / tiny_folder.name
    copy.mkdir()
    for part in tiny_folder.iterdir():
        (copy / part.name).write_bytes(part.read_bytes())
    before = weights_of(LocalPolicy(copy, device="cpu"))
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()), indent=3))
    assert weights_of(LocalPolicy(copy, device="cpu")) != before


def test_a_model_that_was_kept_need_not_be_loaded(tiny_folder: Path, file: Path) -> None:
    [made] = CachedPolicy(LocalPolicy(tiny_folder, device="cpu"), file).complete(asked("a b c"), GREEDY)
    later = LocalPolicy(tiny_folder, device="cpu")
    [kept] = CachedPolicy(later, file).complete(asked("a b c"), GREEDY)
    assert replace(kept, waited_s=0.0) == made
    assert later._model is None
