"""A file of dialogues and questions is known by how it begins; an evaluation remembers what it asks about, no more."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from memory_r1.bank import HashingEmbedder
from memory_r1.bench.dataset import load_dataset
from memory_r1.cli import main
from memory_r1.cli.flags import ModelFlags
from memory_r1.errors import DialogueError
from memory_r1.policy import Prompt, ScriptedPolicy
from test_longmemeval import record
from test_msc import asked

OWN = [
    {"dialogue": "d", "turn": "t1", "speaker": "Ann", "text": 'I have a "self_instruct" book'},
    {"dialogue": "d", "question": "What does Ann have?", "answer": "a book"},
]


def packed(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize("end", ["", ".gz"])
def test_longmemeval_and_msc_are_known_by_their_first_record(tmp_path: Path, end: str) -> None:
    longmemeval = load_dataset(packed(tmp_path / f"a.json{end}", json.dumps([record()])))
    assert [question.category for question in longmemeval.file.questions] == ["multi-session"]
    msc = load_dataset(packed(tmp_path / f"b.jsonl{end}", json.dumps(asked()) + "\n"))
    assert [dialogue.id for dialogue in msc.file.dialogues] == ["msc-1"]


def test_own_lines_are_own_whatever_people_say(tmp_path: Path) -> None:
    path = packed(tmp_path / "mine.jsonl", "".join(f"{json.dumps(line)}\n" for line in OWN))
    assert [dialogue.id for dialogue in load_dataset(path).file.dialogues] == ["d"]


def test_a_question_type_names_its_dialogues(tmp_path: Path) -> None:
    records = [record(), record(question_id="q2", question_type="knowledge-update"), record(question_id="q3_abs")]
    dataset = load_dataset(packed(tmp_path / "a.json", json.dumps(records)))
    dialogues, questions = dataset.select("multi-session")
    assert [dialogue.id for dialogue in dialogues] == ["q1", "q3_abs"]
    assert [question.id for question in questions] == ["q1", "q3_abs"]


@pytest.mark.parametrize("name", ["none.json", "none.jsonl", "none.json.gz"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DialogueError, match=f"{name}: no such file"):
        load_dataset(tmp_path / name)


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Everything the answer agent is asked; it always answers "5"."""
    policy = ScriptedPolicy(lambda prompt: "Relevant: 1\nAnswer: 5")
    monkeypatch.setattr(ModelFlags, "policy", lambda flags, agent=None: policy)
    monkeypatch.setattr("memory_r1.bank.bank.usual_embedder", lambda maker: HashingEmbedder())
    return policy.prompts


def test_an_evaluation_on_longmemeval_says_when_a_question_is_asked_and_counts_by_type(
    tmp_path: Path, prompts: list[Prompt], capsys: pytest.CaptureFixture[str]
) -> None:
    records = [record(), record(question_id="q2", question_type="knowledge-update")]
    path = packed(tmp_path / "a.json", json.dumps(records))
    assert main(["eval", "longmemeval", "--data", str(path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [one["category"] for one in summary["categories"]] == ["knowledge-update", "multi-session"]
    assert summary["overall"]["metrics"]["exact_match"]["mean"] == 1.0
    assert "Question on 1 June 2023: How many ducks do I keep?" in prompts[0][-1]["content"]


def test_a_sample_remembers_only_the_dialogues_it_asks_about(
    tmp_path: Path, prompts: list[Prompt], capsys: pytest.CaptureFixture[str]
) -> None:
    path = packed(tmp_path / "a.json", json.dumps([record(question_id=f"q{n}") for n in range(4)]))
    assert main(["eval", "longmemeval", "--data", str(path), "--sample", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["bank"]["entries"] == 5
    assert "5/5" in err


def test_msc_is_asked_one_question_a_conversation(
    tmp_path: Path, prompts: list[Prompt], capsys: pytest.CaptureFixture[str]
) -> None:
    path = packed(tmp_path / "b.jsonl", json.dumps(asked()) + "\n")
    assert main(["eval", "msc", "--data", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overall"]["n"] == 1
    assert "Question: How many jobs did you say you have?" in prompts[0][-1]["content"]
