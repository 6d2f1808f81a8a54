"""The answer agent: retrieved entries and a question in, the distilled entries and a short answer out.

One generation does both (Memory-R1, section 3.3): first the numbers of the entries it keeps (distillation), then the
answer. The prompt and its parser stand here together under one format name, which a trained adapter records. Left
out: retrieval's ranking (bank/search.py) and rewards (rl/tasks/reward.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, groupby

from memory_r1.bank import Bank, Entry
from memory_r1.dialogue import Question
from memory_r1.errors import InputError
from memory_r1.memory.dates import day
from memory_r1.memory.reply import one_line
from memory_r1.policy.base import Completion, Message, Policy, Sampling

FORMAT = "answer-1"


@dataclass(frozen=True)
class AnswerSettings:
    """How the answer agent retrieves and writes.

    k            entries retrieved, for each speaker when `per_speaker` (the paper: 30 for each of two)
    per_speaker  search each speaker's entries apart, so that both are heard
    distill      first write the numbers of the entries that matter; off is the paper's ablation
    max_tokens   longest reply
    """

    k: int = 30
    per_speaker: bool = True
    distill: bool = True
    max_tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("k", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")


SMALL = AnswerSettings(k=10, per_speaker=False, max_tokens=40)
"""What a model of a few hundred million parameters can read and write."""


@dataclass(frozen=True)
class Answer:
    """An answer with what it was made from.

    `well_formed` is False when the reply left the format, and the whole reply had to be taken as the answer.
    """

    text: str
    distilled: tuple[Entry, ...] = ()
    retrieved: tuple[Entry, ...] = ()
    well_formed: bool = True
    completion: Completion = field(default_factory=lambda: Completion(""))


@dataclass(frozen=True)
class Query:
    """What is asked; `asked_at` is shown where it is known, since "last week" counts from it."""

    text: str
    asked_at: datetime | None = None

    @classmethod
    def of(cls, question: Question) -> Query:
        """A data set's question, without what is known of its answer."""
        return cls(question.text, question.asked_at)


@dataclass(frozen=True)
class AnswerAgent:
    """Answers questions from a bank with one generation of `policy` each."""

    policy: Policy
    settings: AnswerSettings = AnswerSettings()

    def answer(self, pairs: Sequence[tuple[Bank, Query]]) -> list[Answer]:
        """Answer each query from its bank's live entries, all in one batch.

        An empty bank answers from nothing, without a model.

        Raises:
            PolicyError: the model failed; no query is answered.
        """
        retrieved = [
            entries
            for bank, group in groupby(pairs, key=lambda pair: pair[0])
            for entries in retrieve_each(bank, [query.text for _, query in group], self.settings)
        ]
        asked = [i for i, entries in enumerate(retrieved) if entries]
        prompts = [answer_prompt(pairs[i][1], retrieved[i], self.settings) for i in asked]
        completions = self.policy.complete(prompts, Sampling(max_tokens=self.settings.max_tokens)) if prompts else []
        answers = [Answer("") for _ in pairs]
        for i, completion in zip(asked, completions, strict=True):
            answers[i] = parse_answer(completion, retrieved[i], self.settings)
        return answers


def retrieve(bank: Bank, question: str, settings: AnswerSettings) -> tuple[Entry, ...]:
    """The entries shown for a question, best first; with `per_speaker`, speaker after speaker, then nobody's."""
    return retrieve_each(bank, [question], settings)[0]


def retrieve_each(bank: Bank, questions: Sequence[str], settings: AnswerSettings) -> list[tuple[Entry, ...]]:
    """What `retrieve` gives for each question."""
    overall = bank.search_each(questions, k=settings.k)
    speakers = bank.speakers() if settings.per_speaker else []
    if len(speakers) < 2:
        return [tuple(entries) for entries in overall]
    spoken = [bank.search_each(questions, k=settings.k, speaker=speaker) for speaker in speakers]
    nobodys = [[entry for entry in entries if entry.speaker is None] for entries in overall]
    return [tuple(chain.from_iterable(parts)) for parts in zip(*spoken, nobodys, strict=True)]


_SYSTEM = "You answer questions about people from what was remembered of their conversations."

_ASK = """Reply in two lines.
Relevant: the numbers of the memories that hold the answer
Answer: the answer in at most six words, with full dates"""

_ASK_PLAIN = """Reply in one line.
Answer: the answer in at most six words, with full dates"""


def answer_prompt(query: Query, entries: Sequence[Entry], settings: AnswerSettings) -> list[Message]:
    """The messages that ask for an answer; entries are numbered from 1 in the order given."""
    lines = [f"{number}. {_entry_line(entry)}" for number, entry in enumerate(entries, start=1)]
    ask = _ASK if settings.distill else _ASK_PLAIN
    asked = f"Question on {day(query.asked_at)}" if query.asked_at else "Question"
    body = "Memories:\n" + "\n".join(lines) + f"\n\n{asked}: {one_line(query.text)}\n{ask}"
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": body}]


def _entry_line(entry: Entry) -> str:
    date = f"[{day(entry.said_at)}] " if entry.said_at else ""
    speaker = f"{one_line(entry.speaker)}: " if entry.speaker else ""
    return f"{date}{speaker}{one_line(entry.text)}"


def answer_reply(numbers: Sequence[int], answer: str, settings: AnswerSettings) -> str:
    """The reply the prompt asks for; what a warm start imitates. Numbers count entries from 1."""
    if not settings.distill:
        return f"Answer: {one_line(answer)}"
    return f"Relevant: {', '.join(map(str, numbers)) or 'none'}\nAnswer: {one_line(answer)}"


_ANSWER = re.compile(r"(?:\*\*)?answer:(?:\*\*)?\s*([^\n]*)", re.IGNORECASE)
_RELEVANT = re.compile(r"(?:\*\*)?relevant:(?:\*\*)?((?:(?!answer:)[^\n])*)", re.IGNORECASE)
_BOLD = re.compile(r"^\*\*|\*\*$")
_NUMBER = re.compile(r"(?<!\d)\d{1,4}(?!\d)")


def parse_answer(completion: Completion, entries: Sequence[Entry], settings: AnswerSettings) -> Answer:
    """Read a reply; one that names no answer is taken whole, as the group's evaluation code does, and is so marked.

    Numbers that name no entry are left out.
    """
    reply = completion.text.strip()
    head, answer = _RELEVANT.search(reply), _ANSWER.search(reply)
    numbers = [int(digits) for digits in _NUMBER.findall(head[1])] if head else []
    kept = dict.fromkeys(number for number in numbers if 1 <= number <= len(entries))
    text = _BOLD.sub("", (answer[1] if answer else reply).strip()).strip()
    return Answer(
        text=text,
        distilled=tuple(entries[number - 1] for number in kept) if settings.distill else tuple(entries),
        retrieved=tuple(entries),
        well_formed=bool(answer and text) and (bool(head) or not settings.distill),
        completion=completion,
    )
