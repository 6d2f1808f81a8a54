"""memory-r1 demo: the whole path on the bundled example, with the embedded model, in minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memory_r1.cli.show import note, progress
from memory_r1.cli.train import reporter

if TYPE_CHECKING:
    from memory_r1.bank import Bank
    from memory_r1.bench.dataset import Dataset
    from memory_r1.bench.score import Prediction

TRAINED_ON, UNSEEN = "ines-tom", "ravi-hanna"
_SHOWN = ("exact_match", "typed", "f1_mem0", "f1_locomo", "bleu1", "groundedness", "distilled_recall")


@dataclass(frozen=True)
class Demo:
    """Remember a dialogue, train the answer agent on its questions by GRPO, and answer questions about another one.

    Everything is real: the embedded SmolLM2-135M, MiniLM embeddings, two dialogues that ship with the package. The
    questions it is measured on are about a dialogue it was never trained on. About ten minutes on two cores.

    Example: memory-r1 demo --out runs/demo
    """

    out: Path = Path("runs/demo")
    """the run folder; the same command goes on from where a stopped run left off"""
    seed: int = 0
    """of sampling, order and initial weights"""

    def run(self) -> int:
        """0; prints answers and scores before and after."""
        from memory_r1.bench.dataset import load_dataset
        from memory_r1.bench.run import remember_all
        from memory_r1.data import example_path

        dataset = load_dataset(example_path())
        dialogues, questions = dataset.select(UNSEEN)
        print(f"[1/4] Remember: {len(dialogues[0].turns)} turns of {UNSEEN!r}, which is never trained on")
        banks = remember_all(dialogues, dataset.extractor("turns"))
        _print_entries(banks[UNSEEN])

        print(f"\n[2/4] Before: {len(questions)} questions about {UNSEEN!r}, untrained model")
        before = self._answer(dataset, banks, None)

        asked = len(dataset.select(TRAINED_ON)[1])
        print(f"\n[3/4] Train on {asked} questions about {TRAINED_ON!r}: warm start, then GRPO")
        adapter = self._train(dataset)

        print(f"\n[4/4] After: the same {len(questions)} questions about {UNSEEN!r}")
        warm = self._answer(dataset, banks, self.out / "sft" / "last")
        after = self._answer(dataset, banks, adapter)
        _print_samples(before, after)
        _print_scores({"untrained": before, "warm start": warm, "and GRPO": after})
        print(f"\nThe trained adapter: {adapter}   report: {self.out / 'report.html'}")
        print("Try it (. .venv/bin/activate):")
        print(f"  memory-r1 remember {example_path()} --dialogue {UNSEEN} --bank {self.out / 'memory.db'}")
        print(
            f'  memory-r1 ask "How much did Ravi pay for his bike?" --bank {self.out / "memory.db"} --adapter {adapter}'
        )
        return 0

    def _answer(self, dataset: Dataset, banks: Mapping[str, Bank], adapter: Path | None) -> list[Prediction]:
        from memory_r1.bench.run import predict
        from memory_r1.memory.answer import SMALL
        from memory_r1.policy import LocalPolicy

        name = f"answering ({adapter.parent.name if adapter else 'untrained'})"
        policy, questions = LocalPolicy(adapter=adapter, precision="auto"), dataset.select(UNSEEN)[1]
        with progress(name) as step:
            return predict(banks, questions, policy, SMALL, progress=step)

    def _train(self, dataset: Dataset) -> Path:
        from memory_r1.policy import LocalPolicy
        from memory_r1.rl.algorithms.grpo import GRPOSettings
        from memory_r1.rl.algorithms.sft import SFTSettings
        from memory_r1.rl.run.loop import LoopSettings
        from memory_r1.rl.settings import TrainSettings
        from memory_r1.rl.train import train_answer_agent

        settings = replace(
            TrainSettings(train=TRAINED_ON, seed=self.seed),
            warm_start=SFTSettings(epochs=1.5),
            grpo=GRPOSettings(epochs_over_data=1.0),
            loop=LoopSettings(eval_every=0, checkpoint_every=2),
        )
        with progress("training") as step:
            return train_answer_agent(LocalPolicy(), dataset, settings, self.out, report=reporter(step), note=note)


def _print_entries(bank: Bank, shown: int = 3) -> None:
    from memory_r1.memory.dates import day

    for entry in bank.entries()[:shown]:
        print(f"  {entry.id} [{day(entry.said_at) if entry.said_at else '-'}] {entry.speaker}: {entry.text}")
    print(f"  ... {bank.stats().live} entries in all")


def _print_samples(before: Sequence[Prediction], after: Sequence[Prediction], shown: int = 6) -> None:
    """Evenly spaced questions, not chosen by their answers."""
    for i in range(0, len(before), max(1, len(before) // shown)):
        question = before[i].question
        print(f"\n  {question.text}\n    gold:   {question.answer}")
        print(f"    before: {' '.join(before[i].answer.split())[:100]}\n    after:  {after[i].answer[:100]}")


def _print_scores(runs: Mapping[str, Sequence[Prediction]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from memory_r1.bench.score import summarise

    table = Table(title=f"unseen questions about {UNSEEN}, x100 with 95 % intervals")
    for column in ("", *runs):
        table.add_column(column, justify="right")
    summaries = [summarise(predictions, names={}).overall for predictions in runs.values()]
    for metric in _SHOWN:
        cells = [summary.metrics[metric] for summary in summaries]
        table.add_row(metric, *(f"{100 * c.mean:.1f} [{100 * c.low:.1f}, {100 * c.high:.1f}]" for c in cells))
    table.add_row("left the format", *(f"{summary.malformed}/{summary.n}" for summary in summaries))
    print()
    Console().print(table)
