"""The bank against mem0ai with its embedded default (Qdrant local on disk, SQLite history), in one run.

Usage: python benchmarks/bank.py [--data locomo10.json] [--sizes 400 10000] [--growth 1000 10000 100000] [--runs 60]
                                 [--opens 7] [--folder .] [--seed 0]

Both get one MiniLM on one thread, the same texts (LoCoMo's turns and questions where --data names its file, else made
from a small vocabulary) and no language model: what one would extract is given. The two take turns, call by call, in
new stores on a real disk (--folder), with the durability each has by default; ours syncs every batch. "vectors given"
means that the embedding was computed before. Opening and memory are measured in new processes that load no model.
Growth is measured for ours alone, with random unit vectors: embedding 100,000 texts takes a quarter of an hour.

Prints Markdown, then JSON. Without mem0 (pip install mem0ai==2.2.1, best into an environment of its own) only ours is
measured. Left out: mem0's extras (BM25, entities), which its default install does not have.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bank_sides import BATCH, KnownEmbedder, Mem0, OneVector, Ours, RandomEmbedder, Side, Texts
from memory_r1.bank import Operation
from memory_r1.bank.column import Floats

WARM_UP = 3  # calls before those that count
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "MEM0_TELEMETRY": "False",
}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(_child(*sys.argv[2:])))
        return
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):  # read when numpy and torch load
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    flags = _flags()
    with tempfile.TemporaryDirectory(dir=flags.folder, prefix="bank-benchmark-") as scratch:
        os.environ["MEM0_DIR"] = f"{scratch}/mem0"  # else it writes to the home folder
        folder, texts = Path(scratch), Texts.of(flags.data, flags.seed)
        about = _about(flags, folder)
        comparison = list(_comparison(flags, folder, texts))
        growth = list(_growth(flags, folder, texts))
    print("Median / 95th percentile.\n")
    _print_comparison(comparison)
    _print_growth(growth)
    found = {**about, "comparison": [asdict(row) for row in comparison], "growth": [asdict(row) for row in growth]}
    print("\n```json\n" + json.dumps(found) + "\n```")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=[400, 10_000])
    parser.add_argument("--growth", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--opens", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    fewest = 2 * (flags.runs + WARM_UP)  # half of them are updated, the others deleted
    if min([*flags.sizes, *flags.growth], default=fewest) < fewest:
        parser.error(f"--sizes and --growth must be at least {fewest} for {flags.runs} runs")
    return flags


@dataclass(frozen=True)
class Row:
    """One measure: the values of all repetitions for each side, ours first, in `unit`."""

    what: str
    entries: int
    values: Sequence[Sequence[float]]
    unit: str = "ms"


# The measures

Call = Callable[[Side, int], object]


def _comparison(flags: argparse.Namespace, scratch: Path, texts: Texts) -> Iterator[Row]:
    import torch

    torch.set_num_threads(1)
    kinds: list[type[Ours] | type[Mem0]] = [Ours]
    if importlib.util.find_spec("mem0"):
        logging.disable(logging.WARNING)  # it warns of every extra that its default install leaves out
        kinds.append(Mem0)
    else:
        _say("mem0 is not installed, only ours is measured: pip install mem0ai==2.2.1")
    embedder = KnownEmbedder()
    for size in flags.sizes:
        sides = [kind(scratch / f"{kind.__name__}-{size}", embedder) for kind in kinds]
        yield from _compare(sides, size, texts, embedder, flags)


def _compare(
    sides: Sequence[Side], size: int, texts: Texts, embedder: KnownEmbedder, flags: argparse.Namespace
) -> Iterator[Row]:
    _say(f"{size} entries: embedding, filling")
    filling = texts.take(size)
    embedder.learn(filling)
    for side in sides:
        side.fill(filling)
    _say(f"{size} entries: measuring")
    for what, call in _calls(texts, flags.runs + WARM_UP, embedder).items():
        yield Row(what, size, _in_turns(sides, flags.runs, call))
    for side in sides:
        side.close()
    question = texts.questions(1)
    yield from _new_processes(sides, size, question[0], embedder.name, embedder.embed(question)[0], flags.opens)


def _calls(texts: Texts, count: int, embedder: KnownEmbedder) -> dict[str, Call]:
    """What a process that keeps its store open does; calls go by their number, below `count`."""
    questions, known_questions = texts.questions(count), texts.questions(count)
    new, known, turns, other_turns, updates = (texts.take(count) for _ in range(5))
    facts, other_facts = ([texts.take(2) for _ in range(count)] for _ in range(2))
    embedder.learn(known_questions + known)
    return {
        "search top 10": lambda side, i: side.search(questions[i]),
        "search top 10, vectors given": lambda side, i: side.search(known_questions[i]),
        "add 1 text": lambda side, i: side.add(new[i]),
        "add 1 text, vectors given": lambda side, i: side.add(known[i]),
        "add a turn of 2 facts": lambda side, i: side.add_facts(turns[i], facts[i]),
        "the same, and our manager reads related entries": lambda side, i: side.add_facts(
            other_turns[i], other_facts[i], decide=True
        ),
        "update": lambda side, i: side.update(i, updates[i]),
        "delete": lambda side, i: side.delete(count + i),
    }


def _in_turns(sides: Sequence[Side], runs: int, call: Call) -> list[list[float]]:
    """Milliseconds of each side's calls, taken in turns: the machine's noise is the same for both."""
    taken: list[list[float]] = [[] for _ in sides]
    for i in range(runs + WARM_UP):
        for side, times in list(zip(sides, taken, strict=True))[:: 1 if i % 2 else -1]:  # nobody is always first
            began = time.perf_counter()
            call(side, i)
            times.append(_since(began))
    return [times[WARM_UP:] for times in taken]


def _since(began: float) -> float:
    return 1000 * (time.perf_counter() - began)


def _growth(flags: argparse.Namespace, scratch: Path, texts: Texts) -> Iterator[Row]:
    """Ours alone, with random vectors, filled to a size."""
    for size in flags.growth:
        _say(f"growth: {size} entries")
        ours, filling = Ours(scratch / f"Growth-{size}", RandomEmbedder()), texts.take(size)
        began = time.perf_counter()
        ours.fill(filling)
        yield Row(f"fill, {BATCH} at a time, for each entry", size, [[_since(began) / size]])
        yield from _grown(ours, size, texts, flags)


def _grown(ours: Ours, size: int, texts: Texts, flags: argparse.Namespace) -> Iterator[Row]:
    count = flags.runs + WARM_UP
    questions, new, updates = texts.questions(count), texts.take(count), texts.take(count)
    calls: dict[str, Call] = {
        "search top 10": lambda side, i: side.search(questions[i]),
        "add 1 text": lambda side, i: side.add(new[i]),
        "update": lambda side, i: side.update(i, updates[i]),
        "delete": lambda side, i: side.delete(count + i),
    }
    for what, call in calls.items():
        yield Row(what, size, _in_turns([ours], flags.runs, call))
    caught_up = []
    for _ in range(flags.opens):
        _run_child("write", ours.folder, json.dumps(texts.take(100)))
        began = time.perf_counter()
        ours.search(questions[0])
        caught_up.append(_since(began))
    yield Row("search after another process wrote 100", size, [caught_up])
    ours.close()
    vector = RandomEmbedder().embed(questions[:1])[0]
    yield from _new_processes([ours], size, questions[0], RandomEmbedder.name, vector, flags.opens)


# Other processes


def _new_processes(
    sides: Sequence[Side], size: int, question: str, embedder: str, vector: Floats, opens: int
) -> Iterator[Row]:
    """What a new process pays that opens the store and searches twice, all libraries imported before."""
    given = json.dumps({"name": embedder, "question": question, "vector": vector.tolist()})
    turns = [[_run_child("open", side.folder, type(side).__name__, given) for side in sides] for _ in range(opens)]
    for what in turns[0][0]:
        values = [[answers[place][what] for answers in turns] for place in range(len(sides))]
        yield Row(what, size, values, unit="MB" if "memory" in what else "ms")
    yield Row("size on disk", size, [[_megabytes(side.folder)] for side in sides], unit="MB")


def _run_child(task: str, folder: Path, *arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", task, str(folder), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _child(task: str, folder: str, *arguments: str) -> dict[str, float]:
    return _open(Path(folder), *arguments) if task == "open" else _write(Path(folder), *arguments)


def _open(folder: Path, kind: str, given: str) -> dict[str, float]:
    logging.disable(logging.WARNING)
    about = json.loads(given)
    embedder = OneVector(about["name"], np.array(about["vector"], np.float32))
    side_of = Mem0 if kind == "Mem0" else Ours
    with tempfile.TemporaryDirectory() as scratch:  # whatever is imported late is imported now
        small: Side = side_of(Path(scratch), embedder)
        small.fill([about["question"]])
        small.search(about["question"])
        small.close()
    before = _memory("VmRSS")
    began = time.perf_counter()
    side: Side = side_of(folder, embedder)
    answer = {"open": _since(began)}
    side.search(about["question"])
    answer["open and search once"] = _since(began)
    began = time.perf_counter()
    side.search(about["question"])
    answer["search a second time"] = _since(began)
    peak = _memory("VmHWM")
    side.close()
    return {**answer, "peak memory of the process": peak, "peak memory, less the libraries": peak - before}


def _write(folder: Path, texts: str) -> dict[str, float]:
    """Ten batches of ten."""
    ours, new = Ours(folder, RandomEmbedder()), json.loads(texts)
    for start in range(0, len(new), 10):
        ours.bank.apply(Operation.add(text) for text in new[start : start + 10])
    ours.close()
    return {}


def _memory(kind: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process in MB; getrusage would count its parent's before the exec."""
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(f"{kind}:"))


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


# What is printed


def _about(flags: argparse.Namespace, folder: Path) -> dict[str, object]:
    packages = ("memory-r1", "mem0ai", "qdrant-client", "numpy", "torch", "sentence-transformers")
    return {
        "command": " ".join(sys.argv),
        "seed": flags.seed,
        "texts": "LoCoMo" if flags.data else "made from a small vocabulary",
        "versions": {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        | {
            name: version(name)
            for name in packages
            if importlib.util.find_spec(name.replace("-", "_").removesuffix("ai"))
        },
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "load at start": os.getloadavg(),
            "file system": _file_system(folder),
            "median write and fsync of 4 kB, ms": _sync_ms(folder),
        },
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(folder: Path) -> str:
    """The type of the mount that holds the folder: on tmpfs a sync costs nothing, and the figures would flatter."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    holding = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(holding, key=lambda mount: len(mount[0]))[1]


def _sync_ms(folder: Path) -> float:
    taken = []
    with (folder / "sync").open("wb") as file:
        for _ in range(20):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            taken.append(_since(began))
    return statistics.median(taken)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _print_comparison(rows: Sequence[Row]) -> None:
    print("| | entries | memory-r1 | mem0 | ratio of medians |\n|---|---|---|---|---|")
    for row in rows:
        cells = [_cell(values, row.unit) for values in row.values] + ["-"] * (2 - len(row.values))
        middles = [statistics.median(values) for values in row.values]
        ratio = f"{middles[1] / middles[0]:.1f}" if len(middles) == 2 else "-"
        print(f"| {row.what} | {row.entries:,} | {' | '.join(cells)} | {ratio} |")


def _print_growth(rows: Sequence[Row]) -> None:
    sizes = dict.fromkeys(row.entries for row in rows)
    print("\n| memory-r1, random vectors | " + " | ".join(f"{size:,}" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for what in dict.fromkeys(row.what for row in rows):
        cells = [_cell(row.values[0], row.unit) for row in rows if row.what == what]
        print(f"| {what} | {' | '.join(cells)} |")


def _cell(values: Sequence[float], unit: str) -> str:
    middle, high = np.percentile(values, [50, 95])
    return f"{middle:.3g} {unit}" if unit == "MB" or len(values) == 1 else f"{middle:.3g} / {high:.3g} {unit}"


if __name__ == "__main__":
    main()
