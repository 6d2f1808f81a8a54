"""Several processes: two of them, over gloo, come to what one comes to, and leave one run folder; see crew.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import crew
from memory_r1.rl.model.parallel import World, join

HERE = Path(__file__).parent
PATIENCE_S = 300


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes write."""
    folder = tmp_path_factory.mktemp("crew")
    crew.write_data(folder / "toy.jsonl")
    return folder


@pytest.fixture(scope="module")
def two(ragged_folder: Path, out: Path) -> list[dict[str, Any]]:
    """What each of two processes says after all lessons."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(HERE / "crew.py"), str(ragged_folder), str(out)]
    logs = [out / f"rank{rank}.log" for rank in range(2)]
    started = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(PATIENCE_S) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
    return [torch.load(out / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


# One process


def test_a_process_that_no_launcher_started_is_a_world_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    world = join()
    assert (world.rank, world.size, world.device, world.main) == (0, 1, None, True)
    assert world.map(lambda number: number * 2, [3, 1, 2]) == [6, 2, 4]
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    world.sum_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("items", "shares"), [(5, [[0, 3], [1, 4], [2]]), (2, [[0], [1], []]), (0, [[], [], []])])
def test_items_are_dealt_round_and_some_processes_may_get_none(items: int, shares: list[list[int]]) -> None:
    dealt = []
    for rank in range(3):
        world = World()
        world.rank, world.size = rank, 3
        dealt.append(list(world.share(range(items))))
    assert dealt == shares


# Two processes against one


@pytest.mark.parametrize("name", crew.LESSONS)
def test_two_processes_take_the_very_steps_of_one(ragged_folder: Path, two: list[dict[str, Any]], name: str) -> None:
    """Gradients, weights and metrics, where a process has an odd share, or none."""
    alone = crew.LESSONS[name](ragged_folder)
    for told in two:
        found = told["lessons"][name]
        assert found.keys() == alone.keys()
        assert len(found["gradients"]) == len(alone["gradients"])
        for ours, wanted in zip(found["gradients"], alone["gradients"], strict=True):
            assert wanted.norm() > 1e-2
            assert (ours - wanted).norm() < 1e-6 * max(1.0, float(wanted.norm()))
        assert found["weights"].keys() == alone["weights"].keys()
        for weight, wanted in alone["weights"].items():
            torch.testing.assert_close(found["weights"][weight], wanted, atol=1e-6, rtol=1e-5)
        assert found["metrics"] == pytest.approx(alone["metrics"], abs=1e-6, rel=1e-5)


@pytest.mark.parametrize("name", crew.LESSONS)
def test_both_processes_have_the_same_weights_to_the_last_bit(two: list[dict[str, Any]], name: str) -> None:
    one, other = (told["lessons"][name] for told in two)
    assert one["metrics"] == other["metrics"]
    assert all(other["weights"][weight].equal(value) for weight, value in one["weights"].items())


def test_advantages_are_whitened_over_the_batch_of_all_processes(two: list[dict[str, Any]]) -> None:
    for told in two:
        advantages = told["lessons"]["ppo"]["advantages"]
        assert advantages.mean().item() == pytest.approx(0, abs=1e-6)
        assert advantages.std().item() == pytest.approx(1, abs=1e-6)


def test_a_step_without_signal_in_any_process_moves_nothing(two: list[dict[str, Any]]) -> None:
    """A gradient of zeros would let the optimizer's moments move the weights on."""
    assert [told["lessons"]["silent"]["moved"] for told in two] == [False, False]


def test_all_processes_hold_the_whole_iterations_rollouts_each_drawn_by_one_of_them(two: list[dict[str, Any]]) -> None:
    drawn = two[0]["sampled"]["groups"]
    assert two[1]["sampled"]["groups"] == drawn
    assert [len(groups) for groups in drawn] == [3, 2, 1]
    assert drawn[1][0] != drawn[1][1]  # the same prompt, drawn by two processes


def test_rollouts_of_all_processes_are_of_one_version_of_the_weights(two: list[dict[str, Any]]) -> None:
    assert [told["sampled"]["versions"] for told in two] == [[0, 0, 0, 1, 1, 1]] * 2


def test_results_are_in_the_order_of_the_items_whoever_made_them(two: list[dict[str, Any]]) -> None:
    for told in two:
        assert told["anywhere"] == [True, False]
        assert told["in order"] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]


# Runs


def test_a_run_of_two_processes_ends_with_one_adapter_and_the_same_weights_in_both(
    two: list[dict[str, Any]], out: Path
) -> None:
    one, other = (told["trained"] for told in two)
    assert one["adapter"] == other["adapter"] == str(out / "run" / "adapter")
    names = {path.name for path in (out / "run" / "adapter").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "memory_r1.json"}
    assert one["weights"].keys() == other["weights"].keys()
    assert all(other["weights"][name].equal(weight) for name, weight in one["weights"].items())
    assert any(weight.any() for name, weight in one["weights"].items() if "lora_B" in name)


def test_the_main_process_alone_writes_and_reports(two: list[dict[str, Any]], out: Path) -> None:
    assert [told["trained"]["heard"] for told in two] == [["sft 1/2", "sft 2/2", "grpo 1/1"], []]
    lines = [json.loads(line) for line in (out / "run" / "grpo" / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1]
    assert len(list((out / "run" / "grpo" / "tensorboard").glob("events.*"))) == 1


def test_a_run_of_two_processes_that_was_stopped_goes_on_to_the_same_weights(
    two: list[dict[str, Any]], out: Path
) -> None:
    assert (out / "stopped" / "best").is_dir()
    for told in two:
        assert told["resumed"]["iterations"] == 4
        assert told["resumed"]["stopped"] == told["resumed"]["whole"] == two[0]["resumed"]["whole"]


def test_a_ctrl_c_in_one_process_ends_both_after_the_same_iteration_and_both_go_on(
    two: list[dict[str, Any]], out: Path
) -> None:
    """In the second of four iterations; then in the check after the third, which is made up for."""
    for told in two:
        one = told["interrupted"]
        assert [one[when][1] for when in ("in an iteration", "in a check", "at last")] == [2, 3, 4]
        assert one["at last"] == one["whole"] == two[0]["interrupted"]["whole"]
    whole, stopped = (
        [json.loads(line)["val/reward"] for line in (out / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("never pressed", "pressed")
    )
    assert whole == stopped
    assert len(whole) == 5


def test_one_process_goes_on_with_the_run_of_two(ragged_folder: Path, two: list[dict[str, Any]], out: Path) -> None:
    before = (out / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
    assert crew.trained(ragged_folder, out / "toy.jsonl", out / "run")["heard"] == []
    assert (out / "run" / "adapter" / "adapter_model.safetensors").read_bytes() == before


# What is refused


def test_processes_that_are_not_alike_are_refused_by_all_and_leave_nothing(
    two: list[dict[str, Any]], out: Path
) -> None:
    for told in two:
        assert told["other settings"].startswith("process 1 of 2 has other settings, models or data than the main one")
    assert not (out / "other").exists()


def test_a_process_that_is_left_alone_says_so_in_one_line(two: list[dict[str, Any]]) -> None:
    assert two[0]["alone"].startswith("the other processes cannot be reached (")


def test_the_command_line_runs_as_a_module_as_launchers_start_it() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "memory_r1.cli", "train", "manager", "--help"], capture_output=True, text=True
    )
    assert ran.returncode == 0
    assert "usage: memory-r1 train" in ran.stdout
