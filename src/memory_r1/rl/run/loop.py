"""The loop around every algorithm: iterate, log, check on val, keep the best, write a state to resume from.

A run folder holds metrics.jsonl, samples.jsonl, TensorBoard events, state.pt (to resume), last/ and best/ (what was
trained). A run that is killed goes on from its state to the numbers it would have reached; Ctrl-C loses nothing: an
iteration under way is finished, a check on val is broken off, and a state is written. Of several processes the main one
writes and reports; all of them read the state, so they share the folder; a Ctrl-C in any of them ends all, after the
iteration or the check. Left out: what an iteration does (grpo.py, ppo.py, sft.py) and how progress looks (the
callbacks' business).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from memory_r1.errors import InputError, TrainingError
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.run import journal
from memory_r1.rl.run.evaluation import Evaluation, Sample
from memory_r1.rl.run.interrupt import put_off
from memory_r1.rl.run.whole import whole_file, whole_folder

Metrics = dict[str, float]
Report = Callable[[str, int, int, Mapping[str, float]], None]  # (algorithm, iterations done, of how many, metrics)
Note = Callable[[str], None]  # a sentence for whoever watches


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
    """When a run is looked at and kept, in iterations, and when it ends early.

    eval_every        how often val is asked; it is also asked at the beginning and at the end. 0: only then
    checkpoint_every  how often a state is written; also at the end. 0: only then
    patience          checks on val in a row without a higher reward after which the algorithm ends; 0 goes to the end
    samples           replies kept to read at every check, to val's questions, without val to training questions
    """

    eval_every: int = 20
    checkpoint_every: int = 5
    patience: int = 0
    samples: int = 4

    def __post_init__(self) -> None:
        for name in ("eval_every", "checkpoint_every", "patience", "samples"):
            if getattr(self, name) < 0:
                raise InputError(f"loop.{name} is {getattr(self, name)}, expected 0 or above")
        if self.patience and not self.eval_every:
            raise InputError(
                f"loop.patience is {self.patience}, but val is asked at the end alone: set loop.eval_every"
            )


@dataclass(frozen=True)
class _Progress:
    """How far a run is: what a state holds beside the weights.

    done    iterations that made the weights
    best    highest reward on val so far
    stale   checks on val since then
    silent  whether the last iteration had no signal
    owed    the last iteration's metrics, until it is checked on and logged
    """

    done: int = 0
    best: float = float("-inf")
    stale: int = 0
    silent: bool = False
    owed: Metrics | None = None


class Loop:
    """One algorithm on one learner in one folder; `run` goes on from where the folder's state left off.

    Args:
        evaluate: looks at the policy as it is.
        report: called after every iteration, in the main process.
        note: told there what whoever watches should know; the same stands in metrics.jsonl.
        saved: called there whenever a state was written.
    """

    def __init__(
        self,
        learner: Learner,
        algorithm: Algorithm,
        folder: Path,
        settings: LoopSettings,
        *,
        evaluate: Callable[[], Evaluation] | None = None,
        report: Report | None = None,
        note: Note | None = None,
        saved: Callable[[], object] | None = None,
    ) -> None:
        self.learner = learner
        self.algorithm = algorithm
        self.folder = folder
        self.settings = settings
        self._world = learner.world
        self._evaluate = evaluate
        self._report = report if self._world.main else None
        self._note = note if self._world.main else None
        self._saved = saved
        self._at = _Progress()
        self._stepping = False  # the weights are on their way from one iteration to the next

    def run(self) -> Path:
        """Train to the end; returns the folder of the weights best on val (the last ones without val).

        Ctrl-C, like every other end, leaves a state from which the next call goes on to the same numbers.

        Raises:
            TrainingError: the state in the folder is another run's, or not all processes begin alike, or one is gone.
            KeyboardInterrupt: at the end of the iteration in which Ctrl-C came; at the second one, at once.
        """
        if self._world.main:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.algorithm.prepare(self.learner)
        self._resume()
        self._world.agree("weights or state to resume from", lambda: (repr(self._at), self.learner.fingerprint()))
        try:
            self._train()
        except KeyboardInterrupt:
            if self._at.done and not self._stepping:
                self._save()
            raise
        self._world.wait()
        return self._trained()

    def _train(self) -> None:
        logged = self._at.done - (self._at.owed is not None) if self._at.done else None
        with _Log(self.folder, logged) if self._world.main else nullcontext() as log:
            if self._at.done == 0:
                self._look(log, {})
            while self._at.owed is not None or not self._over():
                if self._at.owed is None:
                    self._step()
                self._conclude(log, self._at.owed or {})

    def _step(self) -> None:
        """One iteration, which Ctrl-C does not cut in two."""
        with self._whole(f"iteration {self._at.done + 1}"):
            began, self._stepping = time.perf_counter(), True
            metrics = self.algorithm.iterate(self.learner, self._at.done)
            metrics["seconds"] = time.perf_counter() - began
            self._at = replace(self._at, done=self._at.done + 1, owed=metrics)
            self._stepping = False

    def _conclude(self, log: _Log | None, metrics: Metrics) -> None:
        """Check on the last iteration, log it, keep it."""
        metrics = self._look(log, metrics)
        if self._over() or self._due(self.settings.checkpoint_every):
            self._save()
        if self._report:
            self._report(self.algorithm.name, self._at.done, self.algorithm.iterations, metrics)

    def _look(self, log: _Log | None, metrics: Metrics) -> Metrics:
        """Log these metrics, with val's where it is due; what was done counts only once it is logged."""
        due = self._evaluate is not None and (self._at.done == 0 or self._due(self.settings.eval_every))
        found = self._checked() if due else Evaluation({})
        metrics = {**metrics, **found.metrics}
        at = replace(self._after_check(found), owed=None)
        at = replace(at, silent=metrics.get("frac_no_signal") == 1) if self._at.done else at
        notes = self._notes(at, metrics)
        if log is not None:
            log.write(at.done, metrics, found.samples, notes)
        self._at = at
        for text in notes:
            self._tell(text)
        return metrics

    def _checked(self) -> Evaluation:
        """What a look finds now; keeps the weights if their reward on val is the best so far."""
        assert self._evaluate is not None
        alone = self._world.size == 1  # several would wait for one that breaks it off
        with nullcontext() if alone else self._whole("the check on val"):
            found = self._evaluate()
        if found.metrics.get("val/reward", self._at.best) > self._at.best and self._world.main:
            with whole_folder(self.folder / "best") as folder:
                self.learner.save(folder)
        return found

    def _after_check(self, found: Evaluation) -> _Progress:
        if "val/reward" not in found.metrics:
            return self._at
        reward = found.metrics["val/reward"]
        return replace(
            self._at, best=max(reward, self._at.best), stale=0 if reward > self._at.best else self._at.stale + 1
        )

    def _notes(self, at: _Progress, metrics: Metrics) -> list[str]:
        """What whoever watches should know about the iteration just done."""
        notes = []
        if at.silent and not self._at.silent:
            notes.append(_no_signal(self.algorithm.name, at.done, metrics["reward"]))
        if self._exhausted(at) and at.done < self.algorithm.iterations:
            notes.append(
                f"{self.algorithm.name} ends early, at iteration {at.done} of {self.algorithm.iterations}: the reward "
                f"on val was no higher than {at.best:.3f} in {at.stale} checks (--loop.patience)"
            )
        return notes

    def _over(self) -> bool:
        return self._at.done == self.algorithm.iterations or self._exhausted(self._at)

    def _exhausted(self, at: _Progress) -> bool:
        return 0 < self.settings.patience <= at.stale

    def _due(self, every: int) -> bool:
        return self._at.done == self.algorithm.iterations or (every > 0 and self._at.done % every == 0)

    def _whole(self, work: str) -> AbstractContextManager[None]:
        """A block that Ctrl-C does not cut in two, and after which it is raised in all processes."""
        said = f"stopping once {work} is done; Ctrl-C again stops now, and loses more"
        return put_off(lambda: self._tell(said), self._world.anywhere)

    def _tell(self, text: str) -> None:
        if self._note:
            self._note(text)

    def _trained(self) -> Path:
        best = self.folder / "best"
        return best if best.is_dir() else self.folder / "last"

    def _save(self) -> None:
        """Weights for use and a state to resume from, each replaced whole or not at all."""
        import torch

        if not self._world.main:
            return
        with whole_folder(self.folder / "last") as folder:
            self.learner.save(folder)
        run = {"algorithm": self.algorithm.name, "iterations": self.algorithm.iterations}
        with whole_file(self.folder / "state.pt") as path:
            torch.save({**run, "progress": asdict(self._at), **self.learner.state()}, path)
        if self._saved:
            self._saved()

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
        self._at = _Progress(**state["progress"])
        self.learner.load_state(state)


def _no_signal(algorithm: str, iteration: int, reward: float) -> str:
    return (
        f"{algorithm} iteration {iteration}: the replies to each prompt all earn the same ({reward:.2f} on average), "
        "so nothing tells good from bad. If this lasts: a longer warm start (--warm-start.epochs), a graded reward "
        f"(--reward f1, typed or mix), more samples (--{algorithm}.group), a higher --{algorithm}.temperature"
    )


class _Log:
    """metrics.jsonl, samples.jsonl and TensorBoard.

    What a lost stretch wrote is dropped: everything after the iteration that was `logged` last, or all of it for None.
    """

    def __init__(self, folder: Path, logged: int | None) -> None:
        self._metrics, self._samples = folder / "metrics.jsonl", folder / "samples.jsonl"
        for path in (self._metrics, self._samples):
            journal.cut_back(path, logged)
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=0 if logged is None else logged + 1)

    def write(self, iteration: int, metrics: Metrics, samples: Sequence[Sample], notes: Sequence[str]) -> None:
        for sample in samples:
            journal.append(self._samples, {"iteration": iteration, **asdict(sample)})
        if metrics or notes:
            said = {"notes": notes} if notes else {}
            journal.append(self._metrics, {"iteration": iteration, **metrics, **said})
        for name, value in metrics.items():
            self._board.add_scalar(name, value, iteration)
        self._board.flush()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exception: object) -> None:
        self._board.close()
