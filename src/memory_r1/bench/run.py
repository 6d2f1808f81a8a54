"""Run a system over dialogues and questions: remember, ask, and keep every answer with what it cost.

Everything a number depends on goes beside it: settings, seed, versions, the data's hash, the command. Left out: what
is computed from predictions (score.py) and other systems to compare with.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from memory_r1.bank import Bank, Embedder
from memory_r1.bench.score import Prediction, Summary, score
from memory_r1.dialogue import Dialogue, Question, Turn
from memory_r1.errors import InputError, PromptError, ReplyError
from memory_r1.memory import Extractor, Fact, Memory
from memory_r1.memory.answer import Answer, AnswerAgent, AnswerSettings, Query
from memory_r1.memory.manage import MemoryManager
from memory_r1.policy.base import Policy

Progress = Callable[[int, int], None]  # (done, of how many)


@dataclass(frozen=True)
class ReadyFacts:
    """An extractor over facts somebody extracted before; a fact comes with the first of its turns."""

    facts: Sequence[Fact]
    turns_at_once: int = 64

    def extract(self, turns: Sequence[Turn]) -> list[Fact]:
        """The facts whose first turn is among `turns`, in their own order."""
        ids = {turn.id for turn in turns}
        return [fact for fact in self.facts if fact.turn_ids and fact.turn_ids[0] in ids]


def remember_all(
    dialogues: Sequence[Dialogue],
    extractor: Callable[[Dialogue], Extractor],
    embedder: Embedder | None = None,
    progress: Progress | None = None,
    manager: Callable[[Dialogue], MemoryManager | None] = lambda dialogue: None,
) -> dict[str, Bank]:
    """A bank in memory for each dialogue, keyed by dialogue id. Progress in turns.

    Args:
        manager: that of a dialogue; None adds every fact.

    Raises:
        PolicyError: some turns could not be remembered, so that every score over them would mislead.
    """
    banks: dict[str, Bank] = {}
    total, settled = sum(len(dialogue.turns) for dialogue in dialogues), 0
    for dialogue in dialogues:
        bank = Bank.open(":memory:", scope=dialogue.id, embedder=embedder)
        before = settled

        def step(done: int, _: int, before: int = before) -> None:
            if progress:
                progress(before + done, total)

        report = Memory(bank, manager=manager(dialogue), extractor=extractor(dialogue)).remember(dialogue, step)
        if report.failures:
            first = report.failures[0]
            raise ReplyError(
                f"{dialogue.id}: {len(report.failures)} parts failed, first {first.turn_ids}: {first.reason}"
            )
        settled += len(dialogue.turns)
        banks[dialogue.id] = bank
    return banks


def predict(
    banks: Mapping[str, Bank],
    questions: Sequence[Question],
    policy: Policy,
    settings: AnswerSettings,
    *,
    batch: int = 16,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answer every question from its dialogue's bank, in order.

    Latency is the wall time of a batch divided by its questions, and what a completion took that comes from a cache;
    `batch=1` gives what one user waits for.

    Raises:
        InputError: `batch` is below 1.
        PolicyError: the model failed.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}, expected at least 1")
    agent, predictions = AnswerAgent(policy, settings), list[Prediction]()
    for start in range(0, len(questions), batch):
        predictions += _predicted(agent, banks, questions[start : start + batch])
        if progress:
            progress(len(predictions), len(questions))
    return predictions


def _predicted(agent: AnswerAgent, banks: Mapping[str, Bank], questions: Sequence[Question]) -> list[Prediction]:
    """One batch; when the policy cannot complete one of its prompts, each is asked alone and that one fails."""
    began = time.perf_counter()
    asked = [(banks[question.dialogue_id], Query.of(question)) for question in questions]
    try:
        answers = agent.answer(asked)
    except PromptError as error:
        if len(questions) > 1:
            return [prediction for question in questions for prediction in _predicted(agent, banks, [question])]
        return [Prediction(questions[0], "", (), (), 0, 1, time.perf_counter() - began, str(error))]
    seconds = (time.perf_counter() - began) / len(questions)
    return [_prediction(question, answer, seconds) for question, answer in zip(questions, answers, strict=True)]


def _prediction(question: Question, answer: Answer, seconds: float) -> Prediction:
    return Prediction(
        question=question,
        answer=answer.text,
        retrieved=answer.retrieved,
        distilled=answer.distilled,
        context_tokens=answer.completion.prompt_tokens,
        model_calls=1 if answer.retrieved else 0,
        latency_s=seconds + answer.completion.waited_s,
        failure=None if answer.text else "empty reply",
        reply=answer.completion.text,
        well_formed=answer.well_formed,
    )


def save_results(
    folder: Path, config: object, data: Mapping[str, str], summary: Summary, predictions: Sequence[Prediction]
) -> Path:
    """Write results.json: what was run, on what, with which versions, the summary, and every prediction."""
    claim_folder(folder)
    content = {
        **provenance(config),
        "data": dict(data),
        "summary": summary.as_dict(),
        "predictions": [_record(prediction) for prediction in predictions],
    }
    path = folder / "results.json"
    text = json.dumps(content, ensure_ascii=False, indent=1)
    path.write_bytes(text.encode(errors="backslashreplace"))  # half an emoji in a reply becomes JSON's own escape
    return path


def claim_folder(folder: Path) -> None:
    """Make a folder for results, before the minutes of making them; raises InputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}), expected a folder for results") from error


def provenance(config: object) -> dict[str, Any]:
    """What a result depends on beside its data: command, settings, versions, machine, time."""
    return {
        "command": " ".join(sys.argv),
        "config": plain(config),
        "versions": {name: _version(name) for name in ("memory-r1", "torch", "transformers", "peft", "numpy")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def plain(value: object) -> Any:
    """Dataclasses, paths and times as JSON can hold them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: plain(item) for key, item in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _record(prediction: Prediction) -> dict[str, object]:
    question = prediction.question
    return {
        "id": question.id,
        "category": question.category,
        "question": question.text,
        "gold": question.answer,
        "answer": prediction.answer,
        "reply": prediction.reply,
        "failure": prediction.failure,
        "well_formed": prediction.well_formed,
        "retrieved": [{"text": entry.text, "turn_ids": list(entry.turn_ids)} for entry in prediction.retrieved],
        "distilled": [list(entry.turn_ids) for entry in prediction.distilled],
        "context_tokens": prediction.context_tokens,
        "latency_s": round(prediction.latency_s, 4),
        "scores": score(prediction),
    }
