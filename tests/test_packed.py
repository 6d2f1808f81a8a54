"""The packed group: the same log-probabilities and gradients as one sequence per completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Naive
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.model.packed import (
    Beginning,
    common_beginning,
    packed_logprobs,
    packed_states,
    plain_logprobs,
    plain_states,
    supports_packing,
)

PROMPT = [5, 9, 40, 7, 200, 31, 8]
LENGTHS = [3, 1, 7, 2, 5, 1, 4, 6]
SCORES = {"packed": packed_logprobs, "plain": plain_logprobs}


def group(size: int) -> list[list[int]]:
    """Random completions of ragged lengths."""
    generator = torch.Generator().manual_seed(size)
    return [torch.randint(0, 263, (length,), generator=generator).tolist() for length in LENGTHS[:size]]


def with_lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


@pytest.fixture(params=["full", "lora"])
def model(tiny: LocalPolicy, request: pytest.FixtureRequest) -> Any:
    if request.param == "lora":
        tiny.wrap(with_lora)
    return tiny.model


def gradient(model: Any, logprobs: list[Tensor]) -> Tensor:
    """Of a sum in which every token counts differently, so that no two could be exchanged unnoticed."""
    weights = [torch.linspace(-1, 1 + i, len(one)) for i, one in enumerate(logprobs)]
    total = torch.stack([(w * one).sum() for w, one in zip(weights, logprobs, strict=True)]).sum()
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return torch.cat([one.flatten() for one in gradients if one is not None])


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_packed_equals_plain_in_logprobs_and_gradients(model: Any, size: int) -> None:
    packed, plain = (score(model, PROMPT, group(size)) for score in SCORES.values())
    assert [one.shape for one in packed] == [(length,) for length in LENGTHS[:size]]
    for ours, wanted in zip(packed, plain, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)
    ours, wanted = gradient(model, packed), gradient(model, plain)
    assert torch.cosine_similarity(ours, wanted, dim=0) > 0.9999
    assert (ours - wanted).abs().max() < 1e-4 * wanted.abs().max()


SHARED = [(3 * number) % 251 for number in range(70)]
PROMPTS = [[*SHARED, 7], [*SHARED, 9, 12, 7, 40], [*SHARED, *PROMPT]]
SIZES = [1, 5, 2]  # one completion takes another way than several do


@pytest.mark.parametrize("states", [False, True])
def test_prompts_that_go_on_from_a_shared_beginning_have_the_same_numbers_and_gradients(
    model: Any, states: bool
) -> None:
    packed, plain = (packed_states, plain_states) if states else (packed_logprobs, plain_logprobs)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [(prompt, group(size)) for prompt, size in zip(PROMPTS, SIZES, strict=True)]
    beginning = Beginning(model, SHARED)
    for prompt, completions in groups:
        ours, wanted = packed(model, prompt, completions, beginning=beginning), plain(model, prompt, completions)
        for one, other in zip(ours, wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
        torch.stack([one.sin().sum() for one in ours]).sum().backward()  # type: ignore[no-untyped-call]
    before = [weight.grad.clone() for weight in parameters if weight.grad is not None]
    beginning.backward()
    gathered = torch.cat([weight.grad.flatten() for weight in parameters if weight.grad is not None])
    assert (gathered - torch.cat([one.flatten() for one in before])).abs().max() > 0.01 * gathered.abs().max()
    model.zero_grad()
    for prompt, completions in groups:
        torch.stack([one.sin().sum() for one in plain(model, prompt, completions)]).sum().backward()  # type: ignore[no-untyped-call]
    alone = torch.cat([weight.grad.flatten() for weight in parameters if weight.grad is not None])
    assert (gathered - alone).abs().max() < 1e-4 * alone.abs().max()


def test_without_a_gradient_a_shared_beginning_asks_for_none(model: Any) -> None:
    with torch.no_grad():
        beginning = Beginning(model, SHARED)
        ours = packed_logprobs(model, PROMPTS[1], group(3), beginning=beginning)
        wanted = plain_logprobs(model, PROMPTS[1], group(3))
    torch.testing.assert_close(torch.cat(ours), torch.cat(wanted), atol=1e-4, rtol=0)
    beginning.backward()
    assert all(weight.grad is None for weight in model.parameters())


def test_a_beginning_is_shared_where_it_is_long_enough_and_leaves_a_token_of_each_prompt() -> None:
    assert common_beginning(PROMPTS) == SHARED
    assert common_beginning([SHARED, SHARED]) == SHARED[:-1]
    assert common_beginning([[1, *SHARED], [2, *SHARED]]) == []
    assert common_beginning([SHARED[:64], SHARED[:64]]) == []
    assert common_beginning([SHARED[:65], SHARED]) == SHARED[:64]
    assert common_beginning(PROMPTS[:1]) == []
    assert common_beginning([]) == []


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_logprobs_equal_a_loop_written_out(
    tiny: LocalPolicy, naive_logprobs: Naive, name: str, temperature: float
) -> None:
    """Logit t scores token t + 1; the prompt's last scores a completion's first; the logits are scaled."""
    scored = SCORES[name](tiny.model, PROMPT, group(8), temperature=temperature)
    for completion, ours in zip(group(8), scored, strict=True):
        wanted = naive_logprobs(tiny.model, PROMPT, completion, temperature)
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SCORES)
def test_completions_of_one_token_and_prompts_of_one_token_are_scored(tiny: LocalPolicy, name: str) -> None:
    with torch.no_grad():
        scored = SCORES[name](tiny.model, [5], [[7], [8], [9]])
        wanted = torch.log_softmax(tiny.model(torch.tensor([[5]])).logits[0, -1], 0)[[7, 8, 9]]
    assert torch.cat(scored).tolist() == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing(model: Any) -> None:
    """It keeps no keys and values to go on from, so the group goes through in one piece."""
    plain = plain_logprobs(model, PROMPT, group(5))
    model.get_decoder().gradient_checkpointing_enable({"use_reentrant": False})
    packed = packed_logprobs(model.train(), PROMPT, group(5))
    for ours, wanted in zip(packed, plain, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)
    ours, wanted = gradient(model, packed), gradient(model, plain)
    assert (ours - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_the_prompt_goes_through_the_model_once_and_no_last_token_does(tiny: LocalPolicy) -> None:
    fed: list[list[int]] = []
    embedding = tiny.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].flatten().tolist()))
    packed_logprobs(tiny.model, PROMPT, [[10, 11, 12], [20], [30, 31]])
    assert fed == [PROMPT, [10, 11, 30]]


@pytest.mark.parametrize("changed", [0, 2, 7])
def test_changing_a_completion_leaves_the_others_untouched(tiny: LocalPolicy, changed: int) -> None:
    completions = group(8)
    before = packed_logprobs(tiny.model, PROMPT, completions)
    completions[changed] = [(token + 100) % 263 for token in completions[changed]]
    after = packed_logprobs(tiny.model, PROMPT, completions)
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        assert old.equal(new) == (number != changed)


def test_a_completion_has_no_gradient_from_another(tiny: LocalPolicy) -> None:
    embedding = tiny.model.get_input_embeddings().weight
    completions = [[10, 11, 12], [20, 21, 22]]
    (moved,) = torch.autograd.grad(packed_logprobs(tiny.model, PROMPT, completions)[1].sum(), embedding)
    assert moved[[20, 21]].abs().sum(1).min() > 0
    assert moved[[10, 11, 12]].abs().max() == 0


@pytest.mark.parametrize("name", SCORES)
def test_bfloat16_matrix_products_give_float32_logprobs_near_the_exact_ones(tiny: LocalPolicy, name: str) -> None:
    exact = SCORES[name](tiny.model, PROMPT, group(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = SCORES[name](tiny.model, PROMPT, group(4))
    assert gradient(tiny.model, rough).isfinite().all()
    for ours, wanted in zip(rough, exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, wanted, atol=0.3, rtol=0)


class Deaf(torch.nn.Module):
    """A model that ignores the attention mask, as one with recurrent or windowed layers would."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.config, self.device, self.dtype = model, model.config, model.device, model.dtype

    def forward(self, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
        return self.inner(**inputs)


@pytest.mark.parametrize(("change", "supported"), [(lambda model: model, True), (with_lora, True), (Deaf, False)])
def test_a_probe_finds_out_whether_the_mask_is_honoured(
    tiny: LocalPolicy, change: Callable[[Any], Any], supported: bool
) -> None:
    tiny.wrap(change)
    assert supports_packing(tiny.model) is supported


def test_a_model_that_ignores_masks_is_served_by_the_plain_way(tiny: LocalPolicy, naive_logprobs: Naive) -> None:
    deaf = Deaf(tiny.model)
    ours = plain_logprobs(deaf, PROMPT, group(3))
    for completion, one in zip(group(3), ours, strict=True):
        torch.testing.assert_close(one, naive_logprobs(tiny.model, PROMPT, completion), atol=1e-4, rtol=0)


def test_a_window_is_found_even_where_the_probe_is_shorter_than_it() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = MistralConfig(vocab_size=263, num_attention_heads=4, num_key_value_heads=2, sliding_window=4096, **shape)
    assert supports_packing(MistralForCausalLM(config)) is False


@pytest.mark.parametrize(("change", "supported"), [(with_lora, True), (Deaf, False)])
def test_rounding_is_not_taken_for_a_leak(tiny: LocalPolicy, change: Callable[[Any], Any], supported: bool) -> None:
    tiny.wrap(lambda model: change(model.to(torch.bfloat16)))
    assert supports_packing(tiny.model) is supported
