"""Both agents learn what pays, with either algorithm: real episodes, a bank that is written, a tiny policy.

The policy has three replies of one token each, all of them imitated alike by a warm start; one of the three pays.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest
import torch

from conftest import new_learner
from memory_r1.bank import Bank, HashingEmbedder, Operation
from memory_r1.dialogue import Dialogue, Question, Session, Turn
from memory_r1.memory import AnswerAgent, AnswerSettings, TurnExtractor
from memory_r1.policy import Prompt, ScriptedPolicy
from memory_r1.rl.algorithms.grpo import GRPO, GRPOSettings
from memory_r1.rl.algorithms.ppo import PPO, CriticSettings, PPOSettings
from memory_r1.rl.algorithms.sft import SFT, SFTSettings
from memory_r1.rl.model.learner import Learner
from memory_r1.rl.rollout import Scorer
from memory_r1.rl.run.loop import Algorithm
from memory_r1.rl.tasks.answer_episodes import answer_episodes, score_answers
from memory_r1.rl.tasks.manager_episodes import Outcome, judge, manager_episodes
from memory_r1.rl.tasks.reward import each, em
from memory_r1.rl.types import Demonstration, Episode

MAY, JUNE = datetime(2024, 5, 1), datetime(2024, 6, 1)
ASKED = Question("q", "d", "Where does Ann live?", "Oslo", evidence=("t2",))
ANSWERS = AnswerSettings(k=2, per_speaker=False)
WARM_START = SFTSettings(epochs=20, batch=3, lr=5e-3)
GRPO_RUN = GRPOSettings(epochs_over_data=40, prompts=1, group=32, lr=2e-2, kl_coef=0.0)
PPO_RUN = PPOSettings(
    epochs_over_data=40, prompts=1, group=32, lr=2e-2, kl_coef=0.0, critic=CriticSettings(lr=1e-3, warmup=1)
)


def operation(kind: str, number: int | None = None, text: str | None = None) -> str:
    return json.dumps({"operations": [{"fact": 1, "op": kind, "id": number, "text": text}]})


DECISIONS = (operation("UPDATE", 0, "Ann lives in Oslo"), operation("ADD"), operation("NOOP"))
REPLIES = ("Relevant: 2\nAnswer: Oslo", "Relevant: 1\nAnswer: Rome", "Relevant: none\nAnswer: unknown")


def believes_what_is_stale(prompt: Prompt) -> str:
    """A frozen answer agent that goes by the old city as long as it is remembered."""
    known = prompt[-1]["content"].split("\n\nQuestion:")[0]
    return f"Relevant: 1\nAnswer: {'Rome' if 'Rome' in known else 'Oslo' if 'Oslo' in known else 'unknown'}"


def managing() -> tuple[Episode, Scorer]:
    """Ann lived in Rome and has moved to Oslo: only UPDATE leaves a bank that answers right."""
    sessions = [
        Session("s1", MAY, (Turn("t1", "Ann", "I live in Rome", MAY),)),
        Session("s2", JUNE, (Turn("t2", "Ann", "I live in Oslo now", JUNE),)),
    ]
    agent = AnswerAgent(ScriptedPolicy(believes_what_is_stale), ANSWERS)
    [episode] = manager_episodes(
        Dialogue("d", tuple(sessions)), [ASKED], TurnExtractor(), Outcome(agent, each(em)), embedder=HashingEmbedder(64)
    )
    return episode, judge


def answering() -> tuple[Episode, Scorer]:
    with Bank.open(":memory:", embedder=HashingEmbedder(64)) as bank:
        bank.apply([Operation.add("I live in Rome", said_at=MAY), Operation.add("I live in Oslo now", said_at=JUNE)])
        [episode] = answer_episodes(bank, [ASKED], ANSWERS, each(em))
        return episode, score_answers


def learner_of(folder: Path, replies: Sequence[str], kept: Path) -> Learner:
    """A tiny policy whose vocabulary has each of these replies as one token."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_tokens(list(replies))
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(kept)
    tokenizer.save_pretrained(kept)
    return new_learner(kept)


def train(learner: Learner, algorithm: Algorithm) -> None:
    algorithm.prepare(learner)
    for iteration in range(algorithm.iterations):
        algorithm.iterate(learner, iteration)


def chances(learner: Learner, episode: Episode, replies: Sequence[str]) -> list[float]:
    """The probability of each reply."""
    prompt = torch.tensor([learner.policy.encode(episode.prompt)])
    with torch.no_grad():
        odds = torch.softmax(learner.model(prompt).logits[0, -1], 0)
    return [float(odds[learner.policy.encode_reply(reply)[0]]) for reply in replies]


@pytest.mark.parametrize("name", ["grpo", "ppo"])
@pytest.mark.parametrize(("made", "replies"), [(managing, DECISIONS), (answering, REPLIES)], ids=["manager", "answer"])
def test_an_agent_learns_the_reply_whose_outcome_is_right(
    tiny_folder: Path, tmp_path: Path, made: object, replies: Sequence[str], name: str
) -> None:
    episode, score = made()  # type: ignore[operator]
    learner = learner_of(tiny_folder, replies, tmp_path / "model")
    shown = [Demonstration(episode.id, episode.prompt, reply) for reply in replies]
    train(learner, SFT(shown, WARM_START))
    assert max(chances(learner, episode, replies)) < 0.6  # the warm start prefers none of them
    if name == "grpo":
        train(learner, GRPO([episode], GRPO_RUN, 1, score=score))
    else:
        train(learner, PPO([episode], PPO_RUN, 1, score=score))
    assert chances(learner, episode, replies)[0] > 0.9
