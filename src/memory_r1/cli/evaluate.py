"""memory-r1 eval: score answers, or retrieval alone, on LoCoMo, LongMemEval, MSC or people's own data."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from memory_r1.cli.flags import AnswerFlags, ModelFlags
from memory_r1.cli.show import Step, print_json, progress
from memory_r1.errors import InputError

if TYPE_CHECKING:
    from memory_r1.bank import Bank
    from memory_r1.bench.dataset import Dataset
    from memory_r1.bench.score import Prediction
    from memory_r1.dialogue import Dialogue, Question
    from memory_r1.memory import Extractor
    from memory_r1.memory.answer import AnswerSettings
    from memory_r1.policy import Policy

DATA_VARIABLE = "MEMORY_R1_DATA"


@dataclass(frozen=True)
class _Eval:
    model: Annotated[ModelFlags, tyro.conf.arg(name="")] = field(default_factory=ModelFlags)
    answer: Annotated[AnswerFlags, tyro.conf.arg(name="")] = field(default_factory=AnswerFlags)
    extract: Literal["turns", "facts", "llm"] = "turns"
    """what an entry is made of: the turn itself, the file's ready-made facts (LoCoMo), or facts the model writes"""
    manager: Literal["add-only", "llm"] = "add-only"
    """what makes the bank: add-only adds every fact; llm asks a model to ADD, UPDATE, DELETE or leave each"""
    manager_adapter: Path | None = None
    """llm: the memory manager's adapter on the same model; default: the model alone"""
    bank: Path | None = None
    """llm: keep the banks in this file, a scope for each dialogue; what it holds already is not made again"""
    recall: bool = False
    """only measure evidence recall of the retrieval, which needs no language model"""
    out: Path | None = None
    """folder for results.json: every prediction, with config, versions and the data's hash"""
    cache: Path | None = None
    """file that keeps what the models wrote: an evaluation that was stopped, or is made again, asks only for the rest;
    default: completions.db in --out"""
    limit: int | None = None
    """only the first questions"""
    sample: int | None = None
    """only so many questions, drawn by --seed and asked in their order"""
    batch: int = 16
    """questions answered together; 1 measures the latency one user sees"""
    seed: int = 0
    """of the bootstrap, and of what --sample draws"""
    samples: int = 0
    """also print this many questions with gold and answer"""
    json: bool = False
    """print the summary as JSON"""

    def _evaluate(self, dataset: Dataset, part: str, title: str) -> int:
        from memory_r1.bench.run import claim_folder

        self._check_manager()
        for flag, value in (("limit", self.limit), ("sample", self.sample), ("batch", self.batch)):
            if value is not None and value < 1:
                raise InputError(f"--{flag} is {value}, expected at least 1")
        if self.recall and self.out:
            raise InputError("--recall prints its figures and writes no results: leave --out out")
        if self.out:
            claim_folder(self.out)
        dialogues, questions = dataset.select(part)
        questions = self._some(questions)
        asked = {question.dialogue_id for question in questions}
        dialogues = [dialogue for dialogue in dialogues if dialogue.id in asked]
        # made before the minutes of remembering, so that a wrong flag is refused at once
        policy = None if self.recall and self.extract != "llm" else self.model.policy("answer")
        settings = self.answer.settings(policy) if policy else None
        policy = self._cached(policy) if policy else None
        with progress("remembering") as step:
            banks = self._remembered(dialogues, dataset.extractor(self.extract, policy), step)
        if self.recall or policy is None or settings is None:
            return self._recall(banks, questions, title)
        return self._answer(dataset, banks, questions, policy, settings, title)

    def _some(self, questions: list[Question]) -> list[Question]:
        """The questions that --limit and --sample leave."""
        questions = questions[: self.limit]
        if self.sample is None or self.sample >= len(questions):
            return questions
        return [questions[i] for i in sorted(random.Random(self.seed).sample(range(len(questions)), self.sample))]

    def _check_manager(self) -> None:
        if self.manager == "add-only" and (self.manager_adapter or self.bank):
            raise InputError("--manager-adapter and --bank belong to --manager llm: name it, or leave them out")

    def _remembered(
        self, dialogues: list[Dialogue], extractor: Callable[[Dialogue], Extractor], step: Step
    ) -> dict[str, Bank]:
        from memory_r1.bench.managed import manage_all
        from memory_r1.bench.run import remember_all
        from memory_r1.memory.card import manager_of

        if self.manager == "add-only":
            return remember_all(dialogues, extractor, progress=step)
        manager = manager_of(replace(self.model, adapter=self.manager_adapter).policy("manager"))
        manager = replace(manager, policy=self._cached(manager.policy))
        return manage_all(dialogues, extractor, progress=step, manager=manager, file=self.bank)

    def _cached(self, policy: Policy) -> Policy:
        """The policy, with what it writes kept where these flags say."""
        from memory_r1.policy import CachedPolicy

        file = self.cache or (self.out / "completions.db" if self.out else None)
        return CachedPolicy(policy, file) if file else policy

    def _recall(self, banks: dict[str, Bank], questions: list[Question], title: str) -> int:
        from memory_r1.bench.score import evidence_recall_at

        asked = sum(bool(question.evidence) for question in questions)
        recalls = evidence_recall_at(lambda q, k: banks[q.dialogue_id].search(q.text, k=k), questions)
        if self.json:
            print_json({"questions": asked, "evidence_recall": recalls})
            return 0
        print(f"{title}: evidence recall over {asked} questions")
        print("  ".join(f"@{k} {100 * recall:.1f}" for k, recall in recalls.items()))
        return 0

    def _answer(
        self,
        dataset: Dataset,
        banks: dict[str, Bank],
        questions: list[Question],
        policy: Policy,
        settings: AnswerSettings,
        title: str,
    ) -> int:
        from memory_r1.bench.managed import bank_counts
        from memory_r1.bench.run import predict, save_results
        from memory_r1.bench.score import render, summarise

        with progress("answering") as step:
            predictions = predict(banks, questions, policy, settings, batch=self.batch, progress=step)
        summary = summarise(predictions, seed=self.seed, names=dataset.categories)
        counts = bank_counts(banks.values())
        if self.out:
            data = {"path": str(dataset.path), "sha256": dataset.sha256, "policy": policy.name}
            config = {"eval": self, "answer": settings, "bank": counts}
            save_results(self.out, config, data, summary, predictions)
        if self.json:
            print_json({**summary.as_dict(), "bank": counts})
            return 0
        _print_samples(predictions[: self.samples])
        _print_table(render(summary, f"{title}, {policy.name}, k={settings.k}"))
        print("bank: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
        return 0


@dataclass(frozen=True)
class EvalLocomo(_Eval):
    """Score on LoCoMo (locomo10.json) by Memory-R1's split; category 5 is left out unless asked for.

    Example: memory-r1 eval locomo --split val --data locomo10.json --out runs/val
    """

    split: str = "val"
    """train (152 questions), val (81), test (1,307), all; or some of these and conversation ids, between commas"""
    data: Path | None = None
    """locomo10.json; default: that file in the folder named by MEMORY_R1_DATA"""
    adversarial: bool = False
    """also ask category 5, whose answers are not in the conversations"""

    def run(self) -> int:
        """0; prints a table by category."""
        from memory_r1.bench.dataset import locomo_dataset

        dataset = locomo_dataset(self.data or _default_data("locomo10.json"), adversarial=self.adversarial)
        return self._evaluate(dataset, self.split, f"LoCoMo {self.split}")


@dataclass(frozen=True)
class EvalLongMemEval(_Eval):
    """Score on LongMemEval's official files, oracle or S: each question over a history of its own.

    Example: memory-r1 eval longmemeval --data longmemeval_oracle.json --sample 150 --out runs/lme
    """

    data: Path | None = None
    """the file, packed (.gz) or not; default: longmemeval_oracle.json in the folder named by MEMORY_R1_DATA"""
    types: str = "all"
    """all, or question types between commas, such as multi-session,knowledge-update"""

    def run(self) -> int:
        """0; prints a table by question type."""
        from memory_r1.bench.dataset import longmemeval_dataset

        dataset = longmemeval_dataset(self.data or _default_data("longmemeval_oracle.json"))
        return self._evaluate(dataset, self.types, f"LongMemEval {self.types}")


@dataclass(frozen=True)
class EvalMsc(_Eval):
    """Score on MSC-Self-Instruct: one question for each conversation of a few sessions.

    Example: memory-r1 eval msc --data msc_self_instruct.jsonl --out runs/msc
    """

    data: Path | None = None
    """the file, packed (.gz) or not; default: msc_self_instruct.jsonl in the folder named by MEMORY_R1_DATA"""

    def run(self) -> int:
        """0; prints a table."""
        from memory_r1.bench.dataset import msc_dataset

        return self._evaluate(msc_dataset(self.data or _default_data("msc_self_instruct.jsonl")), "all", "MSC")


@dataclass(frozen=True)
class EvalOwn(_Eval):
    """Score on your own dialogues and questions (JSONL).

    Example: memory-r1 eval own --data mine.jsonl --adapter runs/mine/adapter --samples 10
    """

    data: Path = tyro.MISSING
    """JSONL of turns and questions, see docs/own-data.md"""
    dialogues: str = "all"
    """all, or dialogue ids separated by commas"""

    def run(self) -> int:
        """0; prints a table by category."""
        from memory_r1.bench.dataset import load_dataset

        return self._evaluate(load_dataset(self.data), self.dialogues, self.data.name)


@dataclass(frozen=True)
class Eval:
    """Score answers on LoCoMo, LongMemEval, MSC or your own data.

    Example: memory-r1 eval own --data mine.jsonl
    """

    bench: tyro.conf.OmitSubcommandPrefixes[
        Annotated[EvalLocomo, tyro.conf.subcommand("locomo")]
        | Annotated[EvalLongMemEval, tyro.conf.subcommand("longmemeval")]
        | Annotated[EvalMsc, tyro.conf.subcommand("msc")]
        | Annotated[EvalOwn, tyro.conf.subcommand("own")]
    ]

    def run(self) -> int:
        """Run the benchmark."""
        return self.bench.run()


def _default_data(name: str) -> Path:
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        raise InputError(f"--data is missing: name {name}, or the folder it lies in with {DATA_VARIABLE}")
    return Path(folder) / name


def _print_samples(predictions: list[Prediction]) -> None:
    for prediction in predictions:
        question = prediction.question
        print(f"[{question.category}] {question.text}\n    gold: {question.answer}\n    said: {prediction.answer}")


def _print_table(table: object) -> None:
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=150)
    console.print(table)
