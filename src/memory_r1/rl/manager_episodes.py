"""Episodes of the memory manager: a turn, the bank of the turns before it, and the questions linked to it.

What a completion decides is applied to a fork of that bank; the frozen answer agent answers the linked questions from
the fork, and what the answers earn is the reward (Memory-R1, Algorithm 1). A reply that does not parse, or decides what
the bank refuses, changes nothing: it earns what the bank as it was earns, less `format_coef`. Left out: training
("grpo.py", "ppo.py") and episodes over several turns.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from memory_r1.bank import Bank, Embedder, Entry, Operation, OperationKind
from memory_r1.bench import metrics
from memory_r1.dialogue import Dialogue, Question, Turn
from memory_r1.errors import BankError, InputError, ReplyError
from memory_r1.memory.answer import AnswerAgent
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
from memory_r1.rl.reward import retention, surplus
from memory_r1.rl.types import Demonstration, Reward


@dataclass(frozen=True)
class OutcomeSettings:
    """What a manager's decision earns beside its questions' answers; each term is off at 0.

    format_coef     taken off for a reply that changes nothing because it does not parse or is refused
    size_coef       times the bank's surplus (reward.py): the published lambda is 0.3
    retention_coef  times the share of the questions' evidence that the bank still holds
    """

    format_coef: float = 0.0
    size_coef: float = 0.0
    retention_coef: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a bank is worth: the frozen answer agent's answers to questions, by `earn` (answer, gold) -> [0, 1]."""

    answerer: AnswerAgent
    earn: Callable[[str, str], float]
    settings: OutcomeSettings = OutcomeSettings()


@dataclass(frozen=True)
class ManagerEpisode:
    """One decision about the facts of one turn.

    bank       what the manager finds, as a fork that nobody writes; each rollout writes a fork of its own
    related    the entries shown beside the facts
    questions  those whose evidence the turn is, at least one
    heard      words of the turns that the bank was made from, and of this one
    _known     what each decision has earned, so that equal ones earn the same and are judged once
    """

    id: str
    bank: Bank
    facts: tuple[Fact, ...]
    related: tuple[Entry, ...]
    questions: tuple[Question, ...]
    heard: int
    outcome: Outcome
    _known: dict[tuple[Operation, ...], Reward] = field(default_factory=dict, repr=False, compare=False)

    @property
    def prompt(self) -> Prompt:
        return manager_prompt(self.facts, self.related)

    def reward(self, completion: Completion) -> Reward:
        """What one completion earns; see `judge`."""
        return judge([(self, completion)])[0]

    def demonstration(self) -> Demonstration:
        """The reply that adds every fact as it stands: a warm start from which the baseline's outcome follows."""
        adds = [(number, OperationKind.ADD, None, None) for number in range(1, len(self.facts) + 1)]
        return Demonstration(self.id, self.prompt, manager_reply(adds))

    def _left(self, completion: Completion) -> tuple[tuple[Operation, ...], Bank]:
        """What a completion decides, and the bank it leaves: none and the bank itself, where that changes nothing."""
        try:
            operations = parse_decision(find_json(completion.text), self.facts, self.related).operations
            fork = self.bank.fork()
            fork.apply(operations, decided_by="rollout")
        except (ReplyError, BankError):
            return (), self.bank
        return operations, fork

    def _worth(self, operations: Sequence[Operation], bank: Bank, answers: Sequence[str]) -> Reward:
        settings, golds = self.outcome.settings, [question.answer for question in self.questions]
        pairs = [(answer, gold) for answer, gold in zip(answers, golds, strict=True) if answer]
        entries = bank.entries()
        kept = retention(self._evidence(), [entry.turn_ids for entry in entries])
        excess = surplus(sum(len(entry.text.split()) for entry in entries), self.heard)
        value = sum(self.outcome.earn(answer, gold) for answer, gold in pairs) / len(golds)
        kinds = Counter(operation.kind for operation in operations)
        parts = {
            "exact_match": sum(metrics.exact_match(answer, gold) for answer, gold in pairs) / len(golds),
            "retention": kept,
            "entries": float(len(entries)),
            **{kind.value.lower(): float(kinds[kind]) for kind in OperationKind},
        }
        return Reward(value + settings.retention_coef * kept - settings.size_coef * excess, parts)

    def _evidence(self) -> set[str]:
        """The evidence of the questions that has been heard by now: later turns are nobody's fault."""
        sources = [*(entry.turn_ids for entry in self.bank.entries()), *(fact.turn_ids for fact in self.facts)]
        evidence = {turn_id for question in self.questions for turn_id in question.evidence}
        return evidence.intersection(turn_id for turn_ids in sources for turn_id in turn_ids)

    def _less_format(self, reward: Reward, *, well_formed: bool) -> Reward:
        value = reward.value - (0 if well_formed else self.outcome.settings.format_coef)
        return Reward(value, {**reward.parts, "well_formed": float(well_formed)})


def judge(pairs: Sequence[tuple[ManagerEpisode, Completion]]) -> list[Reward]:
    """What completions of episodes earn; their answer agent, one for all, is asked in one batch.

    Equal decisions on an episode earn the same, and are judged once.

    Raises:
        PolicyError: the answer agent's model failed, so nothing is known about any of them.
    """
    decided = [(episode, *episode._left(completion)) for episode, completion in pairs]
    asked = {(episode.id, key): (episode, key, bank) for episode, key, bank in decided if key not in episode._known}
    if asked:
        agent = next(iter(asked.values()))[0].outcome.answerer
        questions = [(bank, question.text) for one, _, bank in asked.values() for question in one.questions]
        answers = iter(agent.answer_from(questions))
        for episode, key, bank in asked.values():
            episode._known[key] = episode._worth(key, bank, [next(answers).text for _ in episode.questions])
    return [episode._less_format(episode._known[key], well_formed=key != ()) for episode, key, _ in decided]


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
    if window < 0:
        raise InputError(f"window is {window}, expected 0 or more turns")
    linked = _linked(questions)
    episodes = []
    for state in _temporal_banks(dialogue, extractor, builder or AddOnlyManager(), window, embedder):
        asked = tuple(linked.get(state.turn.id, ()))
        if state.facts and asked:
            related, name = tuple(related_entries(state.bank, state.facts, k)), f"{dialogue.id}/{state.turn.id}"
            episodes.append(ManagerEpisode(name, state.bank, state.facts, related, asked, state.heard, outcome))
    return episodes


def _linked(questions: Iterable[Question]) -> dict[str, list[Question]]:
    """The questions by the turns that are their evidence."""
    linked: dict[str, list[Question]] = {}
    for question in questions:
        for turn_id in dict.fromkeys(question.evidence):
            linked.setdefault(turn_id, []).append(question)
    return linked


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
    bank = Bank.open(":memory:", scope=dialogue.id, embedder=embedder)
    recent: deque[Turn] = deque(maxlen=window)
    for turn in dialogue.turns:
        facts = tuple(extractor.extract([turn]))
        heard = sum(len(one.text.split()) for one in (*recent, turn))
        yield _State(turn, facts, bank.fork(), heard)
        bank.apply(builder.decide(facts, bank).operations, decided_by=builder.name)
        recent.append(turn)
        within = {one.id for one in recent}
        bank.apply([Operation.delete(entry.id) for entry in bank.entries() if within.isdisjoint(entry.turn_ids)])
