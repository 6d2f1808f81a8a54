"""Episodes of the memory manager: turns, the bank of the turns before them, and the questions linked to them.

What a completion decides is applied to a fork of that bank; the frozen answer agent answers the linked questions from
the fork, and what the answers earn is the reward (Memory-R1, Algorithm 1). A reply that does not parse, or decides what
the bank refuses, changes nothing: it earns what the bank as it was earns, less `format_coef`.

An episode is one turn ("single-step"), or a stretch of consecutive turns ("replay"): there each decision works on what
those before it left, and the outcome, after the last, is that of them all. Rollouts are compared from the bank that all
of them started from. Left out: training ("grpo.py", "ppo.py").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import fmean

from memory_r1.bank import Bank, Embedder, Entry, Operation, OperationKind
from memory_r1.bench import metrics
from memory_r1.bench.judge import Answered
from memory_r1.dialogue import Dialogue, Question, Turn
from memory_r1.errors import BankError, InputError, ReplyError
from memory_r1.memory.answer import AnswerAgent, Query
from memory_r1.memory.extract import Extractor, Fact
from memory_r1.memory.manage import (
    AddOnlyManager,
    MemoryManager,
    manager_prompt,
    manager_reply,
    parse_decision,
    related_entries,
)
from memory_r1.memory.reply import find_json
from memory_r1.policy.base import Completion, Prompt
from memory_r1.rl.tasks.reward import Earn, earned, retention, surplus
from memory_r1.rl.types import Demonstration, Reward


@dataclass(frozen=True)
class OutcomeSettings:
    """What a manager's decision earns beside its questions' answers; each term is off at 0.

    format_coef     times the share of replies that change nothing because they do not parse or are refused, taken off
    size_coef       times the bank's surplus (reward.py): the published lambda is 0.3
    retention_coef  times the share of the questions' evidence that the bank still holds
    """

    format_coef: float = 0.0
    size_coef: float = 0.0
    retention_coef: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a bank is worth: what the frozen answer agent's answers to questions earn."""

    answerer: AnswerAgent
    earn: Earn
    settings: OutcomeSettings = OutcomeSettings()


Decided = tuple[Operation, ...]
"""What a reply decides; empty for one that changes nothing because it does not parse or is refused."""


@dataclass(frozen=True)
class ManagerEpisode:
    """A decision about the facts of one turn, and about those of the turns after it, where it is not the last.

    bank       what the manager finds, as a fork that nobody writes; each rollout writes a fork of its own
    facts      of the turn that is decided now
    related    the entries shown beside the facts
    questions  those whose evidence the turns are, at least one
    evidence   the turns among the questions' evidence that have been heard by the end
    heard      words of the turns that the bank was made from, and of those decided
    k          related entries shown for each fact
    later      the facts of each turn still to come
    decided    about the turns before this one
    _known     what each course of decisions has earned, so that equal ones earn the same and are judged once
    """

    id: str
    bank: Bank
    facts: tuple[Fact, ...]
    related: tuple[Entry, ...]
    questions: tuple[Question, ...]
    evidence: frozenset[str]
    heard: int
    outcome: Outcome
    k: int = 5
    later: tuple[tuple[Fact, ...], ...] = ()
    decided: tuple[Decided, ...] = ()
    _known: dict[tuple[Decided, ...], Reward] = field(default_factory=dict, repr=False, compare=False)

    @property
    def prompt(self) -> Prompt:
        return manager_prompt(self.facts, self.related)

    def after(self, completion: Completion) -> ManagerEpisode | None:
        """The decision about the next turn, on the bank that this one leaves; None where it was the last."""
        if not self.later:
            return None
        operations, bank = self._left(completion)
        facts, *later = self.later
        related = tuple(related_entries(bank, facts, self.k))
        decided = (*self.decided, operations)
        return replace(self, bank=bank, facts=facts, related=related, later=tuple(later), decided=decided)

    def reward(self, completion: Completion) -> Reward:
        """What one completion earns, which must be the last decision's; see `judge`."""
        return judge([(self, completion)])[0]

    def demonstration(self) -> Demonstration:
        """The reply that adds every fact as it stands: a warm start from which the baseline's outcome follows."""
        adds = [(number, OperationKind.ADD, None, None) for number in range(1, len(self.facts) + 1)]
        return Demonstration(self.id, self.prompt, manager_reply(adds))

    def demonstrations(self) -> Iterator[Demonstration]:
        """That reply for each turn in order, each on the bank that those before it leave."""
        episode: ManagerEpisode | None = self
        while episode:
            shown = episode.demonstration()
            yield shown
            episode = episode.after(Completion(shown.reply))

    def _left(self, completion: Completion) -> tuple[Decided, Bank]:
        """What a completion decides, and the bank it leaves: none and the bank itself, where that changes nothing."""
        try:
            operations = parse_decision(find_json(completion.text), self.facts, self.related).operations
            fork = self.bank.fork()
            fork.apply(operations, decided_by="rollout")
        except (ReplyError, BankError):
            return (), self.bank
        return operations, fork

    def _worth(
        self, course: Sequence[Decided], bank: Bank, answered: Sequence[Answered], values: Sequence[float]
    ) -> Reward:
        """What a course earned: `values` are those of its questions' answers."""
        settings = self.outcome.settings
        entries = bank.entries()
        kept = retention(self.evidence, [entry.turn_ids for entry in entries])
        excess = surplus(sum(len(entry.text.split()) for entry in entries), self.heard)
        kinds = [operation.kind for decided in course for operation in decided]
        well_formed = sum(decided != () for decided in course) / len(course)
        parts = {
            "exact_match": fmean(metrics.exact_match(one.answer, one.gold) for one in answered),
            "retention": kept,
            "entries": float(len(entries)),
            **{kind.value.lower(): kinds.count(kind) / len(course) for kind in OperationKind},
            "well_formed": well_formed,
        }
        terms = settings.retention_coef * kept - settings.size_coef * excess - settings.format_coef * (1 - well_formed)
        return Reward(fmean(values) + terms, parts)


def judge(pairs: Sequence[tuple[ManagerEpisode, Completion]]) -> list[Reward]:
    """What completions, each the last of its episode, earn; their outcome, one for all, is asked for in one batch.

    Equal courses of decisions on an episode earn the same, and are judged once.

    Raises:
        PolicyError: the answer agent's model failed, or the judge's, so nothing is known about any of them.
    """
    left = [(episode, *episode._left(completion)) for episode, completion in pairs]
    courses = [(episode, (*episode.decided, operations), bank) for episode, operations, bank in left]
    asked = {(episode.id, key): (episode, key, bank) for episode, key, bank in courses if key not in episode._known}
    if asked:
        outcome = next(iter(asked.values()))[0].outcome
        questions = [(bank, question) for one, _, bank in asked.values() for question in one.questions]
        answers = outcome.answerer.answer([(bank, Query.of(one)) for bank, one in questions])
        answered = [
            Answered(question.text, answer.text, question.answer)
            for (_, question), answer in zip(questions, answers, strict=True)
        ]
        known = iter(zip(answered, earned(outcome.earn, answered), strict=True))
        for episode, key, bank in asked.values():
            own, values = zip(*(next(known) for _ in episode.questions), strict=True)
            episode._known[key] = episode._worth(key, bank, own, values)
    return [episode._known[key] for episode, key, _ in courses]


def manager_episodes(
    dialogue: Dialogue,
    questions: Iterable[Question],
    extractor: Extractor,
    outcome: Outcome,
    *,
    k: int = 5,
    window: int = 50,
    builder: MemoryManager | None = None,
    embedder: Embedder | None = None,
) -> list[ManagerEpisode]:
    """One episode for each turn that is evidence of a question, in the order of the dialogue.

    Args:
        questions: about this dialogue; one is linked to every turn among its evidence.
        k: related entries shown for each fact.
        window: the temporal bank is built from so many turns before the turn (the paper says 50, and 24).
        builder: decides what the temporal bank makes of those turns; adds them all by default.

    Raises:
        InputError: window is below 0.
        PolicyError: the extractor's or the builder's model failed.
    """
    linked = _linked(questions)
    episodes = []
    for state in _temporal_banks(dialogue, extractor, builder or AddOnlyManager(), window, embedder):
        asked = linked.get(state.turn.id, ())
        if state.facts and asked:
            episodes.append(_episode(f"{dialogue.id}/{state.turn.id}", [state], asked, outcome, k))
    return episodes


def replay_episodes(
    dialogue: Dialogue,
    questions: Iterable[Question],
    extractor: Extractor,
    outcome: Outcome,
    *,
    turns: int = 8,
    k: int = 5,
    window: int = 50,
    builder: MemoryManager | None = None,
    embedder: Embedder | None = None,
) -> list[ManagerEpisode]:
    """One episode for each stretch of consecutive turns in which a question's evidence is complete, in order.

    The stretches follow one another from the dialogue's first turn to its last, the last being shorter where turns are
    left over. A question is asked after the stretch that holds the last turn of its evidence: all of it was heard by
    then, and some of it there. A turn without facts is no decision.

    Args:
        turns: of a stretch.
        window: the temporal bank is built from so many turns before a stretch; nothing leaves it within.
        questions, k, builder: as in `manager_episodes`.

    Raises:
        InputError: turns is below 1, or window below 0.
        PolicyError: the extractor's or the builder's model failed.
    """
    if turns < 1:
        raise InputError(f"replay has stretches of {turns} turns, expected at least 1")
    complete = _complete(dialogue, questions)
    states = _temporal_banks(dialogue, extractor, builder or AddOnlyManager(), window, embedder)
    episodes = []
    while stretch := list(islice(states, turns)):
        asked = [question for state in stretch for question in complete.get(state.turn.id, ())]
        if asked and any(state.facts for state in stretch):
            name = f"{dialogue.id}/{stretch[0].turn.id}..{stretch[-1].turn.id}"
            episodes.append(_episode(name, stretch, asked, outcome, k))
    return episodes


def _episode(
    name: str, stretch: Sequence[_State], questions: Sequence[Question], outcome: Outcome, k: int
) -> ManagerEpisode:
    """The episode over these turns, of which one at least has facts."""
    bank = stretch[0].bank
    facts, *later = [state.facts for state in stretch if state.facts]
    sources = [
        *(entry.turn_ids for entry in bank.entries()),
        *(fact.turn_ids for turn in (facts, *later) for fact in turn),
    ]
    heard = {turn_id for turn_ids in sources for turn_id in turn_ids}
    return ManagerEpisode(
        id=name,
        bank=bank,
        facts=facts,
        related=tuple(related_entries(bank, facts, k)),
        questions=tuple(questions),
        evidence=frozenset(turn_id for question in questions for turn_id in question.evidence if turn_id in heard),
        heard=stretch[0].heard + sum(_words(state.turn) for state in stretch[1:]),
        outcome=outcome,
        k=k,
        later=tuple(later),
    )


def _linked(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """The questions by the turns that are their evidence."""
    linked: dict[str, list[Question]] = {}
    for question in questions:
        for turn_id in dict.fromkeys(question.evidence):
            linked.setdefault(turn_id, []).append(question)
    return linked


def _complete(dialogue: Dialogue, questions: Iterable[Question]) -> dict[str, list[Question]]:
    """The questions by the turn with which all of their evidence has been heard."""
    places = {turn.id: place for place, turn in enumerate(dialogue.turns)}
    complete: dict[str, list[Question]] = {}
    for question in questions:
        if question.evidence and all(turn_id in places for turn_id in question.evidence):
            complete.setdefault(max(question.evidence, key=places.__getitem__), []).append(question)
    return complete


@dataclass(frozen=True)
class _State:
    """A turn, its facts, the temporal bank before it, and the words heard up to and with it."""

    turn: Turn
    facts: tuple[Fact, ...]
    bank: Bank
    heard: int


def _temporal_banks(
    dialogue: Dialogue, extractor: Extractor, builder: MemoryManager, window: int, embedder: Embedder | None
) -> Iterator[_State]:
    """Every turn of a dialogue in its state; an entry leaves the bank with the last of its turns."""
    if window < 0:
        raise InputError(f"window is {window}, expected 0 or more turns")
    bank = Bank.open(":memory:", scope=dialogue.id, embedder=embedder)
    recent: deque[Turn] = deque(maxlen=window)
    for turn in dialogue.turns:
        facts = tuple(extractor.extract([turn]))
        heard = sum(map(_words, (*recent, turn)))
        yield _State(turn, facts, bank.fork(), heard)
        bank.apply(builder.decide(facts, bank).operations, decided_by=builder.name)
        recent.append(turn)
        within = {one.id for one in recent}
        bank.apply([Operation.delete(entry.id) for entry in bank.entries() if within.isdisjoint(entry.turn_ids)])


def _words(turn: Turn) -> int:
    return len(turn.text.split())
