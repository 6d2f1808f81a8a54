"""Dense search of very many entries: the exact scan against the first pass over signs, recall and time on one thread.

Usage: python benchmarks/first_pass.py --data locomo10.json [--rows 100000 300000 1000000] [--questions 199] [--seed 0]

Vectors are mixtures of two LoCoMo turns' MiniLM vectors with noise, so that near ones abound; queries are LoCoMo's
questions as they are. Recall is the share of the exact best k that the first pass leaves. Left out: BM25, which needs
no first pass, and hybrid search, which looks at the best 200 of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from memory_r1.bank import MiniLMEmbedder
from memory_r1.bank.column import Floats, Rows
from memory_r1.bank.search import FIRST_PASS_WANTED
from memory_r1.bank.signs import Signs, nearest
from memory_r1.bank.vectors import Vectors
from memory_r1.bench.locomo import load_locomo

NOISE = 0.02  # of each dimension, beside a unit vector
DEPTHS = (10, 100, 200)
BLOCK = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--questions", type=int, default=199)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    file = load_locomo(flags.data)
    turns = MiniLMEmbedder().embed([turn.text for dialogue in file.dialogues for turn in dialogue.turns])
    asked = [question.text for question in file.questions[:: len(file.questions) // flags.questions]]
    queries = MiniLMEmbedder().embed(asked[: flags.questions])
    print(
        "| rows | looked at | recall " + " / ".join(f"@{k}" for k in DEPTHS) + " | exact, ms | first pass, ms | ratio |"
    )
    print("|---|---|---|---|---|---|")
    for rows in flags.rows:
        compare(turns, queries, rows, flags.seed)


def compare(turns: Floats, queries: Floats, rows: int, seed: int) -> None:
    """Print a row of the table for each of two depths of the first pass."""
    vectors = Vectors(lambda after: mixtures(turns, rows, seed))
    matrix, signs = vectors.first(rows), Signs(vectors)
    signs.distances(queries[0], rows)  # codes are made once, when first needed
    for wanted in (FIRST_PASS_WANTED, 2 * FIRST_PASS_WANTED):
        kept: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
        exact_ms, pass_ms = [], []
        for query in queries:
            exact, took = timed_exact(matrix, query)
            exact_ms.append(took)
            found, took = timed_first_pass(matrix, signs, query, wanted)
            pass_ms.append(took)
            for depth, shares in kept.items():
                shares.append(len(np.intersect1d(exact[:depth], found[:depth])) / depth)
        recall = " / ".join(f"{statistics.mean(shares):.4f}" for shares in kept.values())
        exact_p50, pass_p50 = statistics.median(exact_ms), statistics.median(pass_ms)
        ratio = exact_p50 / pass_p50
        print(f"| {rows:,} | {wanted:,} | {recall} | {exact_p50:.1f} | {pass_p50:.1f} | {ratio:.1f} |", flush=True)


def mixtures(turns: Floats, rows: int, seed: int) -> Iterator[tuple[int, Floats]]:
    """Unit vectors, in blocks."""
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        one, other = turns[rng.integers(len(turns), size=(2, count))]
        share = rng.uniform(0.5, 1, (count, 1)).astype(np.float32)
        mixed = share * one + (1 - share) * other + NOISE * rng.standard_normal((count, turns.shape[1]), np.float32)
        yield start + count, mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


def timed_exact(matrix: Floats, query: Floats) -> tuple[Rows, float]:
    began = time.perf_counter()
    best = best_of(matrix @ query)
    return best, 1000 * (time.perf_counter() - began)


def timed_first_pass(matrix: Floats, signs: Signs, query: Floats, wanted: int) -> tuple[Rows, float]:
    began = time.perf_counter()
    near = nearest(signs.distances(query, len(matrix)), np.arange(len(matrix)), wanted)
    best = near[best_of(matrix[near] @ query)]
    return best, 1000 * (time.perf_counter() - began)


def best_of(scores: Floats) -> Rows:
    """The places of the best scores, best first."""
    leading = np.argpartition(-scores, max(DEPTHS) - 1)[: max(DEPTHS)]
    order: Rows = leading[np.argsort(-scores[leading], kind="stable")]
    return order


if __name__ == "__main__":
    main()
