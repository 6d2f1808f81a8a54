"""What an agent is trained on: its episodes, those to check on, and what a warm start imitates.

Two tasks: the answer agent's questions over a bank that is there (Memory-R1, Algorithm 2), and the memory manager's
turns over the bank before each (Algorithm 1). Left out: how either is trained (train.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from memory_r1.bank import Bank, Embedder
from memory_r1.bench.dataset import Dataset
from memory_r1.bench.run import remember_all
from memory_r1.dialogue import Dialogue, Question
from memory_r1.errors import InputError
from memory_r1.memory.answer import AnswerAgent, AnswerSettings
from memory_r1.memory.card import default_settings
from memory_r1.memory.extract import Extractor
from memory_r1.memory.manage import ManagerSettings
from memory_r1.policy.base import Policy
from memory_r1.rl.rollout import Scorer
from memory_r1.rl.tasks.answer_episodes import AnswerEpisode, answer_episodes, score_answers
from memory_r1.rl.tasks.lessons import GoldManager, LessonSettings, fewer_noops, lessons
from memory_r1.rl.tasks.manager_episodes import (
    ManagerEpisode,
    Outcome,
    OutcomeSettings,
    judge,
    manager_episodes,
    replay_episodes,
)
from memory_r1.rl.tasks.preflight import remarks
from memory_r1.rl.tasks.reward import Earn
from memory_r1.rl.types import Demonstration, Episode

Banks = Callable[[Sequence[Dialogue], Callable[[Dialogue], Extractor], Embedder | None], Mapping[str, Bank]]
"""(dialogues, extractor of each, embedder) -> the bank of each dialogue, by its id."""


@dataclass(frozen=True)
class Task:
    """An agent's lessons.

    score       what completions earn, for many episodes at once
    settings    of the agent, for the card beside the adapter
    remarks     what to know about the data (preflight.py)
    """

    episodes: Sequence[Episode]
    val: Sequence[Episode]
    demonstrations: Sequence[Demonstration]
    score: Scorer
    settings: AnswerSettings | ManagerSettings
    remarks: Sequence[str] = ()


class Parts(Protocol):
    """Which part of a data set is trained on, and which is checked on."""

    @property
    def train(self) -> str: ...

    @property
    def val(self) -> str: ...

    @property
    def val_fraction(self) -> float: ...

    @property
    def seed(self) -> int: ...


def answer_task(
    dataset: Dataset,
    parts: Parts,
    extractor: Callable[[Dialogue], Extractor],
    settings: AnswerSettings,
    earn: Earn,
    *,
    format_coef: float = 0.0,
    shuffles: int = 1,
    embedder: Embedder | None = None,
    banks: Sequence[Banks] = (remember_all,),
) -> Task:
    """Questions over the banks that a memory manager makes of the dialogues.

    Args:
        shuffles: copies of each demonstration with its entries in random order.
        banks: what makes them, by default adding every fact; of several, each question is asked over the bank of each.

    Raises:
        InputError: the data has no part of that name, or a question is in both parts.
        PolicyError: the extractor's model failed.
    """
    dialogues, questions, held = divided(dataset, parts)
    made = [make(dialogues, extractor, embedder) for make in banks]
    episodes, val = (
        [episode for one in made for episode in _answer_episodes(one, part, settings, earn, format_coef)]
        for part in (questions, held)
    )
    shuffle = random.Random(parts.seed)
    orders = [None, *[shuffle] * shuffles]
    shown = [episode.demonstration(order) for order in orders for episode in episodes if episode.answerable]
    return Task(episodes, val, shown, score_answers, settings, remarks(questions, episodes))


def gold_banks(
    dialogues: Sequence[Dialogue], extractor: Callable[[Dialogue], Extractor], embedder: Embedder | None = None
) -> dict[str, Bank]:
    """The banks that the dialogues' gold operations make; where a dialogue has none, every fact is added."""
    return remember_all(dialogues, extractor, embedder, manager=GoldManager.of)


def manager_task(
    dataset: Dataset,
    parts: Parts,
    extractor: Callable[[Dialogue], Extractor],
    settings: ManagerSettings,
    earn: Earn,
    answerer: Policy,
    *,
    window: int = 50,
    replay_turns: int = 0,
    outcome: OutcomeSettings | None = None,
    teaching: LessonSettings | None = None,
    embedder: Embedder | None = None,
) -> Task:
    """Turns that are evidence of a question, or stretches with such turns, each over the bank of the turns before it.

    The gold operations of a dialogue that has some decide what its turns make of the bank, and the warm start imitates
    them over the whole dialogue; of other dialogues the bank adds every turn, and so does what is imitated.

    Args:
        answerer: the frozen answer agent's model; its adapter's card says how it retrieves.
        window: turns that the temporal bank is made of.
        replay_turns: turns of a stretch; 0 makes single turns the episodes.
        teaching: what the warm start makes of gold operations.

    Raises:
        InputError: as `answer_task` does, or no question has evidence.
        PolicyError: the extractor's model failed.
    """
    dialogues, questions, held = divided(dataset, parts)
    judged = Outcome(AnswerAgent(answerer, default_settings(answerer)), earn, outcome or OutcomeSettings())
    made = partial(replay_episodes, turns=replay_turns) if replay_turns else manager_episodes
    teaching = teaching or LessonSettings()

    def of(part: Sequence[Question]) -> list[ManagerEpisode]:
        return [
            episode
            for dialogue in dialogues
            for episode in made(
                dialogue,
                [question for question in part if question.dialogue_id == dialogue.id],
                extractor(dialogue),
                judged,
                k=settings.k,
                window=window,
                builder=GoldManager.of(dialogue, own_words=teaching.own_words),
                embedder=embedder,
            )
        ]

    episodes = of(questions)
    if not episodes:
        raise InputError(
            f"{dataset.path}: none of {len(questions)} questions names its evidence, which links it to turns"
        )
    taught = partial(lessons, k=settings.k, own_words=teaching.own_words, embedder=embedder)
    shown = _shown(dialogues, episodes, lambda one: taught(one, extractor(one)).demonstrations)
    shown = fewer_noops(shown, teaching.noops, parts.seed)
    return Task(episodes, of(held), shown, judge, settings, remarks(questions, episodes))


def _shown(
    dialogues: Sequence[Dialogue],
    episodes: Sequence[ManagerEpisode],
    taught: Callable[[Dialogue], Sequence[Demonstration]],
) -> list[Demonstration]:
    """What the memory manager imitates: the lessons of dialogues that have some; of others, adding turns."""
    asked = {episode.questions[0].dialogue_id for episode in episodes}
    known = {dialogue.id: taught(dialogue) for dialogue in dialogues if dialogue.id in asked}
    added = [one for each in episodes if not known[each.questions[0].dialogue_id] for one in each.demonstrations()]
    return [*(demonstration for each in known.values() for demonstration in each), *added]


def divided(dataset: Dataset, parts: Parts) -> tuple[list[Dialogue], list[Question], list[Question]]:
    """The dialogues, the questions to train on, and those to check on; raises InputError."""
    dialogues, questions = dataset.select(parts.train)
    if parts.val:
        val_dialogues, held = dataset.select(parts.val)
        shared = {question.id for question in questions}.intersection(question.id for question in held)
        if shared:
            raise InputError(f"{len(shared)} questions are both in train and in val, such as {min(shared)!r}")
        return [*dialogues, *(one for one in val_dialogues if one not in dialogues)], questions, held
    if parts.val_fraction:
        return (dialogues, *_hold_out(questions, parts.val_fraction, parts.seed))
    return dialogues, questions, []


def _hold_out(questions: list[Question], fraction: float, seed: int) -> tuple[list[Question], list[Question]]:
    held = set(random.Random(seed).sample(range(len(questions)), max(1, round(fraction * len(questions)))))
    return [q for i, q in enumerate(questions) if i not in held], [q for i, q in enumerate(questions) if i in held]


def _answer_episodes(
    banks: Mapping[str, Bank], questions: Iterable[Question], settings: AnswerSettings, earn: Earn, format_coef: float
) -> list[AnswerEpisode]:
    return [
        episode
        for question in questions
        for episode in answer_episodes(banks[question.dialogue_id], [question], settings, earn, format_coef)
    ]
