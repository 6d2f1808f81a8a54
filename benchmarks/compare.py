"""Set the results of several evaluations of the same questions side by side, as Markdown.

Usage: python benchmarks/compare.py NAME=FOLDER NAME=FOLDER ... [--samples 10]

FOLDER holds a results.json written by `memory-r1 eval ... --out FOLDER`; the first is the baseline. Prints each
metric's mean with its 95 % bootstrap interval, the same by category, the paired difference of the last to the first,
and evenly spaced questions with every answer, not chosen by their outcome.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from memory_r1.bench.score import ANSWER_METRICS, EVIDENCE_METRICS, Estimate, bootstrap

Results = dict[str, dict[str, Any]]  # run name -> content of results.json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--samples", type=int, default=10)
    flags = parser.parse_args()
    named = dict(run.split("=", 1) for run in flags.runs)
    results = {name: json.loads((Path(path) / "results.json").read_text("utf-8")) for name, path in named.items()}
    _print_scores(results)
    _print_categories(results)
    _print_difference(results)
    _print_samples(results, flags.samples)


def _print_scores(results: Results) -> None:
    overall = {name: content["summary"]["overall"] for name, content in results.items()}
    _row("", *overall)
    _row(*["---"] * (len(overall) + 1))
    for metric in (*ANSWER_METRICS, *EVIDENCE_METRICS):
        _row(metric, *(_cell(summary["metrics"].get(metric)) for summary in overall.values()))
    _row("failures / malformed", *(f"{s['failures']} / {s['malformed']} of {s['n']}" for s in overall.values()))
    _row("context tokens", *(f"{s['context_tokens']:.0f}" for s in overall.values()))
    _row("seconds a question", *(f"{s['latency_p50_s']:.2f}" for s in overall.values()))


def _print_categories(results: Results) -> None:
    print()
    _row("category", "n", "metric", *results)
    _row(*["---"] * (len(results) + 3))
    first = next(iter(results.values()))
    for i, category in enumerate(first["summary"]["categories"]):
        for metric in ("exact_match", "typed", "f1_mem0", "f1_locomo", "bleu1"):
            cells = [content["summary"]["categories"][i]["metrics"].get(metric) for content in results.values()]
            _row(f"{category['category']} {category['name']}", str(category["n"]), metric, *map(_cell, cells))


def _print_difference(results: Results) -> None:
    names = list(results)
    before, after = ({p["id"]: p["scores"] for p in results[name]["predictions"]} for name in (names[0], names[-1]))
    print(f"\nPaired difference, {names[-1]} minus {names[0]}:")
    for metric in ANSWER_METRICS:
        estimate = bootstrap([after[question][metric] - before[question][metric] for question in before])
        print(f"- {metric}: {_estimate(estimate)}")


def _print_samples(results: Results, samples: int) -> None:
    predictions = {name: content["predictions"] for name, content in results.items()}
    first = next(iter(predictions.values()))
    print()
    _row("cat.", "question", "gold", *predictions)
    _row(*["---"] * (len(predictions) + 3))
    for i in range(0, len(first), max(1, len(first) // max(1, samples)))[:samples]:
        answers = [" ".join(of_run[i]["answer"].split())[:90] for of_run in predictions.values()]
        _row(first[i]["category"], first[i]["question"], first[i]["gold"], *answers)


def _row(*cells: str) -> None:
    print("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")


def _cell(metric: dict[str, float] | None) -> str:
    return (
        "-" if metric is None else f"{100 * metric['mean']:.1f} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"
    )


def _estimate(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"


if __name__ == "__main__":
    main()
