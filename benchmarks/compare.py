"""Set the results of several evaluations of the same questions side by side, as Markdown.

Usage: python benchmarks/compare.py NAME=FOLDER NAME=FOLDER,FOLDER,... [--against NAME] [--samples 10]

FOLDER holds a results.json written by `memory-r1 eval ... --out FOLDER`; several folders of one name are seeds: a
question's score is their mean, and "(sd)" the deviation of the seeds' own means. Prints a row for each name with 95 %
bootstrap intervals over the questions, the same by category, paired differences to the row named by --against (else the
first), and evenly spaced questions with the answers of each name's first seed, not chosen by their outcome.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from memory_r1.bench.score import ANSWER_METRICS, Estimate, bootstrap

COLUMNS = {
    "exact_match": "EM",
    "typed": "typed",
    "groundedness": "grounded",
    "f1_mem0": "F1 (Mem0)",
    "f1_locomo": "F1 (LoCoMo)",
    "bleu1": "BLEU-1",
    "distilled_recall": "distilled recall",
}
BY_CATEGORY = ("exact_match", "typed", "f1_mem0", "f1_locomo", "bleu1")


@dataclass(frozen=True)
class Row:
    """The evaluations of one name, a seed each."""

    name: str
    seeds: Sequence[Mapping[str, Any]]

    @property
    def questions(self) -> Sequence[Mapping[str, Any]]:
        return self.seeds[0]["predictions"]  # type: ignore[no-any-return]

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Question id -> metric -> its mean over the seeds."""
        found: dict[str, dict[str, float]] = {}
        for same in zip(*(seed["predictions"] for seed in self.seeds), strict=True):
            assert len({one["id"] for one in same}) == 1, f"{self.name}: the seeds were asked other questions"
            found[same[0]["id"]] = {metric: fmean(p["scores"][metric] for p in same) for metric in same[0]["scores"]}
        return found

    def cell(self, metric: str, ids: Iterable[str] | None = None) -> str:
        """The mean with its interval, over some questions or all."""
        asked = list(self.scores if ids is None else ids)
        values = [self.scores[one][metric] for one in asked if metric in self.scores[one]]
        if not values:
            return "-"
        spread = f" ({100 * stdev(self.means(metric, set(asked))):.1f})" if len(self.seeds) > 1 else ""
        return _interval(bootstrap(values)) + spread

    def means(self, metric: str, asked: set[str]) -> list[float]:
        """Each seed's own mean."""
        return [
            fmean(p["scores"][metric] for p in seed["predictions"] if p["id"] in asked and metric in p["scores"])
            for seed in self.seeds
        ]

    def overall(self, of: Callable[[Mapping[str, Any]], float]) -> float:
        """The mean over the seeds of something in the summary of all questions."""
        return fmean(of(seed["summary"]["overall"]) for seed in self.seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER,...")
    parser.add_argument("--against", help="name of the row that the others are compared with; default: the first")
    parser.add_argument("--samples", type=int, default=10)
    flags = parser.parse_args()
    rows = [_read(*run.split("=", 1)) for run in flags.runs]
    _print_rows(rows)
    _print_categories(rows)
    _print_differences(rows, next((row for row in rows if row.name == flags.against), rows[0]))
    _print_samples(rows, flags.samples)


def _read(name: str, folders: str) -> Row:
    return Row(name, [json.loads((Path(one) / "results.json").read_text("utf-8")) for one in folders.split(",")])


def _print_rows(rows: Sequence[Row]) -> None:
    _line("", "seeds", *COLUMNS.values(), "off format", "entries", "context tokens", "p50 s")
    _line(*["---"] * (len(COLUMNS) + 6))
    for row in rows:
        entries = fmean(seed["config"].get("bank", {}).get("entries", float("nan")) for seed in row.seeds)
        _line(
            row.name,
            str(len(row.seeds)),
            *(row.cell(metric) for metric in COLUMNS),
            f"{row.overall(lambda s: s['malformed']):.0f} of {len(row.questions)}",
            f"{entries:.0f}",
            f"{row.overall(lambda s: s['context_tokens']):.0f}",
            f"{row.overall(lambda s: s['latency_p50_s']):.2f}",
        )


def _print_categories(rows: Sequence[Row]) -> None:
    print()
    _line("category", "n", "", *(COLUMNS[metric] for metric in BY_CATEGORY))
    _line(*["---"] * (len(BY_CATEGORY) + 3))
    for category in rows[0].seeds[0]["summary"]["categories"]:
        ids = [one["id"] for one in rows[0].questions if one["category"] == category["category"]]
        title = f"{category['category']} {category['name']}"
        for row in rows:
            _line(title, str(len(ids)), row.name, *(row.cell(metric, ids) for metric in BY_CATEGORY))


def _print_differences(rows: Sequence[Row], base: Row) -> None:
    print(f"\nPaired differences to {base.name}:\n")
    _line("", *(COLUMNS[metric] for metric in ANSWER_METRICS))
    _line(*["---"] * (len(ANSWER_METRICS) + 1))
    for row in rows:
        if row is not base:
            pairs = [(row.scores[one], base.scores[one]) for one in base.scores]
            changes = ([after[metric] - before[metric] for after, before in pairs] for metric in ANSWER_METRICS)
            _line(row.name, *(_interval(bootstrap(values), "+") for values in changes))


def _print_samples(rows: Sequence[Row], samples: int) -> None:
    print()
    _line("cat.", "question", "gold", *(row.name for row in rows))
    _line(*["---"] * (len(rows) + 3))
    questions = rows[0].questions
    for i in range(0, len(questions), max(1, len(questions) // max(1, samples)))[:samples]:
        answers = (" ".join(row.questions[i]["answer"].split())[:90] for row in rows)
        _line(questions[i]["category"], questions[i]["question"], questions[i]["gold"], *answers)


def _line(*cells: str) -> None:
    print("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")


def _interval(found: Estimate, sign: str = "") -> str:
    mean, low, high = (format(100 * value, f"{sign}.1f") for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
