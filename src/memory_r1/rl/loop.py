"""The loop around every algorithm: iterate, log, check on val, keep the best, write a state to resume from.

A run folder holds metrics.jsonl, TensorBoard events, state.pt (to resume), last/ and best/ (what was trained). Of
several processes the main one writes and reports; all of them read the state, so they share the folder. Left out: what
an iteration does (grpo.py, sft.py) and how progress looks (the callback's business).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from memory_r1.errors import TrainingError
from memory_r1.rl.learner import Learner

Metrics = dict[str, float]
Report = Callable[[str, int, int, Mapping[str, float]], None]  # (algorithm, iterations done, of how many, metrics)


class Algorithm(Protocol):
    """What the loop needs of GRPO, SFT and their kin."""

    @property
    def name(self) -> str: ...

    @property
    def iterations(self) -> int: ...

    def prepare(self, learner: Learner) -> None:
        """Make what is needed beside the policy, such as a reference or a critic; a resumed run fills it afterwards."""

    def iterate(self, learner: Learner, iteration: int) -> Metrics: ...


@dataclass(frozen=True)
class LoopSettings:
    """How often val is asked and a state is written, in iterations; val is also asked at the end. 0: only then."""

    eval_every: int = 20
    checkpoint_every: int = 5


class Loop:
    """One algorithm on one learner in one folder; `run` goes on from where the folder's state left off."""

    def __init__(
        self,
        learner: Learner,
        algorithm: Algorithm,
        folder: Path,
        settings: LoopSettings,
        *,
        evaluate: Callable[[], Metrics] | None = None,
        report: Report | None = None,
    ) -> None:
        self.learner = learner
        self.algorithm = algorithm
        self.folder = folder
        self.settings = settings
        self._evaluate = evaluate
        self._main = learner.world.main
        self._report = report if self._main else None
        self._done = 0
        self._best = float("-inf")

    def run(self) -> Path:
        """Train to the end; returns the folder of the weights best on val (the last ones without val).

        Ctrl-C, like every other end, leaves a state from which the next call goes on to the same numbers.

        Raises:
            TrainingError: the state in the folder is another run's, or not all processes begin alike.
        """
        if self._main:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.algorithm.prepare(self.learner)
        self._resume()
        world = self.learner.world
        world.agree("weights or state to resume from", lambda: (self._done, self._best, self.learner.fingerprint()))
        with _Log(self.folder, self._done) if self._main else nullcontext() as log:
            if self._done == 0 and self._evaluate:
                self._write(log, self._checked())
            while self._done < self.algorithm.iterations:
                self._iterate(log)
        world.wait()
        return self._trained()

    def _write(self, log: _Log | None, metrics: Metrics) -> None:
        if log is not None:
            log.write(self._done, metrics)

    def _iterate(self, log: _Log | None) -> None:
        began = time.perf_counter()
        metrics = self.algorithm.iterate(self.learner, self._done)
        metrics["seconds"] = time.perf_counter() - began
        self._done += 1
        if self._evaluate and self._due(self.settings.eval_every):
            metrics |= self._checked()
        self._write(log, metrics)
        if self._main and self._due(self.settings.checkpoint_every):
            self._save()
        if self._report:
            self._report(self.algorithm.name, self._done, self.algorithm.iterations, metrics)

    def _due(self, every: int) -> bool:
        return self._done == self.algorithm.iterations or (every > 0 and self._done % every == 0)

    def _checked(self) -> Metrics:
        """Val's metrics now; keeps the weights if their reward is the best so far."""
        assert self._evaluate is not None
        metrics = self._evaluate()
        if metrics["val/reward"] > self._best:
            self._best = metrics["val/reward"]
            if self._main:
                self.learner.save(self.folder / "best")
        return metrics

    def _trained(self) -> Path:
        best = self.folder / "best"
        return best if best.is_dir() else self.folder / "last"

    def _save(self) -> None:
        """Weights for use and a state to resume from; the state is replaced whole or not at all."""
        import torch

        self.learner.save(self.folder / "last")
        state = {
            "algorithm": self.algorithm.name,
            "iterations": self.algorithm.iterations,
            "done": self._done,
            "best": self._best,
            **self.learner.state(),
        }
        partial = self.folder / "state.pt.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / "state.pt")

    def _resume(self) -> None:
        import torch

        path = self.folder / "state.pt"
        if not path.is_file():
            return
        state: dict[str, Any] = torch.load(path, map_location=self.learner.model.device, weights_only=True)
        if (state["algorithm"], state["iterations"]) != (self.algorithm.name, self.algorithm.iterations):
            raise TrainingError(
                f"{path} belongs to {state['algorithm']} over {state['iterations']} iterations, this run is "
                f"{self.algorithm.name} over {self.algorithm.iterations}: resume with its settings or name a new folder"
            )
        self._done, self._best = state["done"], state["best"]
        self.learner.load_state(state)


class _Log:
    """metrics.jsonl and TensorBoard; opened at iteration n, what a lost stretch wrote after n is dropped."""

    def __init__(self, folder: Path, done: int) -> None:
        self._path = folder / "metrics.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["iteration"] <= done] if done else []
        self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(self, iteration: int, metrics: Metrics) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, iteration)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self._board.close()

    def _lines(self) -> list[str]:
        if not self._path.is_file():
            return []
        return self._path.read_text(encoding="utf-8").split("\n")[:-1]  # a line that a crash cut short has no end
