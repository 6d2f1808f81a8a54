"""Vectors of recent texts: embedded once, forgotten in order, shared with forks and between searching and adding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memory_r1.bank import Bank, HashingEmbedder, Operation
from memory_r1.bank.column import Floats
from memory_r1.bank.recent import RecentVectors
from memory_r1.memory.extract import Fact
from memory_r1.memory.manage import related_entries


class Counting(HashingEmbedder):
    """Notes every batch that it is given."""

    def __init__(self) -> None:
        super().__init__(16)
        self.batches: list[list[str]] = []

    def embed(self, texts: Sequence[str]) -> Floats:
        self.batches.append(list(texts))
        return super().embed(texts)


def test_a_text_is_embedded_once_and_vectors_come_in_order() -> None:
    embedder = Counting()
    recent = RecentVectors(embedder)
    expected = HashingEmbedder(16).embed(["tea", "dog", "tea"])
    assert np.array_equal(recent.of(["tea", "dog", "tea"]), expected)
    assert np.array_equal(recent.of(["dog", "cat"])[0], expected[1])
    assert embedder.batches == [["tea", "dog"], ["cat"]]


def test_the_texts_longest_unused_are_forgotten_first() -> None:
    embedder = Counting()
    recent = RecentVectors(embedder, kept=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        recent.of([text])
    assert embedder.batches == [["a"], ["b"], ["c"], ["b"]]


def test_more_texts_than_are_kept_come_back_all() -> None:
    texts = [f"text {number}" for number in range(9)]
    assert np.array_equal(RecentVectors(Counting(), kept=2).of(texts), HashingEmbedder(16).embed(texts))


def test_questions_are_embedded_in_one_batch_and_again_by_nobody() -> None:
    embedder = Counting()
    with Bank.open(":memory:", embedder=embedder) as bank:
        bank.apply([Operation.add("tea", speaker="Ann"), Operation.add("a dog", speaker="Bob")])
        embedder.batches.clear()
        found = bank.search_each(["tea?", "dog?"], k=1)
        assert [[entry.text for entry in entries] for entries in found] == [["tea"], ["a dog"]]
        assert found == [bank.search("tea?", k=1), bank.fork().search("dog?", k=1)]
        assert embedder.batches == [["tea?", "dog?"]]
        assert bank.search_each([]) == []


def test_a_fact_that_related_entries_were_looked_up_for_is_not_embedded_again_when_it_is_added() -> None:
    embedder = Counting()
    with Bank.open(":memory:", embedder=embedder) as bank:
        bank.apply([Operation.add("has a cat", speaker="Ann")])
        embedder.batches.clear()
        related_entries(bank, [Fact("has a dog", "Ann"), Fact("likes tea")], k=5)
        bank.apply([Operation.add("has a dog", speaker="Ann"), Operation.add("likes tea")])
        assert embedder.batches == [["Ann: has a dog", "likes tea"]]
