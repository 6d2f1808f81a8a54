"""GRPO's loss beside two other implementations: one written out on padded tensors here, and TRL where it is installed.

TRL 1.16 is no dependency; `pip install "trl==1.16.*"` brings it in for the two tests that ask for it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from conftest import Letters, new_learner
from memory_r1.policy.base import Completion
from memory_r1.rl.algorithms.grpo import GRPOSettings, update
from memory_r1.rl.algorithms.update import Credited, CreditedGroup, update_policy
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.model.parallel import World
from memory_r1.rl.types import Group, Reward, Rollout

MAX_TOKENS = 9
LENGTHS = [[4, 9, 1], [6, 2, 7]]  # of two groups of three
LOSS_TYPES: dict[str, dict[str, Any]] = {
    "grpo": {"aggregation": "sequence"},
    "dr_grpo": {"aggregation": "constant"},
    "dapo": {"aggregation": "token"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kl": {"kl_coef": 0.3},
    "kl times ratio": {"kl_coef": 0.3, "kl": "k3_ratio"},
    "asymmetric": {"clip_range_high": 0.28},
    "sequence ratio": {"ratio": "sequence", "clip_range_low": 0.05, "clip_range_high": 0.05},
    "dual clip": {"dual_clip": 1.5, "kl_coef": 0.3},
    "importance": {"importance_cap": 1.3, "kl_coef": 0.3},
}


class Given:
    """Stands where a learner stands, with log-probabilities that are given: (B, T) each, the first with gradient."""

    world = World()

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.lengths = [length for row in LENGTHS for length in row]
        shape = (len(self.lengths), MAX_TOKENS)
        self.mask = (torch.arange(MAX_TOKENS) < torch.tensor(self.lengths).unsqueeze(1)).double()
        draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
        self.new = (-2 + draw[0]).requires_grad_()
        self.old, self.ref = (self.new.detach() + 0.4 * one for one in draw[1:])
        self.advantages = torch.randn(len(self.lengths), generator=generator)  # float32, as credit is kept
        self.sampled = self.old + 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)

    def batch(self) -> list[CreditedGroup]:
        """Row i is asked for as the token i, so many times."""
        rows = [
            Credited(
                tokens=(i,) * length,
                sampled=self.sampled[i, :length],
                advantages=self.advantages[i].expand(length),
                old=self.old[i, :length],
                ref=self.ref[i, :length],
            )
            for i, length in enumerate(self.lengths)
        ]
        return [CreditedGroup((0,), rows[:3]), CreditedGroup((1,), rows[3:])]

    def sharing(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        return nullcontext()

    def logprobs(self, prompt: Sequence[int], completions: Sequence[Sequence[int]], temperature: float) -> list[Tensor]:
        return [self.new[one[0], : len(one)] for one in completions]

    def step(self, lr: float) -> float:
        return 0.0


def ours(given: Given, settings: GRPOSettings) -> tuple[float, Tensor]:
    """Loss and gradient by the update that trains."""
    given.new.grad = None
    metrics = update_policy(cast(Learner, given), given.batch(), settings, MAX_TOKENS, 0.0)
    assert given.new.grad is not None
    return metrics["loss"], given.new.grad


def written_out(given: Given, settings: GRPOSettings) -> tuple[float, Tensor]:
    """The same on padded tensors under a mask, from the papers."""
    new, mask, a = given.new, given.mask, given.advantages.double().unsqueeze(1)
    log_ratio = new - given.old
    if settings.ratio == "sequence":
        log_ratio = ((log_ratio * mask).sum(1) / mask.sum(1)).unsqueeze(1)
    ratio = torch.exp(log_ratio)
    low, high = 1 - settings.clip_range_low, 1 + settings.clip_range_high
    gain = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
    if settings.dual_clip:
        gain = torch.where(a < 0, torch.maximum(gain, settings.dual_clip * a), gain)
    if settings.importance_cap:
        gain = gain * (given.old.exp() / given.sampled.exp()).clamp(max=settings.importance_cap)
    penalty = torch.exp(given.ref - new) - given.ref + new - 1
    if settings.kl == "k3_ratio":
        penalty = penalty * torch.exp(new - given.old)
    each = (settings.kl_coef * penalty - gain) * mask
    loss = {
        "sequence": (each.sum(1) / mask.sum(1)).mean(),
        "token": each.sum() / mask.sum(),
        "constant": each.sum() / (len(each) * MAX_TOKENS),
    }[settings.aggregation]
    return loss.item(), torch.autograd.grad(loss, new)[0]


def by_trl(given: Given, settings: GRPOSettings, loss_type: str) -> tuple[float, Tensor]:
    """TRL's own _compute_loss, on a trainer that has nothing but what that function reads."""
    trl = pytest.importorskip("trl")
    padded = torch.zeros_like(given.mask)

    def same(numbers: Tensor, **_: object) -> Tensor:
        return numbers

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (given.new, padded, None),
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(num_processes=1, gather=same, reduce=same, gather_for_metrics=same),
        args=SimpleNamespace(
            use_bias_correction_kl=settings.kl == "k3_ratio", delta=settings.dual_clip or None, steps_per_generation=1
        ),
        aux_loss_enabled=False,
        beta=settings.kl_coef,
        current_gradient_accumulation_steps=1,
        epsilon_high=settings.clip_range_high,
        epsilon_low=settings.clip_range_low,
        importance_sampling_level=settings.ratio,
        loss_type=loss_type,
        max_completion_length=MAX_TOKENS,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=settings.importance_cap is not None,
        vllm_importance_sampling_correction=settings.importance_cap is not None,
    )
    ids = torch.zeros(len(given.mask), MAX_TOKENS, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": given.mask,
        "advantages": given.advantages.double(),
        "old_per_token_logps": given.old,
        "ref_per_token_logps": given.ref,
        "num_items_in_batch": given.mask.sum(),
        # as `_generate_and_score_completions` has it in the mode token_truncate, with clip_max and no clip_min
        "importance_sampling_ratio": torch.clamp(
            torch.exp(given.old - given.sampled), max=settings.importance_cap or 0
        ),
    }
    loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss.item(), torch.autograd.grad(loss, given.new)[0]


def settings_of(loss_type: str, variant: str) -> GRPOSettings:
    return GRPOSettings(**{"kl_coef": 0.0, **LOSS_TYPES[loss_type], **VARIANTS[variant]})


@pytest.mark.parametrize(("loss_type", "variant"), product(LOSS_TYPES, VARIANTS))
def test_loss_and_gradient_equal_an_implementation_on_padded_tensors(loss_type: str, variant: str) -> None:
    given, settings = Given(), settings_of(loss_type, variant)
    (loss, gradient), (wanted, wanted_gradient) = ours(given, settings), written_out(given, settings)
    assert loss == pytest.approx(wanted, abs=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-6, rtol=0)
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize(("loss_type", "variant"), product(LOSS_TYPES, VARIANTS))
def test_loss_and_gradient_equal_trls(loss_type: str, variant: str) -> None:
    given, settings = Given(), settings_of(loss_type, variant)
    wanted, wanted_gradient = by_trl(given, settings, loss_type)
    loss, gradient = ours(given, settings)
    assert loss == pytest.approx(wanted, abs=1e-6)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-6, rtol=0)


def test_the_variants_differ_so_that_none_is_compared_with_itself() -> None:
    """Clips bind, ratios differ and the KL counts on these numbers."""
    losses = {variant: ours(Given(), settings_of("grpo", variant))[0] for variant in VARIANTS}
    assert len({round(loss, 6) for loss in losses.values()}) == len(VARIANTS)


# Whole steps of TRL's trainer, on the same tokens


def groups_of(learner: Learner) -> list[Group]:
    """Two groups of four completions of ragged lengths, on prompts as the policy encodes them."""
    generator = torch.Generator().manual_seed(0)
    rewards = [[1.0, 0.0, 0.25, 1.0], [0.0, 0.6, 0.5, 0.0]]
    groups = []
    for text, row in zip(("what?", "and who was it?"), rewards, strict=True):
        lengths = torch.randint(1, MAX_TOKENS + 1, (4,), generator=generator).tolist()
        drawn = [tuple(torch.randint(0, 250, (length,), generator=generator).tolist()) for length in lengths]
        rollouts = [
            Rollout(Completion("", tokens=tokens, logprobs=(0.0,) * len(tokens)), Reward(reward))
            for tokens, reward in zip(drawn, row, strict=True)
        ]
        episode = Letters(text)
        groups.append(Group(episode, tuple(learner.policy.encode(episode.prompt)), tuple(rollouts)))
    return groups


def trained_by_trl(
    folder: Path, out: Path, groups: list[Group], settings: GRPOSettings, loss_type: str
) -> tuple[Any, list[float]]:
    """The model after `update_epochs` steps of a GRPOTrainer that is handed these rollouts, and each step's loss."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    by_text = {group.episode.id: group for group in groups}

    def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        places: dict[str, int] = defaultdict(int)
        found: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "logprobs": []}
        for prompt in prompts:
            text = prompt[0]["content"]
            one = by_text[text].rollouts[places[text]]
            places[text] += 1
            found["prompt_ids"].append(list(by_text[text].prompt_tokens))
            found["completion_ids"].append(list(one.completion.tokens))
            found["logprobs"].append(list(one.completion.logprobs))
        return found

    def reward(prompts: Sequence[Any], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        earned = {
            (group.episode.id, one.completion.tokens): one.reward.value for group in groups for one in group.rollouts
        }
        return [earned[prompt[0]["content"], tuple(ids)] for prompt, ids in zip(prompts, completion_ids, strict=True)]

    args = trl.GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=8,
        num_generations=4,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_iterations=settings.update_epochs,
        max_steps=settings.update_epochs,
        learning_rate=settings.lr,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=1.0,
        max_completion_length=MAX_TOKENS,
        temperature=settings.temperature,
        loss_type=loss_type,
        scale_rewards=settings.scale_rewards,
        beta=settings.kl_coef,
        epsilon=settings.clip_range_low,
        use_bias_correction_kl=False,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=reward,
        args=args,
        train_dataset=datasets.Dataset.from_list([{"prompt": group.episode.prompt} for group in groups]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        rollout_func=rollout,
    )
    trainer.train()
    return trainer.model, [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_two_steps_on_the_same_tokens_leave_the_same_weights_as_trls_trainer(
    tiny_folder: Path, tmp_path: Path, loss_type: str, scale: Any
) -> None:
    """The second step has ratios beside 1 and a policy that has left its reference."""
    settings = GRPOSettings(
        prompts=2, group=4, kl_coef=0.1, temperature=0.9, update_epochs=2, lr=0.02, scale_rewards=scale
    )
    settings = replace(settings, **LOSS_TYPES[loss_type])
    learner = new_learner(tiny_folder, 0)
    learner.optimizer = torch.optim.SGD(learner.model.parameters())
    learner.freeze_reference()
    groups = groups_of(learner)
    theirs, losses = trained_by_trl(tiny_folder, tmp_path, groups, settings, loss_type)
    start = [weight.detach().clone() for weight in learner.model.parameters()]
    metrics = update(learner, groups, settings, MAX_TOKENS, settings.lr)
    assert metrics["loss"] == pytest.approx(losses[-1], abs=2e-6)
    assert metrics["kl"] > 1e-4
    moved = [(new - old).abs().max().item() for new, old in zip(learner.model.parameters(), start, strict=True)]
    assert max(moved) > 1e-3
    for mine, other in zip(learner.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)
