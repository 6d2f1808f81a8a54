"""The loop: a run that was stopped goes on to the same numbers, the best weights are kept, other runs are refused."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import Letters, new_learner
from memory_r1.errors import InputError, TrainingError
from memory_r1.policy.base import Completion
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.rollout import one_by_one
from memory_r1.rl.run.evaluation import Evaluation, evaluate
from memory_r1.rl.run.loop import Algorithm, Loop, LoopSettings, Metrics
from rollouts import Stopped

EPISODES = [Letters(text) for text in ("one", "two", "three", "four", "five")]
SETTINGS = GRPOSettings(epochs_over_data=2.8, prompts=2, group=3, lr=1e-2, kl_coef=0.01, update_epochs=2)
GRPO_RUN = GRPO(EPISODES, SETTINGS, max_tokens=4)
EVERY = LoopSettings(eval_every=2, checkpoint_every=3)


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

    def look() -> Evaluation:
        return evaluate(learner, EPISODES, [], shown=2, max_tokens=8, score=one_by_one)

    return Loop(learner, algorithm, folder, EVERY, evaluate=look).run()


def count(base: Path, folder: Path, rewards: Iterable[float] | None, algorithm: Algorithm | None = None) -> Path:
    """Run the counting algorithm while val gives these rewards, one after the other."""
    given = iter(rewards or ())
    look = (lambda: Evaluation({"val/reward": next(given)})) if rewards is not None else None
    every = LoopSettings(eval_every=1, checkpoint_every=1)
    return Loop(new_learner(base), algorithm or Counting(), folder, every, evaluate=look).run()


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


# Ctrl-C


def press(times: int = 1) -> None:
    """Ctrl-C, as a terminal sends it to this process."""
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


@dataclass(frozen=True)
class Pressed(Counting):
    """Ctrl-C is pressed so many times in the middle of this iteration."""

    at: int = 2
    times: int = 1

    def iterate(self, learner: Learner, iteration: int) -> Metrics:
        if iteration == self.at:
            with torch.no_grad():
                for weight in trained(learner):
                    weight.fill_(99.0)  # on the way from one iteration to the next
            press(self.times)
        return super().iterate(learner, iteration)


def test_ctrl_c_waits_for_the_end_of_the_iteration_and_loses_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    never = LoopSettings(eval_every=0, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        Loop(new_learner(tiny_folder), Pressed(at=2), tmp_path, never, note=heard.append).run()
    assert heard == ["stopping once iteration 3 is done; Ctrl-C again stops now, and loses more"]
    assert made_by(tmp_path / "last") == {3.0}
    Loop(new_learner(tiny_folder), Stopped(Counting(), 2), tmp_path, never).run()  # which is not done again
    assert metrics(tmp_path) == [{"iteration": i + 1, "loss": float(i)} for i in range(4)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once_and_goes_back_to_the_last_state(tiny_folder: Path, tmp_path: Path) -> None:
    every = LoopSettings(eval_every=0, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        Loop(new_learner(tiny_folder), Pressed(at=3, times=2), tmp_path, every).run()
    assert made_by(tmp_path / "last") == {2.0}
    Loop(new_learner(tiny_folder), Counting(), tmp_path, every).run()
    assert metrics(tmp_path) == [{"iteration": i + 1, "loss": float(i)} for i in range(4)]


@pytest.mark.parametrize("broken", [1, 2, 4])
def test_ctrl_c_breaks_off_a_check_on_val_which_is_made_up_for(tiny_folder: Path, tmp_path: Path, broken: int) -> None:
    """A check is broken off: the weights are kept, and it is the first thing done when the run goes on."""
    rewards = [0.1, 0.3, 0.5, 0.2, 0.2]
    checks = iter(range(5))

    def look() -> Evaluation:
        check = next(checks)
        if check == broken and not (tmp_path / "state.pt").exists():
            press()
        return Evaluation({"val/reward": rewards[check]})

    never = LoopSettings(eval_every=1, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        Loop(new_learner(tiny_folder), Counting(), tmp_path, never, evaluate=look).run()
    assert made_by(tmp_path / "last") == {float(broken)}
    assert [line["iteration"] for line in metrics(tmp_path)] == list(range(broken))
    checks = iter(range(broken, 5))
    best = Loop(new_learner(tiny_folder), Counting(), tmp_path, never, evaluate=look).run()
    assert made_by(best) == {2.0}
    assert [(line["iteration"], line["val/reward"]) for line in metrics(tmp_path)] == list(enumerate(rewards))


def test_outside_the_main_thread_the_signals_are_left_alone(tiny_folder: Path, tmp_path: Path) -> None:
    loop = Loop(new_learner(tiny_folder), Counting(), tmp_path, EVERY)
    thread = threading.Thread(target=loop.run)
    thread.start()
    thread.join()
    assert made_by(tmp_path / "last") == {4.0}


# Ending early


def patient(base: Path, folder: Path, rewards: Iterable[float], heard: list[str], at: int = 99) -> Path:
    given = iter(rewards)
    settings = LoopSettings(eval_every=1, checkpoint_every=0, patience=2)
    look = lambda: Evaluation({"val/reward": next(given)})  # noqa: E731
    algorithm = Pressed(iterations=9, at=at)
    return Loop(new_learner(base), algorithm, folder, settings, evaluate=look, note=heard.append).run()


def test_training_ends_when_val_has_not_risen_for_too_long(tiny_folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    rewards = [0.1, 0.5, 0.4, 0.6, 0.6, 0.3, 0.9]  # the first is before any iteration; equal is not higher
    best = patient(tiny_folder, tmp_path, rewards, heard)
    assert made_by(best) == {3.0}
    assert made_by(tmp_path / "last") == {5.0}
    assert heard == [
        "counting ends early, at iteration 5 of 9: the reward on val was no higher than 0.600 in 2 checks "
        "(--loop.patience)"
    ]
    assert metrics(tmp_path)[-1]["notes"] == heard
    before = metrics(tmp_path)
    assert patient(tiny_folder, tmp_path, [], heard) == best  # it is over, and stays so
    assert (metrics(tmp_path), len(heard)) == (before, 1)


def test_patience_is_counted_on_across_a_stop(tiny_folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        patient(tiny_folder, tmp_path, [0.5, 0.4, 0.4], heard, at=1)
    patient(tiny_folder, tmp_path, [0.4], heard)  # the second check without a higher reward, owed since the stop
    assert [line["iteration"] for line in metrics(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("settings", [{"patience": -1}, {"samples": -1}, {"patience": 2, "eval_every": 0}])
def test_loop_settings_that_cannot_be_meant_are_an_input_error(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"^loop\.(patience|samples) is"):
        LoopSettings(**settings)


# No signal


@dataclass(frozen=True)
class Silent(Counting):
    """An algorithm whose iterations of these numbers have no signal."""

    iterations: int = 6
    at: tuple[int, ...] = (1, 2, 4)
    pressed: int = 99

    def iterate(self, learner: Learner, iteration: int) -> Metrics:
        if iteration == self.pressed:
            press()
        return {"reward": 0.25, "frac_no_signal": float(iteration in self.at), **super().iterate(learner, iteration)}


def test_a_stretch_without_signal_is_told_once_with_what_to_do(tiny_folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    Loop(new_learner(tiny_folder), Silent(), tmp_path, EVERY, note=heard.append).run()
    assert [text.split(":")[0] for text in heard] == ["counting iteration 2", "counting iteration 5"]
    for remedy in (
        "0.25 on average",
        "--warm-start.epochs",
        "--reward f1",
        "--counting.group",
        "--counting.temperature",
    ):
        assert remedy in heard[0]
    assert {line["iteration"]: line["notes"] for line in metrics(tmp_path) if "notes" in line} == {
        2: [heard[0]],
        5: [heard[1]],
    }


def test_a_stretch_without_signal_is_not_told_again_when_a_run_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Loop(new_learner(tiny_folder), Silent(pressed=1), tmp_path, EVERY, note=heard.append).run()
    Loop(new_learner(tiny_folder), Silent(), tmp_path, EVERY, note=heard.append).run()
    assert [text.split(":")[0] for text in heard][1:] == ["counting iteration 2", "counting iteration 5"]


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
    journals = {"metrics.jsonl", "samples.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == {"best", "last", "state.pt", "tensorboard", *journals}
    assert list((tmp_path / "tensorboard").glob("events.*"))
    assert {path.name for path in (tmp_path / "last").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


def test_val_is_asked_before_every_few_iterations_and_at_the_end(ragged_folder: Path, tmp_path: Path) -> None:
    run(ragged_folder, tmp_path)
    lines = metrics(tmp_path)
    assert [line["iteration"] for line in lines] == list(range(8))
    assert [line["iteration"] for line in lines if "val/reward" in line] == [0, 2, 4, 6, 7]


def test_the_replies_to_the_same_episodes_are_kept_at_every_check(ragged_folder: Path, tmp_path: Path) -> None:
    run(ragged_folder, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["episode"]) for line in lines] == [
        (iteration, episode) for iteration in (0, 2, 4, 6, 7) for episode in ("one", "three")
    ]
    assert {line["prompt"] for line in lines} == {"one", "three"}
    assert all(line["reward"] == Letters("").reward(Completion(line["reply"])).value for line in lines)


def test_every_iteration_is_reported(tiny_folder: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int, float]] = []

    def report(name: str, done: int, of: int, metrics: Mapping[str, float]) -> None:
        heard.append((name, done, of, metrics["loss"]))

    Loop(new_learner(tiny_folder), Counting(), tmp_path, EVERY, report=report).run()
    assert heard == [("counting", i + 1, 4, float(i)) for i in range(4)]
