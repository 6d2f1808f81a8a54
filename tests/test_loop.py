"""The loop: a run that was stopped goes on to the same numbers, the best weights are kept, other runs are refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import Letters, new_learner
from memory_r1.errors import TrainingError
from memory_r1.policy.base import Sampling
from memory_r1.rl.grpo import GRPO, GRPOSettings
from memory_r1.rl.learner import Learner
from memory_r1.rl.loop import Algorithm, Loop, LoopSettings, Metrics

EPISODES = [Letters(text) for text in ("one", "two", "three", "four", "five")]
SETTINGS = GRPOSettings(epochs_over_data=2.8, prompts=2, group=3, lr=1e-2, kl_coef=0.01, update_epochs=2)
GRPO_RUN = GRPO(EPISODES, SETTINGS, max_tokens=4)
EVERY = LoopSettings(eval_every=2, checkpoint_every=3)


@dataclass(frozen=True)
class Stopped:
    """An algorithm during whose iteration of this number somebody presses Ctrl-C."""

    inner: Algorithm
    at: int

    @property
    def name(self) -> str:
        return self.inner.name

    def prepare(self, learner: Learner) -> None:
        self.inner.prepare(learner)

    @property
    def iterations(self) -> int:
        return self.inner.iterations

    def iterate(self, learner: Learner, iteration: int) -> Metrics:
        if iteration == self.at:
            raise KeyboardInterrupt
        return self.inner.iterate(learner, iteration)


@dataclass(frozen=True)
class Counting:
    """An algorithm whose weights say how many iterations made them."""

    iterations: int = 4
    name: str = "counting"

    def prepare(self, learner: Learner) -> None:
        pass

    def iterate(self, learner: Learner, iteration: int) -> Metrics:
        with torch.no_grad():
            for weight in trained(learner):
                weight.fill_(iteration + 1)
        return {"loss": float(iteration)}


def trained(learner: Learner) -> list[torch.nn.Parameter]:
    return [weight for weight in learner.model.parameters() if weight.requires_grad]


def run(base: Path, folder: Path, lora_rank: int = 4, algorithm: Algorithm = GRPO_RUN) -> Path:
    """Train on a fresh learner with val: the share of letters in greedy replies."""
    learner = new_learner(base, lora_rank)

    def evaluate() -> Metrics:
        completions = learner.policy.complete([episode.prompt for episode in EPISODES], Sampling(8))
        return {"val/reward": sum(EPISODES[0].reward(one).value for one in completions) / len(completions)}

    return Loop(learner, algorithm, folder, EVERY, evaluate=evaluate).run()


def count(base: Path, folder: Path, rewards: Iterable[float] | None, algorithm: Algorithm | None = None) -> Path:
    """Run the counting algorithm while val gives these rewards, one after the other."""
    given = iter(rewards or ())
    evaluate = (lambda: {"val/reward": next(given)}) if rewards is not None else None
    every = LoopSettings(eval_every=1, checkpoint_every=1)
    return Loop(new_learner(base), algorithm or Counting(), folder, every, evaluate=evaluate).run()


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    loaded: dict[str, torch.Tensor] = load_file(path)
    return loaded


def same(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def made_by(folder: Path) -> set[float]:
    """The numbers that the counting algorithm left in these weights."""
    return {value for weight in weights(folder).values() for value in weight.flatten().tolist()}


# Resuming


@pytest.mark.parametrize("lora_rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_stopped_run_goes_on_to_the_same_weights_and_metrics(
    ragged_folder: Path, tmp_path: Path, lora_rank: int, at: int
) -> None:
    """Stopped before the first state, between two, and right after one; iterations after a state are done again."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(ragged_folder, whole, lora_rank)
    with pytest.raises(KeyboardInterrupt):
        run(ragged_folder, stopped, lora_rank, Stopped(GRPO_RUN, at))
    run(ragged_folder, stopped, lora_rank)
    assert GRPO_RUN.iterations == 7
    assert metrics(stopped) == metrics(whole)
    assert same(stopped / "last", whole / "last")
    assert same(stopped / "best", whole / "best")


def test_the_same_seed_gives_the_same_run_and_another_gives_another(ragged_folder: Path, tmp_path: Path) -> None:
    short = replace(GRPO_RUN, settings=replace(SETTINGS, epochs_over_data=0.8))
    for name, algorithm in (("a", short), ("b", short), ("c", replace(short, seed=1))):
        run(ragged_folder, tmp_path / name, algorithm=algorithm)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert same(tmp_path / "a" / "last", tmp_path / "b" / "last")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


def test_a_finished_run_is_not_run_again(tiny_folder: Path, tmp_path: Path) -> None:
    first = count(tiny_folder, tmp_path, None)
    before = metrics(tmp_path)
    assert count(tiny_folder, tmp_path, None, Stopped(Counting(), 0)) == first
    assert metrics(tmp_path) == before


def test_metrics_that_a_lost_stretch_wrote_are_dropped_even_a_line_cut_short(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        count(tiny_folder, tmp_path, None, Stopped(Counting(), 2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "loss": 99.0}\n{"iteration": 4, "lo')
    count(tiny_folder, tmp_path, None)
    assert metrics(tmp_path) == [{"iteration": i + 1, "loss": float(i)} for i in range(4)]


@pytest.mark.parametrize(
    "other", [replace(GRPO_RUN, settings=replace(SETTINGS, epochs_over_data=9)), Counting(GRPO_RUN.iterations)]
)
def test_the_state_of_another_run_is_refused_and_left_as_it_was(
    tiny_folder: Path, tmp_path: Path, other: Algorithm
) -> None:
    Loop(new_learner(tiny_folder), other, tmp_path, EVERY).run()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=rf"^{tmp_path / 'state.pt'} belongs to {other.name} over"):
        run(tiny_folder, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_state_of_another_adapter_size_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    count(tiny_folder, tmp_path, None)
    with pytest.raises(TrainingError, match="other weights than this run"):
        Loop(new_learner(tiny_folder, 8), Counting(), tmp_path, EVERY).run()


# What is kept


def test_the_weights_best_on_val_are_returned_and_of_equals_the_first(tiny_folder: Path, tmp_path: Path) -> None:
    best = count(tiny_folder, tmp_path, [0.1, 0.3, 0.5, 0.5, 0.2])  # before the first iteration and after each of four
    assert best == tmp_path / "best"
    assert made_by(best) == {2.0}
    assert made_by(tmp_path / "last") == {4.0}
    assert [line["val/reward"] for line in metrics(tmp_path)] == [0.1, 0.3, 0.5, 0.5, 0.2]


def test_training_that_only_harms_returns_the_weights_it_began_with(tiny_folder: Path, tmp_path: Path) -> None:
    best = weights(count(tiny_folder, tmp_path, [0.9, 0.3, 0.5, 0.5, 0.2]))
    assert all(weight.eq(0).all() for name, weight in best.items() if "lora_B" in name)


def test_the_best_so_far_survives_a_stop(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        count(tiny_folder, tmp_path, [0.1, 0.8, 0.3], Stopped(Counting(), 2))
    assert made_by(count(tiny_folder, tmp_path, [0.5, 0.6])) == {1.0}


def test_without_val_the_last_weights_are_returned(tiny_folder: Path, tmp_path: Path) -> None:
    last = count(tiny_folder, tmp_path, None)
    assert last == tmp_path / "last"
    assert made_by(last) == {4.0}
    assert not (tmp_path / "best").exists()


def test_a_run_folder_holds_state_metrics_weights_and_tensorboard_events(ragged_folder: Path, tmp_path: Path) -> None:
    run(ragged_folder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"best", "last", "metrics.jsonl", "state.pt", "tensorboard"}
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert {path.name for path in (tmp_path / "last").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


def test_val_is_asked_before_every_few_iterations_and_at_the_end(ragged_folder: Path, tmp_path: Path) -> None:
    run(ragged_folder, tmp_path)
    lines = metrics(tmp_path)
    assert [line["iteration"] for line in lines] == list(range(8))
    assert [line["iteration"] for line in lines if "val/reward" in line] == [0, 2, 4, 6, 7]


def test_every_iteration_is_reported(tiny_folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int, float]] = []

    def report(name: str, done: int, of: int, metrics: Mapping[str, float]) -> None:
        heard.append((name, done, of, metrics["loss"]))

    Loop(new_learner(tiny_folder), Counting(), tmp_path, EVERY, report=report).run()
    assert heard == [("counting", i + 1, 4, float(i)) for i in range(4)]
