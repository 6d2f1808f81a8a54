"""vLLM as the sampler: tokens in and out, log-probabilities, weights kept in step, whole runs. The engine is a fake."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import fake_vllm
from conftest import Letters, new_learner
from fake_vllm import Record
from memory_r1 import cli
from memory_r1.bank import HashingEmbedder
from memory_r1.bench.dataset import load_dataset
from memory_r1.errors import InputError, ModelError, PromptError, TrainingError
from memory_r1.memory.answer import AnswerSettings
from memory_r1.policy.base import Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.policy.vllm import VLLMSampler, VLLMSettings, require_vllm, served_rank
from memory_r1.rl.algorithms.grpo import GRPOSettings
from memory_r1.rl.algorithms.ppo import CriticSettings, PPOSettings
from memory_r1.rl.algorithms.sft import SFTSettings
from memory_r1.rl.model.learner import Learner, LearnerSettings
from memory_r1.rl.model.parallel import World
from memory_r1.rl.run.loop import LoopSettings
from memory_r1.rl.settings import TrainSettings
from memory_r1.rl.train import train_answer_agent

PROMPTS = [Letters(text).prompt for text in ("what?", "and who was it?", "the other one")]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Record:
    """The fake module, installed."""
    return fake_vllm.install(monkeypatch)


@pytest.fixture
def learner(ragged_folder: Path) -> Learner:
    """One whose adapter already says something."""
    learner = new_learner(ragged_folder)
    move(learner)
    return learner


def move(learner: Learner) -> None:
    """Take a step that changes every weight of the adapter."""
    for weight in learner.optimizer.param_groups[0]["params"]:
        weight.grad = torch.randn_like(weight)
    learner.step(0.05)


def sampler_of(learner: Learner, **settings: Any) -> VLLMSampler:
    return VLLMSampler(learner.policy, learner, learner.lora_rank, VLLMSettings(**settings))


# Tokens in, tokens out


def test_prompts_go_in_as_the_local_policys_tokens_and_no_other_tokenizer_is_loaded(
    vllm: Record, learner: Learner
) -> None:
    sampler = sampler_of(learner)
    sampler.sample(PROMPTS, Sampling(4, 1.0, seed=0), n=2)
    assert vllm.calls[0].prompts == [learner.policy.encode(prompt) for prompt in PROMPTS]
    assert sampler.encode(PROMPTS[0]) == learner.policy.encode(PROMPTS[0])
    assert vllm.started[0]["skip_tokenizer_init"]


def test_the_sampled_ids_are_kept_even_where_their_text_is_tokenised_otherwise(vllm: Record, learner: Learner) -> None:
    groups = sampler_of(learner).sample(PROMPTS, Sampling(12, 1.0, seed=0), n=8)
    written = [tuple(one.token_ids) for output in vllm.outputs for one in output.outputs]
    assert [one.tokens for group in groups for one in group] == written
    assert [one.text for group in groups for one in group] == [learner.policy.decode(ids).strip() for ids in written]
    again = [tuple(learner.policy.tokenizer(learner.policy.decode(ids))["input_ids"]) for ids in written]
    assert again != written


def test_the_end_token_is_kept_and_finishes_even_in_the_last_place(vllm: Record, learner: Learner) -> None:
    ends, finishes = learner.policy.end_ids, set()
    for group in sampler_of(learner).sample(PROMPTS, Sampling(4, 1.0, seed=0), n=32):
        for one in group:
            assert (one.finish == "stop") == (one.tokens[-1] in ends)
            assert ends.isdisjoint(one.tokens[:-1])
            assert one.completion_tokens == len(one.tokens) == len(one.logprobs)
            finishes.add((one.finish, len(one.tokens)))
    assert {("stop", 1), ("stop", 4), ("length", 4)} <= finishes


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_log_probabilities_are_the_learners_at_the_sampling_temperature(
    vllm: Record, learner: Learner, temperature: float
) -> None:
    prompt = PROMPTS[1]
    (group,) = sampler_of(learner).sample([prompt], Sampling(6, temperature, seed=0), n=6)
    scored = learner.logprobs(learner.policy.encode(prompt), [one.tokens for one in group], temperature)
    for one, logprobs in zip(group, scored, strict=True):
        assert one.logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)


def test_greedy_replies_are_the_local_policys(vllm: Record, learner: Learner) -> None:
    groups, local = sampler_of(learner).sample(PROMPTS, Sampling(8), n=1), learner.policy.complete(PROMPTS, Sampling(8))
    assert [group[0].tokens for group in groups] == [one.tokens for one in local]


def test_every_completion_of_a_call_has_a_seed_of_its_own(vllm: Record, learner: Learner) -> None:
    sampler, same = sampler_of(learner), [PROMPTS[0]] * 3
    first = sampler.sample(same, Sampling(8, 1.5, seed=5), n=4)
    seeds = [params.seed + i for params in vllm.calls[0].params for i in range(4) if params.seed is not None]
    assert len(set(seeds)) == 12
    assert len({one.tokens for group in first for one in group}) > 9
    assert sampler.sample(same, Sampling(8, 1.5, seed=5), n=4) == first
    assert sampler.sample(same, Sampling(8, 1.5, seed=6), n=4) != first
    sampler.sample(same, Sampling(8, 1.5), n=4)
    assert {params.seed for params in vllm.calls[-1].params} == {None}


def test_a_prompt_without_room_for_its_reply_is_a_prompt_error(vllm: Record, learner: Learner) -> None:
    length = len(learner.policy.encode(PROMPTS[0]))
    sampler = sampler_of(learner, context=length + 4)
    sampler.sample(PROMPTS[:1], Sampling(4, 1.0), n=2)
    assert vllm.started[0]["max_model_len"] == length + 4
    with pytest.raises(PromptError, match=rf"^prompt 1 has {length} tokens and its reply up to 5.* holds {length + 4}"):
        sampler.sample(PROMPTS[:1], Sampling(5, 1.0), n=2)


# Weights kept in step


def test_every_version_of_the_weights_is_requested_as_an_adapter_of_its_own(vllm: Record, learner: Learner) -> None:
    sampler = sampler_of(learner)
    for _ in range(2):
        sampler.sample(PROMPTS, Sampling(4, 1.0, seed=0), n=2)
        sampler.sample(PROMPTS, Sampling(4, 1.0, seed=1), n=2)
        assert sampler.version == learner.version
        move(learner)
    requests = [call.adapter for call in vllm.calls]
    assert requests[0] == requests[1] != requests[2] == requests[3]
    for name in ("lora_name", "lora_int_id", "lora_path"):
        assert getattr(requests[0], name) != getattr(requests[2], name)
    assert all(request.lora_int_id > 0 for request in requests)
    assert len(vllm.started) == 1


def test_samples_are_the_moved_weights_and_only_the_newest_adapter_is_kept(vllm: Record, learner: Learner) -> None:
    sampler, prompt = sampler_of(learner), PROMPTS[0]
    for _ in range(3):
        (group,) = sampler.sample([prompt], Sampling(6, 1.0, seed=0), n=4)
        scored = learner.logprobs(learner.policy.encode(prompt), [one.tokens for one in group])
        assert [p for one in group for p in one.logprobs] == pytest.approx(torch.cat(scored).tolist(), abs=1e-4)
        move(learner)
    kept = Path(vllm.calls[-1].adapter.lora_path)
    assert list(kept.parent.iterdir()) == [kept]
    assert {path.name for path in kept.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}


def test_weights_that_were_taken_up_count_as_other_weights(vllm: Record, learner: Learner, tmp_path: Path) -> None:
    sampler = sampler_of(learner)
    learner.save(tmp_path)
    state, first = learner.state(), sampler.sample(PROMPTS, Sampling(6, 1.0, seed=0), n=2)
    move(learner)
    assert sampler.sample(PROMPTS, Sampling(6, 1.0, seed=0), n=2) != first
    learner.load_weights(tmp_path)
    assert sampler.sample(PROMPTS, Sampling(6, 1.0, seed=0), n=2) == first
    move(learner)
    assert sampler.sample(PROMPTS, Sampling(6, 1.0, seed=0), n=2) != first
    learner.load_state(state)
    assert sampler.sample(PROMPTS, Sampling(6, 1.0, seed=0), n=2) == first
    ids = [call.adapter.lora_int_id for call in vllm.calls]
    assert ids == sorted(set(ids))


def test_the_engine_is_started_as_asked(vllm: Record, learner: Learner) -> None:
    sampler_of(learner, gpu_memory=0.3, dtype="float16").sample(PROMPTS, Sampling(2, 1.0), n=1)
    (started,) = vllm.started
    assert started["model"] == learner.policy.place
    assert (started["gpu_memory_utilization"], started["dtype"], started["max_model_len"]) == (0.3, "float16", None)
    assert (started["enable_lora"], started["max_lora_rank"]) == (True, 8)


@pytest.mark.parametrize(("rank", "room"), [(1, 8), (8, 8), (9, 16), (16, 16), (48, 64), (300, 512), (512, 512)])
def test_room_is_made_for_a_rank_that_vllm_serves(rank: int, room: int) -> None:
    assert served_rank(rank) == room


# What is refused


def test_without_vllm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, learner: Learner) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not there
    with pytest.raises(ModelError, match=r"pip install 'memory-r1\[vllm\]'$"):
        sampler_of(learner)


@pytest.mark.parametrize(
    ("version", "fits"), [("0.10.0", False), ("0.9.0.1", False), ("0.20.1rc1", True), ("1.0", True), ("dev", True)]
)
def test_a_vllm_too_old_to_give_log_probabilities_after_the_temperature_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str, fits: bool
) -> None:
    fake_vllm.install(monkeypatch, version)
    if fits:
        require_vllm()
    else:
        with pytest.raises(ModelError, match=rf"^vLLM {version} is installed, expected 0\.20 or later"):
            require_vllm()


def test_an_engine_that_does_not_start_is_a_model_error_of_one_line(vllm: Record, learner: Learner) -> None:
    vllm.refusal = ValueError("No available memory\nfor the cache blocks.")
    with pytest.raises(ModelError, match=r"No available memory for the cache blocks.*--vllm\.gpu-memory") as caught:
        sampler_of(learner).sample(PROMPTS, Sampling(2, 1.0), n=1)
    assert "\n" not in str(caught.value)


def test_a_completion_that_was_broken_off_is_a_model_error(vllm: Record, learner: Learner) -> None:
    vllm.finish = "abort"
    with pytest.raises(ModelError, match="finished a completion of 2 tokens with 'abort'"):
        sampler_of(learner).sample(PROMPTS, Sampling(2, 1.0, seed=0), n=8)


def test_a_log_probability_that_is_no_number_is_a_model_error(vllm: Record, learner: Learner) -> None:
    vllm.shift = float("nan")
    with pytest.raises(ModelError, match="no finite log-probability"):
        sampler_of(learner).sample(PROMPTS, Sampling(2, 1.0), n=1)


@pytest.mark.parametrize("rank", [0, 513])
def test_full_fine_tuning_and_ranks_beyond_vllms_are_refused(rank: int) -> None:
    with pytest.raises(InputError, match=rf"^lora_rank is {rank}, expected 1 to 512"):
        TrainSettings(sampler="vllm", learner=LearnerSettings(lora_rank=rank))
    TrainSettings(sampler="local", learner=LearnerSettings(lora_rank=rank))


@pytest.mark.parametrize("settings", [{"gpu_memory": 0.0}, {"gpu_memory": 1.5}, {"context": -1}])
def test_engine_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=rf"^vllm\.{name} is {value}, expected"):
        VLLMSettings(**settings)


# Whole runs

SETTINGS = TrainSettings(
    val_fraction=0.34,
    reward="f1",
    sampler="vllm",
    answer=AnswerSettings(k=2, per_speaker=False, max_tokens=4),
    learner=LearnerSettings(lora_rank=2, precision="float32"),
    warm_start=SFTSettings(epochs=1, shuffles=0, batch=2),
    grpo=GRPOSettings(prompts=2, group=3, epochs_over_data=2, update_epochs=2, lr=1e-2),
    ppo=PPOSettings(prompts=2, group=3, minibatches=1, critic=CriticSettings(warmup=0)),
    loop=LoopSettings(eval_every=1, checkpoint_every=1),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six turns, and a question about each."""
    names = {"dog": "Rex", "cat": "Tom", "boat": "Ada", "horse": "Zoe", "bird": "Ivy", "fish": "Max"}
    lines: list[dict[str, object]] = []
    for pet, name in names.items():
        lines.append({"dialogue": "a", "turn": pet, "speaker": "Ann", "text": f"My {pet} is called {name}"})
    for pet, name in names.items():
        lines.append({"dialogue": "a", "question": f"What is the {pet} called?", "answer": name, "evidence": [pet]})
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def train(base: Path, data: Path, out: Path, settings: TrainSettings = SETTINGS, stop_at: str = "") -> Path:
    """Train from a freshly loaded base; somebody presses Ctrl-C when this is reported."""

    def report(name: str, done: int, of: int, metrics: Mapping[str, float]) -> None:
        if f"{name} {done}" == stop_at:
            raise KeyboardInterrupt

    policy, dataset = LocalPolicy(base, device="cpu"), load_dataset(data)
    return train_answer_agent(policy, dataset, settings, out, embedder=HashingEmbedder(), report=report)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_a_run_goes_from_a_file_to_an_adapter_with_rollouts_and_val_replies_by_the_engine(
    vllm: Record, ragged_folder: Path, data: Path, tmp_path: Path, algo: Literal["grpo", "ppo"]
) -> None:
    out = tmp_path / "run"
    settings = replace(SETTINGS, algo=algo)
    adapter = train(ragged_folder, data, out, settings)
    assert LocalPolicy(ragged_folder, adapter=adapter, device="cpu").model is not None
    lines = [line for line in metrics(out / algo) if "sampler_gap" in line]
    assert lines
    for line in lines:
        assert line["sampler_gap_max"] < 1e-4
        assert line["importance_weight"] == pytest.approx(1, abs=1e-4)
    greedy = [call for call in vllm.calls if call.params[0].temperature == 0]
    rollouts = [call for call in vllm.calls if call.params[0].temperature > 0]
    assert len(rollouts) == {"grpo": 4, "ppo": 2}[algo]  # passes over 4 questions, two at a time
    assert {len(call.prompts) for call in greedy} == {2}
    assert len(greedy) == sum("val/reward" in line for name in ("sft", algo) for line in metrics(out / name))


def test_a_stopped_run_goes_on_to_the_same_numbers(
    vllm: Record, ragged_folder: Path, data: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(ragged_folder, data, whole)
    for stop_at in ("sft 1", "grpo 2"):
        with pytest.raises(KeyboardInterrupt):
            train(ragged_folder, data, stopped, stop_at=stop_at)
    train(ragged_folder, data, stopped)
    for name in ("sft", "grpo"):
        assert metrics(stopped / name) == metrics(whole / name)
    assert len(metrics(whole / "grpo")) == 5
    weights = "adapter/adapter_model.safetensors"
    assert (stopped / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.parametrize(
    ("sampler", "cap", "weight"),
    [("vllm", None, 0.6065), ("vllm", 0.3, 0.3), ("vllm", 0.0, None), ("local", None, None), ("local", 0.3, 0.3)],
)
def test_another_engines_log_probabilities_are_corrected_for_and_the_policys_own_where_asked(
    vllm: Record, ragged_folder: Path, data: Path, tmp_path: Path, sampler: Any, cap: float | None, weight: float | None
) -> None:
    vllm.shift = 0.5  # exp(-0.5) is 0.6065
    grpo = GRPOSettings(prompts=2, group=2, epochs_over_data=0.4, importance_cap=cap)
    cold = replace(SETTINGS, sampler=sampler, grpo=grpo, val_fraction=0.0, warm_start=SFTSettings(epochs=0))
    train(ragged_folder, data, tmp_path / "run", cold)
    (line,) = metrics(tmp_path / "run" / "grpo")
    assert line.get("importance_weight") == (None if weight is None else pytest.approx(weight, abs=1e-3))


def test_several_processes_with_vllm_are_refused_and_make_no_run(
    vllm: Record, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    crowd = World()
    crowd.size = 2
    monkeypatch.setattr("memory_r1.rl.train.join", lambda: crowd)
    with pytest.raises(TrainingError, match=r"^sampler is vllm in 2 processes, expected one"):
        train(tiny_folder, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_vllm_no_run_is_begun(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, data: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="pip install"):
        train(tiny_folder, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_refuses_full_fine_tuning_with_vllm_and_makes_no_run(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    flags = ["--sampler", "vllm", "--learner.lora-rank", "0"]
    assert cli.main(["train", "answer", "--data", str(data), "--out", str(tmp_path / "run"), *flags]) == 2
    assert "lora_rank is 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
