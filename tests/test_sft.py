"""The warm start: its loss against one written out, and replies that end."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from conftest import Letters, Naive, new_learner
from memory_r1.rl.algorithms.sft import SFT, SFTSettings
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.types import Demonstration

SHOWN = [
    Demonstration("1", Letters("what?").prompt, "Relevant: 2\nAnswer: the dog"),
    Demonstration("2", Letters("and who?").prompt, "Relevant: none\nAnswer: Ann"),
]


def tokens(learner: Learner, shown: Demonstration) -> tuple[list[int], list[int]]:
    return learner.policy.encode(shown.prompt), learner.policy.encode_reply(shown.reply)


def test_a_reply_is_followed_by_the_end_token(tiny_folder: Path) -> None:
    learner = new_learner(tiny_folder)
    prompt, reply = tokens(learner, SHOWN[0])
    assert prompt == learner.policy.encode(SHOWN[0].prompt)
    assert reply[-1] == learner.policy.tokenizer.eos_token_id
    assert learner.policy.decode(reply[:-1]) == SHOWN[0].reply


def test_the_loss_is_the_mean_over_replies_of_their_tokens_mean(tiny_folder: Path, naive_logprobs: Naive) -> None:
    learner = new_learner(tiny_folder)
    with torch.no_grad():
        pairs = [tokens(learner, shown) for shown in SHOWN]
        wanted = statistics.mean(-naive_logprobs(learner.model, *pair).mean().item() for pair in pairs)
    metrics = SFT(SHOWN, SFTSettings(batch=2)).iterate(learner, 0)
    assert len(pairs[0][1]) != len(pairs[1][1])
    assert metrics["loss"] == pytest.approx(wanted, abs=1e-4)


def test_imitating_makes_the_replies_more_probable(tiny_folder: Path) -> None:
    learner, sft = new_learner(tiny_folder), SFT(SHOWN, SFTSettings(epochs=10, batch=2, lr=1e-2))
    losses = [sft.iterate(learner, iteration)["loss"] for iteration in range(sft.iterations)]
    assert sft.iterations == 10
    assert losses[-1] < losses[0] / 2
