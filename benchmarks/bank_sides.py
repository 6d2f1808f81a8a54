"""What benchmarks/bank.py compares: the bank and mem0 behind one face, and the texts and vectors given to both."""

from __future__ import annotations

import importlib
import itertools
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from memory_r1.bank import Bank, Embedder, MiniLMEmbedder, Operation
from memory_r1.bank.column import Floats
from memory_r1.dialogue import Dialogue, Session, Turn
from memory_r1.memory import AddOnlyManager, Fact, LLMManager, Memory, MemoryManager
from memory_r1.policy import ScriptedPolicy

DIMENSION = 384
USER = "ann"
BATCH = 500  # entries at a time while a bank is filled


# Texts and vectors


class Texts:
    """Texts that are never given out twice, and questions, both in a random order."""

    def __init__(self, texts: Sequence[str], questions: Sequence[str]) -> None:
        self._texts = _without_end(texts)
        self._questions = _without_end(questions)

    @classmethod
    def of(cls, data: Path | None, seed: int) -> Texts:
        """LoCoMo's, or those made from a small vocabulary; shuffled."""
        rng = random.Random(seed)
        texts, questions = _locomo(data) if data else _made_up(rng)
        return cls(rng.sample(texts, len(texts)), rng.sample(questions, len(questions)))

    def take(self, count: int) -> list[str]:
        return list(itertools.islice(self._texts, count))

    def questions(self, count: int) -> list[str]:
        return list(itertools.islice(self._questions, count))


def _without_end(texts: Sequence[str]) -> Iterator[str]:
    """Every text once; then again with a number, so that no two are equal."""
    yield from texts
    yield from (f"{text} ({number})" for number in itertools.count(2) for text in texts)


def _locomo(path: Path) -> tuple[list[str], list[str]]:
    samples = json.loads(path.read_text("utf-8"))
    sessions = [part for sample in samples for part in sample["conversation"].values() if isinstance(part, list)]
    turns = dict.fromkeys(turn["text"] for session in sessions for turn in session if turn["text"].strip())
    questions = dict.fromkeys(one["question"] for sample in samples for one in sample["qa"])
    return list(turns), list(questions)


def _made_up(rng: random.Random) -> tuple[list[str], list[str]]:
    people, verbs = ["Ann", "Bob", "Cleo", "Dan"], ["likes", "bought", "lost", "talked about", "is afraid of"]
    adjectives, things = (
        ["old", "red", "tiny", "famous", "wild"],
        ["dog", "bicycle", "garden", "song", "recipe", "lake"],
    )
    said = [" ".join(words) for words in itertools.product(people, verbs, adjectives, things)]
    questions = [f"Which {thing} does {person} remember?" for person in people for thing in things]
    return [f"{one} and {other} ." for one, other in zip(said, rng.sample(said, len(said)), strict=True)], questions


class KnownEmbedder(MiniLMEmbedder):
    """MiniLM, at no cost for texts learnt before."""

    def __init__(self) -> None:
        self._known: dict[str, Floats] = {}

    def learn(self, texts: Sequence[str]) -> None:
        self._known.update(zip(texts, super().embed(texts), strict=True))

    def embed(self, texts: Sequence[str]) -> Floats:
        if all(text in self._known for text in texts):
            return np.stack([self._known[text] for text in texts])
        return super().embed(texts)


class RandomEmbedder:
    """A random unit vector for every text, always the same one."""

    name, dimension = "random", DIMENSION

    def embed(self, texts: Sequence[str]) -> Floats:
        seeds = (zlib.crc32(text.encode()) for text in texts)
        vectors = np.stack([np.random.default_rng(seed).standard_normal(DIMENSION, np.float32) for seed in seeds])
        return cast(Floats, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@dataclass(frozen=True)
class OneVector:
    """Gives one vector whatever the text: for processes that load no model."""

    name: str
    vector: Floats
    dimension: int = DIMENSION

    def embed(self, texts: Sequence[str]) -> Floats:
        return np.tile(self.vector, (len(texts), 1))


# The two sides


class Side(Protocol):
    """A store of one user's entries; entries filled in go by their number."""

    folder: Path

    def fill(self, texts: Sequence[str]) -> None: ...
    def add(self, text: str) -> object: ...
    def add_facts(self, turn: str, facts: Sequence[str], decide: bool = False) -> object: ...
    def search(self, question: str) -> object: ...
    def update(self, number: int, text: str) -> object: ...
    def delete(self, number: int) -> object: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Given:
    """Extracts the same facts from every turn."""

    facts: Sequence[str]
    turns_at_once: int = 1

    def extract(self, turns: Sequence[Turn]) -> list[Fact]:
        return [Fact(fact, turn_ids=(turns[0].id,)) for fact in self.facts]


class Ours:
    def __init__(self, folder: Path, embedder: Embedder) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.bank = Bank.open(folder / "bank.db", embedder=embedder)
        self._ids: list[str] = []

    def fill(self, texts: Sequence[str]) -> None:
        for start in range(0, len(texts), BATCH):
            applied = self.bank.apply(Operation.add(text) for text in texts[start : start + BATCH])
            self._ids += [one.entry.id for one in applied if one.entry]

    def add(self, text: str) -> object:
        return self.bank.apply([Operation.add(text)])

    def add_facts(self, turn: str, facts: Sequence[str], decide: bool = False) -> object:
        manager: MemoryManager = LLMManager(ScriptedPolicy([_decision(facts)])) if decide else AddOnlyManager()
        session = Session("s1", None, (Turn(turn, "user", turn),))
        report = Memory(self.bank, manager=manager, extractor=Given(facts)).remember(Dialogue("d1", (session,)))
        assert len(report.operations) == len(facts), report
        return report

    def search(self, question: str) -> object:
        return self.bank.search(question, k=10)

    def update(self, number: int, text: str) -> object:
        return self.bank.apply([Operation.update(self._ids[number], text)])

    def delete(self, number: int) -> object:
        return self.bank.apply([Operation.delete(self._ids[number])])

    def close(self) -> None:
        self.bank.close()


def _decision(facts: Sequence[str]) -> str:
    items = [{"fact": number, "op": "ADD", "id": None, "text": fact} for number, fact in enumerate(facts, start=1)]
    return json.dumps({"operations": items})


@dataclass
class ForMem0:
    """What mem0 asks of an embedder and of a language model."""

    embedder: Embedder
    facts: Sequence[str] = ()

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        return cast(list[float], self.embedder.embed([text])[0].tolist())

    def embed_batch(self, texts: Sequence[str], memory_action: str | None = None) -> list[list[float]]:
        return cast(list[list[float]], self.embedder.embed(texts).tolist())

    def generate_response(self, **prompt: object) -> str:
        return json.dumps({"memory": [{"text": fact, "attributed_to": "user"} for fact in self.facts]})


class Mem0:
    def __init__(self, folder: Path, embedder: Embedder) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._given = ForMem0(embedder)
        self._memory: Any = importlib.import_module("mem0").Memory.from_config(_mem0_config(folder))
        self._memory.embedding_model = self._memory.llm = self._given
        self._ids: list[str] = []

    def fill(self, texts: Sequence[str]) -> None:
        self._synchronous("OFF")  # one sync for each of 10,000 entries would take minutes
        self._ids += [self.add(text)["results"][0]["id"] for text in texts]
        self._synchronous("FULL")  # SQLite's default, which mem0 leaves as it is

    def _synchronous(self, mode: str) -> None:
        collection = self._memory.vector_store.client._client.collections["mem0"]
        for connection in (collection.storage.storage, self._memory.db.connection):
            connection.execute(f"PRAGMA synchronous = {mode}")

    def add(self, text: str) -> Any:
        return self._memory.add(text, user_id=USER, infer=False)

    def add_facts(self, turn: str, facts: Sequence[str], decide: bool = False) -> object:
        self._given.facts = facts
        report = self._memory.add(turn, user_id=USER)
        assert len(report["results"]) == len(facts), report
        return report

    def search(self, question: str) -> object:
        return self._memory.search(question, filters={"user_id": USER}, top_k=10)

    def update(self, number: int, text: str) -> object:
        return self._memory.update(self._ids[number], text=text)

    def delete(self, number: int) -> object:
        return self._memory.delete(self._ids[number])

    def close(self) -> None:
        self._memory.vector_store.client.close()
        self._memory.close()


def _mem0_config(folder: Path) -> dict[str, object]:
    store = {"path": str(folder / "qdrant"), "embedding_model_dims": DIMENSION}
    no_model = {"provider": "openai", "config": {"api_key": "never used"}}
    return {
        "vector_store": {"provider": "qdrant", "config": store},
        "embedder": no_model,
        "llm": no_model,
        "history_db_path": str(folder / "history.db"),
    }
