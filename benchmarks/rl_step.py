"""One GRPO training step beside TRL 1.16's GRPOTrainer, in one run: seconds, CPU seconds, memory, and how they grow.

Usage: python benchmarks/rl_step.py [--prompts 4] [--prompt 700] [--group 8] [--completion 32] [--threads 1] [--runs 1]
                                    [--growth-prompt 500 1000 2000 4000] [--growth-group 4 8 16] [--micro-batch 8]
                                    [--limit-s 900] [--limit-gb GB] [--out rl_step.jsonl]

A step samples G completions of each of P prompts, rewards them, scores them under the reference (KL on), goes forward
and backward through all of them and takes one optimizer step. The model is the embedded SmolLM2-135M-Instruct.
Settings: full fine-tuning or LoRA (rank 16, all linear layers), float32 or bfloat16 (autocast, on both sides), KL on or
off. Then growth: one prompt a step, longer, and with more completions. TRL takes --micro-batch rollouts at a time,
without gradient checkpointing where that fits into memory; with it, its default, in the first setting and where it
must.

Each side and setting has a process of its own, one after the other; the peak of resident memory is that process's. Each
warms up by a whole step on short prompts. The sides must agree on the prompts' token ids and on the completions'
lengths (that loss and gradient are TRL's is tested: tests/test_grpo_trl.py). `update` is what a step takes beside
generation and reference. Neither side pays for old log-probabilities: one step is taken on what was sampled.

Prints Markdown; --out gets a line of JSON for each measurement as it is made, and what stands there is not measured
again. Cost on one thread: about an hour for the settings and as much for growth, nearly all of it TRL's. A measurement
that would exceed the limits, going by an earlier one and the number of tokens, is left out and named. Smaller numbers
in all flags make a try of a few minutes. Without TRL (pip install "trl==1.16.*") only ours is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from rl_step_sides import Measured, Run, Step

OURS, TRL, CHECKPOINTING = "memory-r1", "TRL", "TRL, checkpointing"
SETTINGS = [  # in the order of their worth, should time run out
    Step(),
    Step(kl_coef=0.0),
    Step("lora"),
    Step(precision="bfloat16"),
    Step("lora", "bfloat16"),
    Step("lora", kl_coef=0.0),
]
PHASES = ("seconds", "cpu_seconds", "generate", "reference", "update")


def main() -> None:
    flags = _flags()
    bench = Bench(flags.limit_s, flags.limit_gb, Run(flags.runs, flags.threads, flags.micro_batch), flags.out)
    sizes = {"prompts": flags.prompts, "prompt_tokens": flags.prompt, "group": flags.group}
    sized = [replace(step, **sizes, completion_tokens=flags.completion) for step in SETTINGS]
    one = replace(sized[0], prompts=1)
    growth = [replace(one, prompt_tokens=length) for length in flags.growth_prompt]
    growth += [replace(one, group=group) for group in flags.growth_group]
    _print("a step of", [row for i, step in enumerate(sized) for row in bench.compare(step, also_default=i == 0)])
    _print("growth", [row for step in growth for row in bench.compare(step)])
    print("```json\n" + json.dumps(_about()) + "\n```")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompts", 4), ("prompt", 700), ("group", 8), ("completion", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--growth-prompt", type=int, nargs="*", default=[500, 1000, 2000, 4000])
    parser.add_argument("--growth-group", type=int, nargs="*", default=[4, 8, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--limit-s", type=float, default=900)
    parser.add_argument("--limit-gb", type=float, default=_memory_gb("MemAvailable"))
    parser.add_argument("--out", type=Path, default=Path("rl_step.jsonl"))
    return parser.parse_args()


@dataclass(frozen=True)
class Row:
    """One side of one setting: what was measured, or why not, and the other side of it to compare with."""

    step: Step
    side: str
    found: Measured | str
    ours: Measured | None = None


# The measurements


@dataclass(frozen=True)
class Bench:
    """Measures in new processes, within limits, and keeps what was measured in a file of JSON lines."""

    limit_s: float
    limit_gb: float
    run: Run
    out: Path

    def compare(self, step: Step, *, also_default: bool = False) -> list[Row]:
        """Ours, TRL's without checkpointing, and TRL's with it where that is asked for or is all that fits."""
        ours = self.measure(OURS, step)
        rows = [Row(step, OURS, ours)]
        if isinstance(ours, str) or not importlib.util.find_spec("trl"):
            return rows
        theirs = self.measure(TRL, step)
        rows.append(Row(step, TRL, theirs, ours))
        if also_default or isinstance(theirs, str):
            rows.append(Row(step, CHECKPOINTING, self.measure(CHECKPOINTING, step), ours))
        for row in rows:
            _check_same_work(row)
        return rows

    def measure(self, side: str, step: Step) -> Measured | str:
        """What was measured, now or before; or why it was not."""
        known = self.known(side)
        if step in known:
            return known[step]
        reason = self.too_much(step, known)
        if reason:
            return f"left out: {reason}"
        _say(f"{side}: {step}")
        found = self.in_new_process(side, step)
        if isinstance(found, Measured):
            line = {"side": side, "step": asdict(step), "run": asdict(self.run), "measured": asdict(found)}
            with self.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return found

    def known(self, side: str) -> dict[Step, Measured]:
        lines = self.out.read_text("utf-8").splitlines() if self.out.exists() else []
        found = [one for one in map(json.loads, lines) if one["side"] == side and one["run"] == asdict(self.run)]
        return {Step(**one["step"]): Measured(**one["measured"]) for one in found}

    def too_much(self, step: Step, known: dict[Step, Measured]) -> str:
        """Why the step would exceed the limits, going by the nearest known one of its kind; empty if it would not."""
        alike = [one for one in known if (one.weights, one.precision) == (step.weights, step.precision)]
        if not alike:
            return ""
        near = min(alike, key=lambda one: abs(self.at_once(one) - self.at_once(step)))
        seconds = _median(known[near], "seconds") * step.tokens / near.tokens
        growing = known[near].peak_gb - known[near].loaded_gb
        gb = known[near].loaded_gb + growing * self.at_once(step) / self.at_once(near)
        if gb > self.limit_gb:
            return f"about {gb:.0f} GB, of {self.limit_gb:.0f}"
        return f"about {seconds:.0f} s" if seconds > self.limit_s else ""

    def at_once(self, step: Step) -> int:
        """Tokens of the rollouts that go through TRL's model at once."""
        rollouts = min(self.run.micro_batch, step.prompts * step.group)
        return rollouts * (step.prompt_tokens + step.completion_tokens)

    def in_new_process(self, side: str, step: Step) -> Measured | str:
        place = Path(__file__).with_name("rl_step_sides.py")
        command = [sys.executable, str(place), side, json.dumps(asdict(step)), json.dumps(asdict(self.run))]
        environment = {"OMP_NUM_THREADS": str(self.run.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
        limit = self.limit_s * (self.run.runs + 1)
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, env={**os.environ, **environment}
            )
        except subprocess.TimeoutExpired:
            return f"left out: stopped after {limit:.0f} s"
        if done.returncode == -9:
            return "left out: killed, which is what a machine without memory left does"
        if done.returncode:
            sys.exit(f"{side}, {step} failed:\n{done.stderr[-2000:]}")
        return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _check_same_work(row: Row) -> None:
    if row.ours is None or isinstance(row.found, str):
        return
    for name in ("prompts", "completions"):
        mine, other = getattr(row.ours, name), getattr(row.found, name)
        if mine != other:
            sys.exit(f"{row.side}, {row.step}: not the same work, {name} are {other}, expected ours, {mine}")


def _median(measured: Measured, phase: str) -> float:
    return statistics.median(one[phase] for one in measured.steps)


# What is printed


def _print(title: str, rows: Sequence[Row]) -> None:
    columns = ("seconds", "CPU s", "generate", "reference", "update", "peak GB", "ratio: seconds", "CPU s", "memory")
    print(f"| {title} | | {' | '.join(columns)} |\n" + "|---" * 11 + "|")
    for row in rows:
        print(f"| {' | '.join([str(row.step), row.side, *_cells(row)])} |", flush=True)
    print()


def _cells(row: Row) -> list[str]:
    if isinstance(row.found, str):
        return [row.found, *["-"] * 8]
    cells = [f"{_median(row.found, phase):.3g}" for phase in PHASES] + [f"{row.found.peak_gb:.1f}"]
    if row.ours is None:
        return [*cells, "", "", ""]
    ratios = [_median(row.found, phase) / _median(row.ours, phase) for phase in ("seconds", "cpu_seconds")]
    return [*cells, *(f"{ratio:.1f}" for ratio in [*ratios, row.found.peak_gb / row.ours.peak_gb])]


def _about() -> dict[str, object]:
    names = ("memory-r1", "trl", "torch", "transformers", "peft", "accelerate")
    return {
        "command": " ".join(sys.argv),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in names if importlib.util.find_spec(name.replace("-", "_"))},
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "memory_gb": round(_memory_gb("MemTotal"), 1),
            "load at end": os.getloadavg(),
        },
    }


def _memory_gb(kind: str) -> float:
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith(f"{kind}:"))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
