"""Training in a real process that is killed, or told to stop, and goes on to the numbers it would have reached.

A life of the process is a fork of one that has everything imported and has computed nothing. Points of a run are where
something on disk or in the weights changes; a life kills itself at one of them, as if the power had gone.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import pytest

from memory_r1.memory.answer import AnswerSettings
from memory_r1.rl.algorithms.grpo import GRPOSettings
from memory_r1.rl.algorithms.ppo import CriticSettings, PPOSettings
from memory_r1.rl.algorithms.sft import SFTSettings
from memory_r1.rl.model.learner import LearnerSettings
from memory_r1.rl.run.loop import LoopSettings
from memory_r1.rl.settings import TrainSettings
from nursery import start

SETTINGS = TrainSettings(
    train="a",
    val="b",
    reward="f1",
    answer=AnswerSettings(k=2, per_speaker=False, max_tokens=4),
    learner=LearnerSettings(lora_rank=2, precision="float32"),
    warm_start=SFTSettings(epochs=1, shuffles=1, batch=2, lr=1e-2),
    grpo=GRPOSettings(prompts=1, group=3, lr=1e-2, update_epochs=2),
    ppo=PPOSettings(prompts=1, group=2, lr=1e-2, minibatches=1, critic=CriticSettings(warmup=1)),
    loop=LoopSettings(eval_every=1, checkpoint_every=2, samples=2),
)
Algo = Literal["grpo", "ppo"]
Which = Literal["first", "middle", "last"]
DEATHS: dict[str, Which] = {
    "before sampling": "first",  # the warm start is over, the algorithm has not begun
    "after sampling": "middle",
    "after a step of the critic": "middle",
    "after a step of the policy": "last",
    "before a check on val": "middle",
    "within a line of metrics.jsonl": "last",
    "within a line of samples.jsonl": "middle",
    "after saving weights": "last",
    "before renaming a folder": "middle",
    "after renaming a folder": "last",
    "before torch.save": "last",
    "after torch.save": "middle",
    "before replacing a file": "last",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two dialogues with three questions each."""
    facts = {"dog": "Rex", "cat": "Tom", "boat": "Ada"}
    turns = [
        {"dialogue": dialogue, "turn": f"{dialogue}-{pet}", "speaker": "Ann", "text": f"My {pet} is called {name}"}
        for dialogue in "ab"
        for pet, name in facts.items()
    ]
    asked = [
        {"dialogue": dialogue, "question": f"Name of the {pet}?", "answer": name, "evidence": [f"{dialogue}-{pet}"]}
        for dialogue in "ab"
        for pet, name in facts.items()
    ]
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in [*turns, *asked]), encoding="utf-8")
    return path


# The life of a process


def awake(say: Connection) -> None:
    """Import what training imports, once for all lives; says so as it goes, since a busy machine takes its time."""
    for name in ("torch", "transformers.models.llama.modeling_llama", "peft", "torch.utils.tensorboard"):
        import_module(name)
        say.send(name)


def train(base: Path, data: Path, out: Path, algo: Algo) -> None:
    from memory_r1.bank import HashingEmbedder
    from memory_r1.bench.dataset import load_dataset
    from memory_r1.policy import LocalPolicy
    from memory_r1.rl.train import train_answer_agent

    settings = replace(SETTINGS, algo=algo)
    train_answer_agent(LocalPolicy(base, device="cpu"), load_dataset(data), settings, out, embedder=HashingEmbedder())


@contextmanager
def watched(point: Callable[[str], None]) -> Any:
    """Every change of weights and files in the block is a point before and after."""
    import torch

    from memory_r1.rl import train as training
    from memory_r1.rl.algorithms import update
    from memory_r1.rl.model.critic import Critic
    from memory_r1.rl.model.learner import Learner
    from memory_r1.rl.run import journal

    def around(owner: Any, name: str, said: str) -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            point(f"before {said}")
            result = inner(*args, **kwargs)
            point(f"after {said}")
            return result

        patch.setattr(owner, name, call)

    def torn(path: Path, record: Any) -> None:
        before = path.stat().st_size
        append(path, record)
        whole_line = path.read_bytes()
        with path.open("rb+") as file:
            file.truncate(before + 9)
        point(f"within a line of {path.name}")
        path.write_bytes(whole_line)

    append = journal.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "append", torn)
        around(journal, "cut_back", "cutting a journal back")
        around(os, "replace", "replacing a file")
        around(os, "rename", "renaming a folder")
        around(torch, "save", "torch.save")
        around(Learner, "save", "saving weights")
        around(Learner, "step", "a step of the policy")
        around(Critic, "step", "a step of the critic")
        around(training, "evaluate", "a check on val")
        around(update, "sample_rollouts", "sampling")
        yield


def one_life(life: Callable[[], None]) -> int:
    """Run this in a fork; returns its exit code, the negative signal number if one killed it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            life()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fated(base: Path, data: Path, out: Path, algo: Algo, fatal: int, log: Path | None = None) -> None:
    """Train until the point of this number; `log` gathers the names of the points passed."""
    passed: list[str] = []

    def point(name: str) -> None:
        passed.append(name)
        if len(passed) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(point):
        train(base, data, out, algo)
    if log:
        log.write_text("\n".join(passed), encoding="utf-8")


def killed_everywhere(say: Connection, base: Path, data: Path, folder: Path, algo: Algo) -> None:
    """One whole run; then, for each death, a run that is killed there and one that goes on from what it left."""
    awake(say)
    log = folder / "points"
    assert one_life(partial(fated, base, data, folder / "whole", algo, 0, log)) == 0
    points = log.read_text(encoding="utf-8").split("\n")
    fatal = sorted({_chosen(points, name, which) for name, which in DEATHS.items() if name in points})
    for number in fatal:
        out = folder / str(number)
        killed = one_life(partial(fated, base, data, out, algo, number))
        finished = one_life(partial(train, base, data, out, algo))
        say.send((points[number - 1], str(number), killed, finished))


def _chosen(points: Sequence[str], name: str, which: Which) -> int:
    numbers = [number for number, one in enumerate(points, start=1) if one == name]
    return {"first": numbers[0], "middle": numbers[len(numbers) // 2], "last": numbers[-1]}[which]


# What is left


def written(run: Path, algo: Algo) -> dict[str, Any]:
    """Everything a run says, without times, and every weight it leaves."""
    from safetensors.torch import load_file

    said = {
        f"{name}/{file}": [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (run / name / file).read_text(encoding="utf-8").splitlines()
        ]
        for name in ("sft", algo)
        for file in ("metrics.jsonl", "samples.jsonl")
    }
    folders = [run / name / kept for name in ("sft", algo) for kept in ("best", "last")]
    weights = {
        str(folder.relative_to(run)): {
            name: weight.tolist() for name, weight in load_file(folder / "adapter_model.safetensors").items()
        }
        for folder in (*folders, run / "adapter")
    }
    return said | weights


def leftovers(run: Path) -> set[str]:
    return {path.name for path in run.rglob("*") if path.suffix in (".partial", ".old")}


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_numbers_and_weights(
    ragged_folder: Path, data: Path, tmp_path: Path, algo: Algo
) -> None:
    heard = start(killed_everywhere, ragged_folder, data, tmp_path, algo).rest()
    deaths = [said for said in heard if isinstance(said, tuple)]
    assert {place for place, *_ in deaths} == DEATHS.keys() - (
        {"after a step of the critic"} if algo == "grpo" else set()
    )
    whole = written(tmp_path / "whole", algo)
    for place, number, killed, finished in deaths:
        assert (killed, finished) == (-signal.SIGKILL, 0), place
        assert written(tmp_path / number, algo) == whole, place
        assert leftovers(tmp_path / number) == set(), place


# Ctrl-C


def interrupted(say: Connection, base: Path, data: Path, out: Path) -> None:
    """The command itself; in GRPO's second iteration it says so, and waits there for the signal."""
    awake(say)
    from memory_r1 import cli
    from memory_r1.bank import HashingEmbedder
    from memory_r1.rl import train
    from memory_r1.rl.algorithms.grpo import GRPO

    theirs, ours = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno())
    iterate = GRPO.iterate

    def slow(algorithm: GRPO, learner: Any, iteration: int) -> Any:
        say.send("at work")
        if iteration == 1:
            say.send(os.getpid())
            ours.recv(1)  # a byte comes with the signal
        return iterate(algorithm, learner, iteration)

    flags = (
        f"train answer --data {data} --model {base} --out {out} --train a --val b --reward f1 --answer.k 2 "
        "--answer.no-per-speaker --answer.max-tokens 4 --learner.lora-rank 2 --learner.precision float32 "
        "--warm-start.epochs 1 --warm-start.shuffles 1 --warm-start.batch 2 --warm-start.lr 1e-2 --grpo.prompts 1 "
        "--grpo.group 3 --grpo.lr 1e-2 --grpo.update-epochs 2 --loop.eval-every 1 --loop.checkpoint-every 2 "
        "--loop.samples 2"
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        Path(f"{out}.err").open("w") as err,
        Path(f"{out}.out").open("w") as out_,
    ):
        patch.setattr(train, "train_answer_agent", partial(train.train_answer_agent, embedder=HashingEmbedder()))
        patch.setattr(GRPO, "iterate", slow)
        with redirect_stderr(err), redirect_stdout(out_):
            code = cli.main(flags.split())
    say.send(code)


def test_ctrl_c_ends_the_command_with_130_and_the_same_command_goes_on(
    ragged_folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    child = start(interrupted, ragged_folder, data, out)
    pid = next(said for said in iter(child.hear, None) if isinstance(said, int))
    os.kill(pid, signal.SIGINT)
    assert child.result() == 130
    said = Path(f"{out}.err").read_text(encoding="utf-8").splitlines()
    assert "stopping once iteration 2 is done; Ctrl-C again stops now, and loses more" in said
    assert said[-1] == "memory-r1: stopped; run the same command again to go on"
    lines = (out / "grpo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1]  # the second is done, its check is owed

    assert start(interrupted, ragged_folder, data, out).result() == 0  # and never comes by its second iteration
    told = Path(f"{out}.out").read_text(encoding="utf-8")
    assert f"report: {out / 'report.html'}" in told
    train(ragged_folder, data, tmp_path / "whole", "grpo")
    assert written(out, "grpo") == written(tmp_path / "whole", "grpo")
