"""The learner: a reference that stays, checkpoints that others can read, a state that goes on to the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Letters, Naive, new_learner
from memory_r1.errors import TrainingError
from memory_r1.policy.base import Sampling
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.model.learner import Learner, LearnerSettings

PROMPT, COMPLETIONS = [5, 9, 40, 7], [[3, 1, 4], [15, 92], [65]]


@pytest.fixture(params=[0, 4], ids=["full", "lora"])
def learner(tiny_folder: Path, request: pytest.FixtureRequest) -> Learner:
    return new_learner(tiny_folder, request.param)


def train(learner: Learner, steps: int = 3, lr: float = 1e-2) -> None:
    for _ in range(steps):
        scored = learner.logprobs(PROMPT, COMPLETIONS)
        (-torch.cat(scored).mean()).backward()  # type: ignore[no-untyped-call]
        learner.step(lr)


def scores(learner: Learner) -> Tensor:
    return torch.cat(learner.logprobs(PROMPT, COMPLETIONS)).detach()


def references(learner: Learner) -> Tensor:
    return torch.cat(learner.ref_logprobs(PROMPT, COMPLETIONS))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.tensor([PROMPT])).logits
    return found


# The reference


def test_the_reference_is_exactly_the_policy_when_it_is_frozen(learner: Learner) -> None:
    train(learner)
    learner.freeze_reference()
    assert references(learner).equal(scores(learner))


def test_the_reference_stays_while_the_weights_move(learner: Learner) -> None:
    learner.freeze_reference()
    before = references(learner)
    train(learner)
    assert references(learner).equal(before)
    assert (scores(learner) - before).abs().max() > 0.1


def test_freezing_again_takes_the_weights_as_they_are_then(learner: Learner) -> None:
    learner.freeze_reference()
    train(learner)
    learner.freeze_reference()
    assert references(learner).equal(scores(learner))


def test_the_reference_has_no_gradient_and_leaves_the_policy_its_own(learner: Learner) -> None:
    learner.freeze_reference()
    assert not any(one.requires_grad for one in learner.ref_logprobs(PROMPT, COMPLETIONS))
    sum(one.sum() for one in learner.logprobs(PROMPT, COMPLETIONS)).backward()  # type: ignore[union-attr]
    moved = {name for name, weight in learner.model.named_parameters() if weight.grad is not None}
    assert moved
    assert not any(".reference." in name for name in moved)


def test_the_reference_of_an_untrained_adapter_is_the_base_itself(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    learner.freeze_reference()
    before, critic = references(learner), learner.add_critic()
    assert set(learner.model.peft_config) == {"default", "critic"}  # no copy was made for it
    train(learner)
    assert references(learner).equal(before)
    critic.backward(sum(one.sum() for one in critic.values(PROMPT, COMPLETIONS)))  # type: ignore[arg-type]
    assert critic.step(1e-3) > 0  # having been switched off has not frozen the adapters


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_checkpointing_changes_no_number_of_policy_critic_or_sampler(tiny_folder: Path, rank: int) -> None:
    def gradients(checkpointing: bool) -> tuple[list[Tensor], list[int], float]:
        torch.manual_seed(0)
        learner = new_learner(tiny_folder, rank, checkpointing=checkpointing)
        critic = learner.add_critic()
        critic.head.weight.data.fill_(0.1)
        critic.backward(sum(one.sum() for one in critic.values(PROMPT, COMPLETIONS)))  # type: ignore[arg-type]
        (-torch.cat(learner.logprobs(PROMPT, COMPLETIONS)).mean()).backward()  # type: ignore[no-untyped-call]
        tokens = learner.policy.sample([Letters("hi").prompt], Sampling(8, 1.0, seed=0), n=2)[0][1].tokens
        moved = [w.grad for w in learner.model.parameters() if w.requires_grad and w.grad is not None]
        return moved, list(tokens), critic.step(0.0)

    plain, checkpointed = gradients(False), gradients(True)
    assert len(plain[0]) == len(checkpointed[0]) > 0
    for one, other in zip(plain[0], checkpointed[0], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert plain[1] == checkpointed[1]
    assert plain[2] == pytest.approx(checkpointed[2], rel=1e-5)


def test_checkpointing_keeps_fewer_activations(tiny_folder: Path) -> None:
    def kept(checkpointing: bool) -> int:
        learner, sizes = new_learner(tiny_folder, 4, checkpointing=checkpointing), []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            learner.logprobs(PROMPT * 20, COMPLETIONS)
        return sum(sizes)

    assert kept(True) < kept(False) / 3


def test_asking_for_a_reference_before_freezing_is_a_training_error(learner: Learner) -> None:
    with pytest.raises(TrainingError, match="call freeze_reference"):
        learner.ref_logprobs(PROMPT, COMPLETIONS)


# Weights


def test_lora_trains_the_adapter_and_nothing_else(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    base = {name: weight.clone() for name, weight in learner.model.named_parameters() if "lora_" not in name}
    train(learner)
    now = dict(learner.model.named_parameters())
    assert all(now[name].equal(weight) for name, weight in base.items())
    # a layer of in x out takes 4 * (in + out): q, k, v, o of 32x32, 32x16, 32x16, 32x32, and gate, up, down of 32x64
    assert learner.trainable == 2 * 4 * (64 + 48 + 48 + 64 + 3 * 96)


def test_an_untrained_adapter_changes_nothing(tiny_folder: Path, tiny: LocalPolicy) -> None:
    assert logits(new_learner(tiny_folder, 4).model).equal(logits(tiny.model))


def test_the_policy_it_was_given_samples_with_the_weights_being_trained(learner: Learner) -> None:
    prompt = Letters("hi").prompt
    before = learner.policy.complete([prompt], Sampling(4))[0]
    tokens = learner.policy.encode(prompt)
    for _ in range(20):
        (-learner.logprobs(tokens, [[66, 66, 66]])[0].mean()).backward()  # type: ignore[no-untyped-call]
        learner.step(1e-2)
    after = learner.policy.complete([prompt], Sampling(4))[0]
    assert before.tokens[:3] != after.tokens[:3] == (66, 66, 66)


def test_the_first_step_moves_every_weight_by_the_learning_rate_against_its_gradient(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 0, max_grad_norm=1e9)
    weight = learner.model.lm_head.weight
    before = weight.detach().clone()
    (-torch.cat(learner.logprobs(PROMPT, COMPLETIONS)).mean()).backward()  # type: ignore[no-untyped-call]
    gradient = weight.grad.clone()
    learner.step(1e-3)
    large = gradient.abs() > 1e-4  # Adam's eps of 1e-8 is nothing beside them
    assert large.sum() > 1000
    moved = (weight.detach() - before)[large]
    torch.testing.assert_close(moved, -1e-3 * gradient[large].sign(), rtol=1e-2, atol=0)
    assert weight.grad is None


def test_gradients_are_cut_to_the_longest_norm_and_the_norm_before_is_told(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 0, max_grad_norm=0.5)
    weights = list(learner.model.parameters())
    learner.optimizer = torch.optim.SGD(weights)
    before = [weight.detach().clone() for weight in weights]
    (-torch.cat(learner.logprobs(PROMPT, COMPLETIONS)).sum()).backward()  # type: ignore[no-untyped-call]
    norm = torch.cat([weight.grad.flatten() for weight in weights]).norm().item()
    assert learner.step(1.0) == pytest.approx(norm, rel=1e-4)
    assert norm > 0.5
    moved = torch.cat([(w - b).flatten() for w, b in zip(weights, before, strict=True)]).norm().item()
    assert moved == pytest.approx(0.5, rel=1e-3)


def test_dropout_of_the_model_is_off_in_sampling_and_in_scoring(
    save_tiny: Callable[..., Path], naive_logprobs: Naive
) -> None:
    learner = new_learner(save_tiny(attention_dropout=0.5), 4)
    prompt = Letters("hi").prompt
    sampled = learner.policy.sample([prompt], Sampling(6, 1.0, seed=0), n=3)[0]
    scored = learner.logprobs(learner.policy.encode(prompt), [one.tokens for one in sampled])
    for completion, ours in zip(sampled, scored, strict=True):
        assert completion.logprobs == pytest.approx(ours.tolist(), abs=1e-4)


def test_low_precision_changes_sampling_and_scoring_alike(tiny_folder: Path) -> None:
    """In bfloat16 the numbers differ from float32's by far more than the sampler's from the update's."""
    low = new_learner(tiny_folder, 4, precision="bfloat16")
    prompt = Letters("hi").prompt
    with low.precision():
        sampled = low.policy.sample([prompt], Sampling(6, 1.0, seed=0), n=4)[0]
    tokens = low.policy.encode(prompt)
    scored = torch.cat(low.logprobs(tokens, [one.tokens for one in sampled]))
    exact = torch.cat(new_learner(tiny_folder, 4).logprobs(tokens, [one.tokens for one in sampled]))
    drawn = torch.tensor([logprob for one in sampled for logprob in one.logprobs])
    assert (scored - drawn).abs().mean() < (exact - drawn).abs().mean()


# Checkpoints


def test_a_saved_adapter_gives_the_same_logits_in_plain_peft(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    learner = new_learner(tiny_folder, 4)
    learner.freeze_reference()
    train(learner)
    learner.save(tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), str(tmp_path)).eval()
    torch.testing.assert_close(logits(plain), logits(learner.model), atol=1e-5, rtol=0)
    assert not (tmp_path / "reference").exists()


def test_a_saved_adapter_is_a_local_policys_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    train(learner)
    learner.save(tmp_path)
    loaded = LocalPolicy(tiny_folder, adapter=tmp_path, device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(learner.model), atol=1e-5, rtol=0)


def test_full_fine_tuning_saves_a_model_folder_that_loads_with_its_tokenizer(tiny_folder: Path, tmp_path: Path) -> None:
    learner = new_learner(tiny_folder, 0)
    train(learner)
    learner.save(tmp_path)
    loaded = LocalPolicy(tmp_path, device="cpu")
    assert logits(loaded.model).equal(logits(learner.model))
    assert loaded.encode(Letters("hi").prompt) == learner.policy.encode(Letters("hi").prompt)


@pytest.mark.parametrize("tied", [True, False])
def test_full_fine_tuning_takes_saved_weights_up_again(
    save_tiny: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    folder = save_tiny(tie_word_embeddings=tied)
    learner, other = new_learner(folder, 0), new_learner(folder, 0)
    train(learner)
    learner.save(tmp_path)
    other.load_weights(tmp_path)
    assert scores(other).equal(scores(learner))


def test_loading_weights_forgets_the_optimizers_moments(tiny_folder: Path, tmp_path: Path, learner: Learner) -> None:
    learner.save(tmp_path)
    fresh = new_learner(tiny_folder, learner.settings.lora_rank)
    fresh.load_weights(tmp_path)
    train(learner)
    learner.load_weights(tmp_path)
    train(learner, steps=2)
    train(fresh, steps=2)
    assert scores(learner).equal(scores(fresh))


def test_training_goes_on_from_an_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    train(learner)
    learner.save(tmp_path)
    policy = LocalPolicy(tiny_folder, device="cpu")
    further = Learner(policy, LearnerSettings(lora_rank=4, precision="float32"), start=tmp_path)
    assert scores(further).equal(scores(learner))
    assert further.trainable == learner.trainable
    train(further)
    assert not scores(further).equal(scores(learner))


def test_full_fine_tuning_from_an_adapter_is_a_training_error(tiny: LocalPolicy, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="starts from a model, not an adapter"):
        Learner(tiny, LearnerSettings(lora_rank=0), start=tmp_path)


# The state to resume from


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_a_state_taken_up_gives_the_same_next_step_and_the_same_reference(learner: Learner, tiny_folder: Path) -> None:
    train(learner)
    learner.freeze_reference()
    train(learner)
    resumed = new_learner(tiny_folder, learner.settings.lora_rank)
    resumed.freeze_reference()
    resumed.load_state(through_a_file(learner.state()))
    train(learner, steps=2)
    train(resumed, steps=2)
    assert scores(resumed).equal(scores(learner))
    assert references(resumed).equal(references(learner))


def test_a_state_in_memory_does_not_change_with_later_steps(learner: Learner) -> None:
    train(learner)
    state = learner.state()
    train(learner, steps=2)
    wanted = scores(learner)
    learner.load_state(state)
    train(learner, steps=2)
    assert scores(learner).equal(wanted)


def test_a_state_of_other_weights_is_a_training_error_and_changes_nothing(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    before = scores(learner)
    with_reference = new_learner(tiny_folder, 4)
    train(with_reference)
    with_reference.freeze_reference()
    for other in (new_learner(tiny_folder, 8), new_learner(tiny_folder, 0), with_reference):
        train(other)
        with pytest.raises(TrainingError, match="other weights than this run"):
            learner.load_state(other.state())
        assert scores(learner).equal(before)
