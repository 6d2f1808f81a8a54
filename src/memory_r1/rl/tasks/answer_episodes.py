"""Episodes of the answer agent: a question, the entries retrieved for it, and the reward of what is answered.

Left out: the memory manager's episodes, which fork a bank.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memory_r1.bank import Bank, Entry
from memory_r1.bench import metrics
from memory_r1.bench.judge import Answered
from memory_r1.dialogue import Question
from memory_r1.memory.answer import Answer, AnswerSettings, Query, answer_prompt, answer_reply, parse_answer, retrieve
from memory_r1.policy.base import Completion, Prompt
from memory_r1.rl.tasks.reward import Earn, earned
from memory_r1.rl.types import Demonstration, Reward


@dataclass(frozen=True)
class AnswerEpisode:
    """One question over the entries retrieved for it (Memory-R1, Algorithm 2).

    The reward reads the answer alone: distillation is credited only through it.
    """

    question: Question
    entries: tuple[Entry, ...]
    settings: AnswerSettings
    earn: Earn
    format_coef: float = 0.0

    @property
    def id(self) -> str:
        return self.question.id

    @property
    def prompt(self) -> Prompt:
        return answer_prompt(Query.of(self.question), self.entries, self.settings)

    def reward(self, completion: Completion) -> Reward:
        """What the parsed answer earns, less `format_coef` when the reply left the format; see `score_answers`."""
        return score_answers([(self, completion)])[0]

    def _worth(self, answer: Answer, value: float) -> Reward:
        parts = {
            "exact_match": metrics.exact_match(answer.text, self.question.answer),
            "well_formed": float(answer.well_formed),
            "distilled": float(len(answer.distilled)),
        }
        return Reward(value - self.format_coef * (not answer.well_formed), parts)

    def demonstration(self, shuffle: random.Random | None = None) -> Demonstration:
        """The reply a warm start imitates: the retrieved entries that hold the evidence, then the gold answer.

        With `shuffle` the entries stand in random order, so that the numbers must be read and not guessed.
        """
        entries = list(self.entries)
        if shuffle:
            shuffle.shuffle(entries)
        evidence = set(self.question.evidence)
        numbers = [n for n, entry in enumerate(entries, start=1) if evidence.intersection(entry.turn_ids)]
        prompt = answer_prompt(Query.of(self.question), entries, self.settings)
        return Demonstration(self.id, prompt, answer_reply(numbers, self.question.answer, self.settings))

    @property
    def answerable(self) -> bool:
        """Whether an entry with evidence was retrieved; without known evidence, taken to be so."""
        found = {turn_id for entry in self.entries for turn_id in entry.turn_ids}
        return not self.question.evidence or not found.isdisjoint(self.question.evidence)


def score_answers(pairs: Sequence[tuple[AnswerEpisode, Completion]]) -> list[Reward]:
    """What completions of episodes, which have one `earn` between them, are rewarded with.

    Raises:
        PolicyError: the reward asks a model, and it failed.
    """
    if not pairs:
        return []
    answers = [parse_answer(completion, episode.entries, episode.settings) for episode, completion in pairs]
    questions = [episode.question for episode, _ in pairs]
    answered = [Answered(q.text, answer.text, q.answer) for q, answer in zip(questions, answers, strict=True)]
    values = earned(pairs[0][0].earn, answered)
    return [episode._worth(answer, value) for (episode, _), answer, value in zip(pairs, answers, values, strict=True)]


def answer_episodes(
    bank: Bank,
    questions: Iterable[Question],
    settings: AnswerSettings,
    earn: Earn,
    format_coef: float = 0.0,
) -> list[AnswerEpisode]:
    """One episode per question, with what `bank` retrieves for it now; questions that retrieve nothing are left out."""
    episodes = [
        AnswerEpisode(question, retrieve(bank, question.text, settings), settings, earn, format_coef)
        for question in questions
    ]
    return [episode for episode in episodes if episode.entries]
