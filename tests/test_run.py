"""A benchmark's run: facts made ready, predictions in order, and a results file that says what they rest on."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from memory_r1.bank import Bank, Embedder, HashingEmbedder, Operation
from memory_r1.bench.dataset import Dataset, load_dataset
from memory_r1.bench.run import ReadyFacts, plain, predict, remember_all, save_results
from memory_r1.bench.score import Prediction, summarise
from memory_r1.dialogue import Dialogue, Question, Session, Turn
from memory_r1.errors import DialogueError, InputError
from memory_r1.memory import AnswerSettings, Extractor, Fact, LLMExtractor, TurnExtractor
from memory_r1.policy import Prompt, ScriptedPolicy

ONE = AnswerSettings(k=1, per_speaker=False)
MONDAY = datetime(2023, 5, 8)


def embedder() -> Embedder:
    return HashingEmbedder(64)


def dialogue(name: str, *texts: str) -> Dialogue:
    turns = tuple(Turn(f"{name}/t{n}", "Ann", text, MONDAY) for n, text in enumerate(texts, start=1))
    return Dialogue(name, (Session("s", MONDAY, turns),))


def banks_of(*dialogues: Dialogue) -> dict[str, Bank]:
    return remember_all(dialogues, lambda dialogue: TurnExtractor(), embedder())


def question(name: str, dialogue_id: str, text: str = "a dog?", gold: str = "dog") -> Question:
    return Question(name, dialogue_id, text, gold)


def echo(prompt: Prompt) -> str:
    """A reply that repeats the memory it was shown."""
    memory = prompt[-1]["content"].splitlines()[1]
    return f"Relevant: 1\nAnswer: {memory.split(': ')[-1]}"


# Ready-made facts


def test_a_ready_fact_comes_with_the_first_of_its_turns_and_in_its_own_order() -> None:
    early, late, both, nowhere = (
        Fact("early", turn_ids=("t1",)),
        Fact("late", turn_ids=("t3",)),
        Fact("both", turn_ids=("t2", "t1")),
        Fact("nowhere"),
    )
    extractor: Extractor = ReadyFacts((late, both, early, nowhere))
    turns = [Turn(f"t{n}", "Ann", "x") for n in (1, 2, 3)]
    assert extractor.extract(turns) == [late, both, early]
    assert extractor.extract(turns[:1]) == [early]
    assert extractor.extract(turns[1:]) == [late, both]
    assert extractor.extract([]) == []


def test_every_ready_fact_of_known_turns_is_remembered_once() -> None:
    said = dialogue("d", *(f"text {n}" for n in range(5)))
    facts = [Fact(f"fact {n}", "Ann", MONDAY, (f"d/t{n}", f"d/t{n + 1}")) for n in (1, 2, 3)]
    banks = remember_all([said], lambda dialogue: ReadyFacts(facts, turns_at_once=2), embedder())
    assert [entry.text for entry in banks["d"].entries()] == ["fact 1", "fact 2", "fact 3"]
    assert banks["d"].entries()[0].turn_ids == ("d/t1", "d/t2")


# Remembering and answering


def test_each_dialogue_has_its_own_bank_whose_scope_is_its_id() -> None:
    steps: list[tuple[int, int]] = []
    banks = remember_all(
        [dialogue("a", "dog"), dialogue("b", "cat", "hen")],
        lambda dialogue: TurnExtractor(),
        embedder(),
        lambda done, total: steps.append((done, total)),
    )
    assert {name: (bank.scope, [e.text for e in bank.entries()]) for name, bank in banks.items()} == {
        "a": ("a", ["dog"]),
        "b": ("b", ["cat", "hen"]),
    }
    assert steps == [(1, 3), (3, 3)]


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_predictions_come_in_the_questions_order_each_from_its_own_dialogue(batch: int) -> None:
    banks = banks_of(dialogue("a", "a dog"), dialogue("b", "a cat"))
    asked = [question(f"q{n}", name) for n, name in enumerate("abbaab")]  # interleaved
    steps: list[int] = []
    predictions = predict(
        banks, asked, ScriptedPolicy(echo), ONE, batch=batch, progress=lambda done, total: steps.append(done)
    )
    assert [prediction.question for prediction in predictions] == asked
    assert [prediction.answer for prediction in predictions] == ["a dog", "a cat", "a cat", "a dog", "a dog", "a cat"]
    assert steps == sorted(steps)
    assert steps[-1] == 6


def test_a_prediction_says_what_it_rests_on_and_what_it_cost() -> None:
    banks = banks_of(dialogue("a", "a dog"))
    (prediction,) = predict(banks, [question("q", "a")], ScriptedPolicy(["Relevant: 1\nAnswer: dog"]), ONE)
    (entry,) = banks["a"].entries()
    assert (prediction.answer, prediction.reply) == ("dog", "Relevant: 1\nAnswer: dog")
    assert (prediction.retrieved, prediction.distilled) == ((entry,), (entry,))
    assert (prediction.failure, prediction.well_formed, prediction.model_calls) == (None, True, 1)
    assert prediction.context_tokens > 0
    assert prediction.latency_s > 0


def test_an_empty_reply_is_a_failure_and_an_empty_bank_costs_no_call() -> None:
    banks = banks_of(dialogue("a", "a dog"))
    (prediction,) = predict(banks, [question("q", "a")], ScriptedPolicy([""]), ONE)
    assert (prediction.failure, prediction.model_calls) == ("empty reply", 1)
    with Bank.open(":memory:", embedder=embedder()) as empty:
        (prediction,) = predict({"a": empty}, [question("q", "a")], ScriptedPolicy([]), ONE)
    assert (prediction.failure, prediction.model_calls, prediction.context_tokens) == ("empty reply", 0, 0)


def test_no_questions_give_no_predictions_and_a_batch_below_1_is_refused() -> None:
    assert predict({}, [], ScriptedPolicy([]), ONE) == []
    with pytest.raises(InputError, match="batch is 0, expected at least 1"):
        predict({}, [], ScriptedPolicy([]), ONE, batch=0)


# results.json


@dataclass(frozen=True)
class Config:
    """Values of every kind that a command's flags have."""

    folder: Path = Path("runs/x")
    when: datetime = MONDAY
    answer: AnswerSettings = ONE
    names: tuple[str, ...] = ("a", "b")
    sizes: dict[int, float] = field(default_factory=lambda: {5: 0.5})
    limit: int | None = None


def predictions_of(reply: str) -> list[Prediction]:
    banks = banks_of(dialogue("a", "a dog", "Привет 👋"))
    asked = [Question("q1", "a", "a dog?", "dog", "single-hop", ("a/t1",)), question("q2", "a", "Привет?")]
    return predict(banks, asked, ScriptedPolicy([reply, reply]), ONE)


def strict(path: Path) -> Any:
    """JSON as every parser reads it: UTF-8, and neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(path.read_bytes().decode("utf-8"), parse_constant=refuse)


def test_results_say_what_was_run_on_what_with_which_versions_and_keep_every_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["memory-r1", "eval", "own"])
    predictions = predictions_of("Relevant: 1\nAnswer: dog")
    summary = summarise(predictions)
    path = save_results(tmp_path / "new" / "run", Config(), {"sha256": "abc"}, summary, predictions)
    results = strict(path)
    assert path == tmp_path / "new" / "run" / "results.json"
    assert results["command"] == "memory-r1 eval own"
    assert results["versions"]["numpy"] == version("numpy")
    assert results["data"] == {"sha256": "abc"}
    assert results["config"]["answer"] == {"k": 1, "per_speaker": False, "distill": True, "max_tokens": 64}
    assert datetime.fromisoformat(results["time"]).tzinfo is not None
    assert results["summary"]["overall"]["n"] == 2
    first, second = results["predictions"]
    assert (first["id"], first["gold"], first["answer"], first["category"]) == ("q1", "dog", "dog", "single-hop")
    assert first["retrieved"] == [{"text": "a dog", "turn_ids": ["a/t1"]}]
    assert first["distilled"] == [["a/t1"]]
    assert first["scores"]["exact_match"] == 1.0
    assert second["retrieved"][0]["text"] == "Привет 👋"


def test_settings_paths_and_times_are_written_as_plain_values() -> None:
    assert plain(Config()) == {
        "folder": "runs/x", "when": str(MONDAY), "names": ["a", "b"], "sizes": {"5": 0.5}, "limit": None,
        "answer": {"k": 1, "per_speaker": False, "distill": True, "max_tokens": 64},
    }  # fmt: skip


def test_half_an_emoji_in_a_reply_does_not_cost_the_results(tmp_path: Path) -> None:
    predictions = predictions_of("Relevant: 1\nAnswer: dog \ud83d")
    path = save_results(tmp_path, None, {}, summarise(predictions), predictions)
    assert strict(path)["predictions"][0]["answer"] == "dog \ud83d"


# Files of dialogues and questions


def locomo_sample(name: str) -> dict[str, Any]:
    """A conversation of two turns with one fact and two questions, one of them adversarial."""
    return {
        "sample_id": name,
        "conversation": {
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ada", "dia_id": "D1:1", "text": "I have a red kite."},
                {"speaker": "Ben", "dia_id": "D1:2", "text": "Lovely."},
            ],
        },
        "observation": {"session_1_observation": {"Ada": [["Ada has a kite.", "D1:1"]]}},
        "qa": [
            {"question": "What has Ada?", "answer": "a kite", "evidence": ["D1:1"], "category": 4},
            {"question": "What has Ben?", "adversarial_answer": "a kite", "evidence": ["D1:1"], "category": 5},
        ],
    }


@pytest.fixture
def locomo(tmp_path: Path) -> Path:
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps([locomo_sample("conv-26"), locomo_sample("conv-30")]), encoding="utf-8")
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Three dialogues; d3 has no questions."""
    records = [
        *({"dialogue": f"d{n}", "speaker": "Ann", "text": f"text {n}"} for n in (1, 2, 3)),
        {"dialogue": "d2", "id": "q2", "question": "Two?", "answer": "2"},
        {"dialogue": "d1", "id": "q1", "question": "One?", "answer": "1"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


def selected(dataset: Dataset, part: str) -> tuple[list[str], list[str]]:
    dialogues, questions = dataset.select(part)
    return [dialogue.id for dialogue in dialogues], [question.id for question in questions]


def test_own_data_is_selected_whole_or_by_ids(own: Path) -> None:
    dataset = load_dataset(own)
    assert dataset.sha256 == hashlib.sha256(own.read_bytes()).hexdigest()
    assert selected(dataset, "all") == (["d1", "d2", "d3"], ["q2", "q1"])
    assert selected(dataset, "d1") == (["d1"], ["q1"])
    assert selected(dataset, " d3 , d2,") == (["d3", "d2"], ["q2"])


@pytest.mark.parametrize("part", ["d9", "train", "d1,d9", "D1"])
def test_an_unknown_part_is_refused_with_the_known_dialogues(own: Path, part: str) -> None:
    with pytest.raises(InputError, match=r"unknown dialogue .* the file has: d1, d2, d3"):
        load_dataset(own).select(part)


@pytest.mark.parametrize("part", ["d3", "", ","])
def test_a_part_without_questions_is_refused(own: Path, part: str) -> None:
    with pytest.raises(InputError, match=f"{part!r} has no questions, expected dialogues with some"):
        load_dataset(own).select(part)


def test_locomo_is_selected_by_split_or_by_conversation(locomo: Path) -> None:
    dataset = load_dataset(locomo)
    assert selected(dataset, "train") == (["conv-26"], ["conv-26/q1"])
    assert selected(dataset, "val") == (["conv-30"], ["conv-30/q1"])
    assert selected(dataset, "conv-30,conv-26")[0] == ["conv-30", "conv-26"]
    assert selected(dataset, "all")[0] == ["conv-26", "conv-30"]
    assert dataset.categories["4"] == "single-hop"
    with pytest.raises(InputError, match="unknown dialogue 'conv-41'"):
        dataset.select("test")


def test_adversarial_questions_are_asked_only_on_request(locomo: Path) -> None:
    assert selected(load_dataset(locomo, adversarial=True), "train")[1] == ["conv-26/q1", "conv-26/q2"]


def test_facts_come_from_turns_from_the_file_or_from_a_model(locomo: Path, own: Path) -> None:
    dataset = load_dataset(locomo)
    (said, _), policy = dataset.file.dialogues, ScriptedPolicy([])
    assert dataset.extractor("turns")(said) == TurnExtractor()
    assert dataset.extractor("llm", policy)(said) == LLMExtractor(policy)
    ready = dataset.extractor("facts")(said)
    assert [fact.text for fact in ready.extract(said.turns)] == ["Ada has a kite."]
    with pytest.raises(InputError, match="needs a policy"):
        dataset.extractor("llm")
    with pytest.raises(InputError, match="has no ready-made facts"):
        load_dataset(own).extractor("facts")


@pytest.mark.parametrize("name", ["none.json", "none.jsonl"])
def test_a_missing_file_is_refused_in_either_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(DialogueError, match="no such file"):
        load_dataset(tmp_path / name)


def test_a_fork_of_a_remembered_bank_can_be_asked_too() -> None:
    banks = banks_of(dialogue("a", "a dog"))
    branch = banks["a"].fork()
    branch.apply([Operation.update("e1", "a hen")])
    (prediction,) = predict({"a": branch}, [question("q", "a")], ScriptedPolicy(echo), ONE)
    assert prediction.answer == "a hen"
