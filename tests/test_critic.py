"""The critic: values where each token is predicted, by weights of its own; how it starts, learns and is kept."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Letters, new_learner
from memory_r1.errors import TrainingError
from memory_r1.policy.base import Sampling
from memory_r1.rl.model.critic import Critic
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.model.packed import packed_states, plain_states

PROMPT, COMPLETIONS = [5, 9, 40, 7], [[3, 1, 4, 1, 5], [15, 92], [65]]


@pytest.fixture(params=[0, 4], ids=["full", "lora"])
def learner(tiny_folder: Path, request: pytest.FixtureRequest) -> Learner:
    """A learner whose adapter is not at its beginning."""
    learner = new_learner(tiny_folder, request.param)
    learn_policy(learner)
    return learner


def learn_policy(learner: Learner, steps: int = 2) -> None:
    for _ in range(steps):
        (-torch.cat(learner.logprobs(PROMPT, COMPLETIONS)).mean()).backward()  # type: ignore[no-untyped-call]
        learner.step(1e-2)


def learn_values(critic: Critic, wanted: float = 1.0, steps: int = 3, lr: float = 1e-2) -> None:
    for _ in range(steps):
        critic.backward((torch.cat(critic.values(PROMPT, COMPLETIONS)) - wanted).square().mean())
        critic.step(lr)


def values(learner: Learner) -> Tensor:
    assert learner.critic is not None
    return torch.cat(learner.critic.values(PROMPT, COMPLETIONS)).detach()


def scores(learner: Learner) -> Tensor:
    return torch.cat(learner.logprobs(PROMPT, COMPLETIONS)).detach()


def written_out(model: Any, head: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """One sequence, all hidden states, one value a token: the state of the token before it."""
    with torch.no_grad():
        states = model(torch.tensor([[*prompt, *completion]]), output_hidden_states=True).hidden_states[-1][0]
        return [head(states[len(prompt) + t - 1]).item() for t in range(len(completion))]


# Values


@pytest.mark.parametrize("score", [packed_states, plain_states])
def test_states_are_those_that_predict_each_token(tiny_folder: Path, score: Callable[..., Tensor]) -> None:
    """The model's own head on them gives the model's own log-probabilities."""
    learner = new_learner(tiny_folder, 4)
    learn_policy(learner)
    states = score(learner.model, PROMPT, COMPLETIONS)
    assert states.shape == (8, 32)
    targets = torch.tensor([token for completion in COMPLETIONS for token in completion])
    logprobs = torch.log_softmax(learner.model.get_output_embeddings()(states), -1)[range(8), targets]
    torch.testing.assert_close(logprobs, torch.cat(learner.logprobs(PROMPT, COMPLETIONS)), atol=1e-4, rtol=0)


def test_packed_states_equal_plain_ones_in_values_and_gradients(learner: Learner) -> None:
    weights = [weight for weight in learner.model.parameters() if weight.requires_grad]
    gradients = []
    for score in (packed_states, plain_states):
        states = score(learner.model, PROMPT, COMPLETIONS)
        counted = (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum()
        found = torch.autograd.grad(counted, weights, allow_unused=True)
        gradients.append(torch.cat([states.flatten(), *(one.flatten() for one in found if one is not None)]))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()


def test_values_equal_a_loop_written_out_on_a_model_of_the_critics_weights(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    critic = learner.add_critic()
    learn_values(critic)
    learner.model.set_adapter("critic")
    ours = critic.values(PROMPT, COMPLETIONS)
    assert [one.shape for one in ours] == [(5,), (2,), (1,)]
    for completion, found in zip(COMPLETIONS, ours, strict=True):
        wanted = written_out(learner.model, critic.head, PROMPT, completion)
        assert found.tolist() == pytest.approx(wanted, abs=1e-4)


def test_the_value_before_a_token_does_not_depend_on_it_nor_on_other_completions(learner: Learner) -> None:
    critic = learner.add_critic()
    learn_values(critic)
    (first, second) = critic.values(PROMPT, [[3, 1, 4], [7, 7]])
    (changed, _) = critic.values(PROMPT, [[3, 1, 200], [9, 9]])
    torch.testing.assert_close(first, changed)
    torch.testing.assert_close(first[0], second[0])  # both begin after the prompt
    appended = critic.values(PROMPT, [[3, 1, 4, 0]])[0]
    torch.testing.assert_close(appended[:3], first)
    assert not appended[3].isclose(first[2])


# Its weights are its own


def test_a_new_critic_expects_nothing_anywhere(learner: Learner) -> None:
    learner.add_critic()
    assert values(learner).eq(0).all()


def test_a_critic_may_begin_at_a_mean(learner: Learner) -> None:
    learner.add_critic().begin_at(0.375)
    assert values(learner).eq(0.375).all()


def test_a_critic_learns_what_it_is_shown_and_leaves_the_policy_alone(learner: Learner) -> None:
    before = scores(learner)
    critic = learner.add_critic()
    learn_values(critic, steps=60)
    assert (values(learner) - 1).abs().max() < 0.1
    assert scores(learner).equal(before)


def test_the_policy_learns_and_leaves_the_critic_alone(learner: Learner) -> None:
    learn_values(learner.add_critic())
    before, policy = values(learner), scores(learner)
    learn_policy(learner)
    assert values(learner).equal(before)
    assert (scores(learner) - policy).abs().max() > 0.01


def test_gradients_of_policy_and_critic_do_not_mix(learner: Learner) -> None:
    """Forward of one, forward of the other, backward of both: each finds its own weights."""
    critic = learner.add_critic()
    learn_values(critic)
    loss = torch.cat(learner.logprobs(PROMPT, COMPLETIONS)).sum()
    value_loss = torch.cat(critic.values(PROMPT, COMPLETIONS)).sum()
    critic.backward(value_loss)
    policy = [weight for name, weight in learner.model.named_parameters() if ".critic." not in name]
    assert all(weight.grad is None for weight in policy)
    own = [weight for group in critic.optimizer.param_groups for weight in group["params"]]
    gathered = [weight.grad.clone() for weight in own if weight.grad is not None]
    assert len(gathered) > 10
    loss.backward()  # type: ignore[no-untyped-call]
    assert any(weight.grad is not None for weight in policy)
    kept = [weight.grad for weight in own if weight.grad is not None]
    assert all(new.equal(old) for new, old in zip(kept, gathered, strict=True))


def test_the_critic_begins_with_the_policys_weights(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    learn_policy(learner)
    learner.add_critic()
    weights = dict(learner.model.named_parameters())
    ours = {name: weight for name, weight in weights.items() if ".critic." in name}
    assert len(ours) == 28
    assert all(weight.equal(weights[name.replace(".critic.", ".default.")]) for name, weight in ours.items())


def test_one_base_in_memory_serves_policy_reference_and_critic(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 4)
    learner.freeze_reference()
    count = sum(weight.numel() for weight in learner.model.parameters())
    critic = learner.add_critic()
    grown = sum(weight.numel() for weight in learner.model.parameters()) - count
    assert grown == learner.trainable
    assert sum(w.numel() for group in critic.optimizer.param_groups for w in group["params"]) == grown + 32 + 1


def test_a_second_critic_takes_the_place_of_the_first(learner: Learner) -> None:
    learn_values(learner.add_critic())
    learner.add_critic()
    assert values(learner).eq(0).all()


def test_the_reference_stays_out_of_the_critics_way(learner: Learner) -> None:
    learner.freeze_reference()
    before = torch.cat(learner.ref_logprobs(PROMPT, COMPLETIONS))
    critic = learner.add_critic()
    learn_values(critic)
    learn_policy(learner)
    assert torch.cat(learner.ref_logprobs(PROMPT, COMPLETIONS)).equal(before)
    learner.freeze_reference()  # again, with a critic there
    learn_values(critic)
    assert torch.cat(learner.ref_logprobs(PROMPT, COMPLETIONS)).equal(scores(learner))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_a_computation_done_anew_in_the_backward_meets_the_critics_weights(tiny_folder: Path) -> None:
    """Gradient checkpointing runs parts of the forward a second time, when the policy is in use again."""

    def gradients(checkpointing: bool) -> list[Tensor]:
        learner = new_learner(tiny_folder, 4)
        critic = learner.add_critic()
        learn_values(critic)
        learn_policy(learner)
        if checkpointing:
            learner.model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            learner.model.train()
        critic.backward(torch.cat(critic.values(PROMPT, COMPLETIONS)).square().sum())
        own = [weight for group in critic.optimizer.param_groups for weight in group["params"]]
        return [weight.grad for weight in own if weight.grad is not None]

    for plain, anew in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(anew, plain)


def test_low_precision_keeps_the_head_in_float32(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder, 4, precision="bfloat16")
    critic = learner.add_critic()
    critic.begin_at(0.1)
    (value, *_) = critic.values(PROMPT, COMPLETIONS)
    assert value.dtype == torch.float32
    assert value[0].item() == torch.tensor(0.1).item()


# What is saved


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def test_a_state_taken_up_gives_the_same_next_values(learner: Learner, tiny_folder: Path) -> None:
    critic = learner.add_critic()
    learn_values(critic)
    resumed = new_learner(tiny_folder, learner.settings.lora_rank)
    resumed_critic = resumed.add_critic()
    resumed.load_state(through_a_file(learner.state()))
    for one in (critic, resumed_critic):
        learn_values(one, wanted=-1.0, steps=2)
    assert values(resumed).equal(values(learner))
    assert scores(resumed).equal(scores(learner))


def test_a_state_with_a_critic_and_a_run_without_do_not_fit(learner: Learner, tiny_folder: Path) -> None:
    without = new_learner(tiny_folder, learner.settings.lora_rank)
    bare = without.state()
    learner.add_critic()
    for state, other in ((learner.state(), without), (bare, learner)):
        before = scores(other)
        with pytest.raises(TrainingError, match="do not both have a critic"):
            other.load_state(state)
        assert scores(other).equal(before)


def test_a_critic_is_no_part_of_the_saved_policy(learner: Learner, tmp_path: Path) -> None:
    learner.save(tmp_path / "without")
    learn_values(learner.add_critic())
    learner.save(tmp_path / "with")
    (name,) = (path.name for path in (tmp_path / "with").glob("*.safetensors"))
    assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()
    assert {path.name for path in (tmp_path / "with").iterdir()} == {
        path.name for path in (tmp_path / "without").iterdir()
    }


def test_sampling_after_valuing_is_the_policys(learner: Learner) -> None:
    prompt = Letters("hi").prompt
    before = learner.policy.complete([prompt], Sampling(8))[0]
    learn_values(learner.add_critic(), steps=10)
    assert learner.policy.complete([prompt], Sampling(8))[0] == before
